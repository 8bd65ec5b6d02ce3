"""What a recipe launches, each one function `run`: SFT, reward model, PPO and its kin, ILQL, merging.

May import: ilql, ppo, hub and all below.
Begin with: sft.py; rl.py is what the stages with rewards share.
"""
