"""Pushing results to the Hugging Face Hub: `make push`, and `push_to_hub: true` while training."""

from pipeline.hub.push import PushArguments, run
from pipeline.hub.trainer import PushesResults

__all__ = ["PushArguments", "PushesResults", "run"]
