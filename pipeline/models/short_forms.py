"""The short forms of a policy: of its layers (lean.py), its head (head.py), and its attention over short rows.

The numbers are the same up to rounding; the time and the memory are not (docs/performance.md).
"""

from peft import PeftModel

from pipeline.models.adapters import base_of
from pipeline.models.attention import use_short_rows
from pipeline.models.head import lean_head
from pipeline.models.lean import lean


def take_short_forms(policy: PeftModel, temperature: float = 1.0, head: bool = True) -> None:
    """Gives `policy`, once TRL's trainer has it, all of them.

    Args:
        temperature: of its log-probabilities. head: False leaves TRL's, which has a gradient of the entropy.
    """
    lean(policy)
    if head:
        lean_head(base_of(policy), temperature)
    use_short_rows(base_of(policy))
