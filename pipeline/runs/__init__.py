"""A run on disk: its folder, who holds it, checkpoints, resuming to the bit, stopping in good order.

May import: safety and below.
Begin with: folder.py: what lies in a run folder; then resume.py: `--resume`.
"""
