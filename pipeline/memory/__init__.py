"""What a run takes: memory by formula before it starts; machines, time and network (`python -m pipeline.scale`).

May import: cli, exam, models and below.
Begin with: estimate.py: the formulas.
"""
