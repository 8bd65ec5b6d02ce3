"""Talking to base, SFT and trained policy side by side in the terminal (`make chat`).

May import: ilql and all below.
Begin with: speakers.py: which adapter answers; terminal_chat.py: the conversation.
"""
