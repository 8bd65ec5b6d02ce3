"""The command `plumbline`: the recipes of this house from anywhere, for those who have the wheel and no clone.

May import: everything but recipes/, whose scripts it launches. What `plumbline --help` needs imports no torch.
Begin with: main.py, then commands.py, the list of all commands.
"""
