"""Rows for every stage: read, checked by column and type, split so that no prompt stands on both sides.

May import: config, models and below.
Begin with: loading.py; a new file format is one function in readers.py.
"""
