"""The exam on held-out prompts, before, during and after training: answers, their scores, statistics of them.

May import: config, metrics, models and below.
Begin with: exam.py; evaluation.py answers and scores, statistics.py has intervals and paired tests.
"""
