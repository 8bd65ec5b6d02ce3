"""The evaluation stage: any models, any rewards, any prompts; with intervals, paired tests and win rates.

May import: ilql and all below.
Begin with: stage.py; candidates.py loads whoever answers, sampling.py keeps completions as offline data.
"""
