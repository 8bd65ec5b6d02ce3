"""Base models, tokenizers and LoRA adapters: found, checked, loaded, run in part, run faster.

May import: config, runs and below.
Begin with: loading.py; then adapters.py: several adapters on one base.
"""
