"""Where completions come from and what is paid for them: TRL's generation, a vLLM server, a loop of one's own.

May import: models and below.
Begin with: scoring.py: what the rewards say of a rollout. Another engine is one file here, a `rollout_func` as
TRL has it (prompts in, token ids out), which stages/ppo.py hands to the trainer.
"""
