"""The next rollout, sampled while this one is learned from (`rollout_ahead: 1`).

When an update begins, its rollout is there, and the vLLM servers are asked for the next one at once, by the policy as
it is then: what is learned from was sampled one update ago. π_ours/π_sampler, which weighs every token already for
what the sampler computes otherwise, has the step of that update in it as well: the decoupled objective of Hilton,
Cobbe, Schulman 2022 (arXiv 2110.00641, eq. 5) with the truncation of Espeholt et al. 2018 (arXiv 1802.01561), as in
replay.py. Advantages are not corrected.

The prompts of the next rollout come from an order of our own beside that of TRL's loader, with the same seed.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, NamedTuple

from datasets import IterableDataset
from trl import GRPOTrainer

from pipeline.errors import UserError
from pipeline.rollouts.vllm_server import Completion

Prompts = list[list[int]]  # token ids, of all processes
# Prompts -> a call that asks the servers for their completions. The seeds are drawn, and the version of the policy is
# chosen, before the call.
Question = Callable[[Prompts], Callable[[], list[Completion]]]
SHAPE = {"number": int, "prompts": [[int]], "completions": [{"ids": [int], "logprobs": [float]}]}  # in a checkpoint


class Pending(NamedTuple):
    """A rollout that was asked for before its turn."""

    number: int  # of the update that learns from it, from 0 up
    prompts: Prompts
    completions: Future[list[Completion]]


class Ahead:
    """Asks for each rollout one update early. For the main process alone.

    Args: trainer: PPOTrainer.

    Raises:
        UserError: it does not read its prompts from a list, or does not sample by itself.
    """

    def __init__(self, trainer: Any):
        if trainer._no_prompts or isinstance(trainer.train_dataset, IterableDataset):
            raise UserError(
                "rollout_ahead is 1, which takes the next prompts from the rows of train_dataset, and here is "
                f"{'no train_dataset' if trainer._no_prompts else 'a stream'}: leave it out"
            )
        if trainer.rollout_func is not None:
            raise UserError("rollout_ahead is 1, but rollout_func samples in its own way: leave one of the two out")
        self.trainer = trainer
        self.pending: Pending | None = None
        self._places = _places_of_rollouts(trainer)
        self._passed = 0  # rollouts whose places have been read

    def completions(self, prompts: Prompts, ask: Question) -> list[Completion]:
        """Of the rollout whose turn it is; those of the next one are asked for.

        Raises:
            UserError: a server could not.
        """
        number = self._number
        if self._is_there(number):
            pending, self.pending = self.pending, None
            if pending.prompts != prompts:
                raise UserError(
                    f"rollout_ahead has sampled other prompts than update {number + 1} is given: what hands out the "
                    "rows (a data_collator, a sampler of your own) must keep TRL's order, or leave rollout_ahead out"
                )
            found = pending.completions.result()
        else:  # the first one, or one that is made again
            found = ask(prompts)()
        self._begin(number + 1, ask)
        return found

    @property
    def asks(self) -> bool:
        """Whether anything is still to be sampled by the policy as it is now: this rollout, or the next one."""
        return not self._is_there(self._number) or not self._is_over(self._number + 1)

    @property
    def _number(self) -> int:
        return int(self.trainer.state.global_step // self.trainer.args.steps_per_update)

    def _is_there(self, number: int) -> bool:
        return self.pending is not None and self.pending.number == number

    def _is_over(self, number: int) -> bool:
        return bool(number * self.trainer.args.steps_per_update >= self.trainer.state.max_steps)

    def wait(self) -> None:
        """Until nothing is being sampled; what went wrong is told when the completions are wanted."""
        if self.pending is not None:
            self.pending.completions.exception()

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps, once it is there: of the shape `SHAPE`; None: nothing, or what has failed."""
        if self.pending is None or self.pending.completions.exception() is not None:
            return None
        completions = [completion._asdict() for completion in self.pending.completions.result()]
        return {"number": self.pending.number, "prompts": self.pending.prompts, "completions": completions}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        found: Future[list[Completion]] = Future()
        found.set_result([Completion(**completion) for completion in state["completions"]])
        self.pending = Pending(state["number"], state["prompts"], found)

    def _begin(self, number: int, ask: Question) -> None:
        if self._is_there(number) or self._is_over(number):
            return
        prompts = self._prompts_of(number)
        self.pending = Pending(number, prompts, in_background(ask(prompts)))

    def _prompts_of(self, number: int) -> Prompts:
        if number < self._passed:  # train() was called once more
            self._places, self._passed = _places_of_rollouts(self.trainer), 0
        places = next(islice(self._places, number - self._passed, None))
        self._passed = number + 1
        prompts: Prompts = self.trainer.prompt_ids_of([self.trainer.train_dataset[place] for place in places])
        return prompts


def in_background(call: Callable[[], Any]) -> Future[Any]:
    """What `call` will return, or raise. Its thread ends with the process, whatever it waits for."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def _places_of_rollouts(trainer: Any) -> Iterator[list[int]]:
    """Of the rows of each rollout, over all processes and epochs, in the order in which TRL's loader comes to them."""
    order = GRPOTrainer._get_train_sampler(trainer)  # type: ignore[no-untyped-call]  # the loader has one like it
    order.repeat_count = 1  # it repeats each rollout for every micro-batch that is made of it
    while True:
        epoch = iter(order)
        while places := list(islice(epoch, trainer.args.generation_batch_size)):
            yield places
