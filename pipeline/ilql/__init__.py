"""Implicit language Q-learning: Q and V over tokens, learned offline, that shift the policy's logits in decoding.

May import: ppo, memory, data, exam and below.
Begin with: trainer.py; math.py has the formulas, decoding.py the shift.
"""
