"""What goes to the Hugging Face Hub: the model card, `make push`, and `push_to_hub: true` while training.

May import: report, models, exam and below.
Begin with: push.py; card/ writes the model card from what a run left.
"""

from pipeline.hub.push import PushArguments, run
from pipeline.hub.trainer import PushesResults

__all__ = ["PushArguments", "PushesResults", "run"]
