"""The exam of an ILQL run: the policy before, and the policy with the values' shift after."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.exam.exam import Exam
from pipeline.ilql.decoding import Shift, shifted
from pipeline.ilql.network import TARGET, Network
from pipeline.models.adapters import POLICY, use_adapter

START = "start"  # who answers before: the policy alone. POLICY is who answers after: the policy with the shift


class ShiftedExam(Exam):
    """See `pipeline.exam.exam.Exam`; `start` answers without the shift, the policy with it."""

    def __init__(self, trainer, *args, **kwargs):
        super().__init__(trainer, START, *args, **kwargs)
        self.network: Network = trainer.network
        self.model = self.network.lm

    @contextmanager
    def active_adapter(self, who: str | None) -> Iterator[None]:
        shift = Shift(TARGET, self.network.target_heads, self.trainer.args.beta) if who == POLICY else None
        with use_adapter(self.model, POLICY), shifted(self.model, shift):
            yield
