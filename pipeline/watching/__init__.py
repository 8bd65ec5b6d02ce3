"""What a person sees of a run while it goes on: terminal, trackers, figures, and watchers that warn.

May import: runs and below.
Begin with: watch.py: a watcher is a function from figures to a warning; metrics.py: what each figure is.
"""
