"""A reward before it is trusted: what it would pay for right, wrong and degenerate completions of a recipe's own data.

May import: exam, cli, data, models and below.
Begin with: command.py, `python -m rewards.check recipe.yaml`.

    command.py   what is read of the recipe, and what is printed
    texts.py     the completions that are tried
    measuring.py what every reward says of them
    findings.py  the holes that show in it
"""
