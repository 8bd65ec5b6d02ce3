"""`python -m pipeline.card`."""

import runpy

runpy.run_module("pipeline.hub.card", run_name="__main__")
