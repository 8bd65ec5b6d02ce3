"""The evaluation stage: any models, any rewards, any prompts; with intervals, paired tests and win rates."""
