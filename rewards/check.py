"""`python -m rewards.check recipe.yaml`: what a recipe's rewards would pay for right, wrong and broken completions.

The command reads recipes and data, which this package knows nothing of. It is `pipeline/check`; this file only lends
it the name under which it is looked for. It is run, and nothing may import it.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("pipeline.check", run_name="__main__")
