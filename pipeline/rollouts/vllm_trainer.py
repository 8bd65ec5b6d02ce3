"""vLLM servers in the place where TRL's trainers ask vLLM: `trainer.vllm_generation`.

TRL's own client sends every weight of the model over NCCL before each rollout, and wants vLLM in the trainer's
environment. Here stands an object with the same two methods that sends the adapter alone, over HTTP. The rest stays
TRL's, also what is done about a sampler that differs a little (other kernels, 16 bits): the log-probabilities of a
rollout are the trainer's own pass, and π_ours/π_sampler, truncated (Espeholt et al. 2018, arXiv 1802.01561), stands as
a weight in the loss.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from pipeline.config import ServerSettings
from pipeline.errors import UserError
from pipeline.models.adapters import POLICY
from pipeline.models.lockstep import in_lockstep
from pipeline.rollouts.ahead import SHAPE, Ahead
from pipeline.rollouts.vllm_engine import SEEDS, Engine, Speaker
from pipeline.rollouts.vllm_server import Adapter, Completion
from pipeline.safety.console import from_main
from pipeline.safety.reading import read_json

# What shapes the distribution, by TRL's names and vLLM's
_SHAPING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
AHEAD = "ahead.json"  # in a checkpoint: the rollout that was sampled before its turn
KEPT = 2  # versions of the policy on the servers: the newest, and the one before


class ServerGeneration:
    """What TRL calls `vllm_generation`. The main process asks the servers, for all processes.

    Args:
        trainer: PPOTrainer, or TRL's GRPOTrainer or RLOOTrainer, with a PEFT model.
        engine: on the main process; None on the others.
    """

    def __init__(self, trainer: Any, engine: Engine | None):
        self.trainer, self.engine = trainer, engine
        self.versions: list[Adapter] = []  # of the policy, the newest last
        self.ahead = Ahead(trainer) if engine and getattr(trainer.args, "rollout_ahead", 0) else None

    def sync_weights(self) -> None:
        """Sends the policy as it is now; the version before the last one goes."""

        def send(engine: Engine) -> None:
            if self.ahead is not None:
                if self._in_turn and not self.ahead.asks:
                    return  # of the last update the rollout is there
                self.ahead.wait()  # no version goes while it is sampled from
            while len(self.versions) >= KEPT:
                engine.unload(self.versions.pop(0))
            self.versions.append(engine.load(self.model, POLICY))

        self._by_main(send)

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[list[list[int]], list[list[int]], list[list[list[float]]], None]:
        """A completion for each prompt, of which equal ones stand beside each other.

        Args: prompts: token ids. The other arguments are TRL's; nothing depends on them.

        Returns:
            prompt ids, completion ids, log-probabilities in nats with one number in a list for each token, None.
        """
        if images is not None:
            raise UserError("vllm_server samples from text alone: leave vllm_server out for prompts with images")
        everyone = gather_object(prompts)
        with profiler or nullcontext():
            completions = self._by_main(lambda engine: self._completions(engine, everyone))
        start = self.trainer.accelerator.process_index * len(prompts)
        mine = completions[start : start + len(prompts)]
        return prompts, [ids for ids, _ in mine], [[[x] for x in logprobs] for _, logprobs in mine], None

    def _completions(self, engine: Engine, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
        ask = partial(self._question, engine)
        found = self.ahead.completions(prompts, ask) if self.ahead and self._in_turn else ask(prompts)()
        return [tuple(completion) for completion in found]

    @property
    def _in_turn(self) -> bool:
        """Whether it is the training that samples: no exam, no call of `generate` by hand."""
        return bool(self.trainer.is_in_train and self.trainer.model.training)

    def _question(self, engine: Engine, prompts: list[list[int]]) -> Callable[[], list[Completion]]:
        """A call that asks for completions of the newest version of the policy."""
        trainer = self.trainer
        settings = {key: x for key in _SHAPING if (x := getattr(trainer, key)) is not None}
        settings |= {"max_tokens": trainer.max_completion_length, "stop_token_ids": list(trainer.eos_token_ids)}
        # from the generator that a checkpoint keeps: a resumed run asks with the same seeds
        seeds = torch.randint(SEEDS, (len(prompts),)).tolist()
        return partial(engine.sample, prompts, self.versions[-1], seeds, settings)

    @contextmanager
    def speaking(self, adapter: str | None) -> Iterator[Speaker]:
        """Inside, the servers answer with an adapter of the trainer's model; for the main process."""
        with self.engine.speaking(self.model, adapter, self.trainer.processing_class) as speaker:
            yield speaker

    @property
    def model(self):
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def close(self) -> None:
        """The servers forget what they had of this run; nothing that is still being sampled is waited for."""
        while self.engine is not None and self.versions:
            self.engine.unload(self.versions.pop())

    def _by_main(self, call: Callable[[Engine], Any]) -> Any:
        """What `call` returns on the main process, on every process; what it raises as well."""
        found = [None, None]
        if self.engine is not None:
            try:
                found[0] = call(self.engine)
            except UserError as error:
                found[1] = str(error)
        broadcast_object_list(found, from_process=0)
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]


def attach(trainer: Any) -> None:
    """Lets `trainer` sample at the servers that its settings name, if they name any; tries them out first.

    Call it once the trainer's model is what is trained.

    Raises:
        UserError: see `Engine` and its `speaking`.
    """
    if not getattr(trainer.args, "vllm_server", None):
        return
    problem = None
    generation = ServerGeneration(trainer, None)
    with in_lockstep(trainer.model):
        if trainer.accelerator.is_main_process:
            try:
                generation = ServerGeneration(trainer, Engine(trainer.args, trainer.args.output_dir))
                generation.engine.forget_earlier()
                with generation.speaking(POLICY):
                    pass
            except UserError as error:
                problem = str(error)
    if problem := from_main(problem):
        raise UserError(problem)
    trainer.vllm_generation = generation
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "server", -1


def check(config: ServerSettings, length: int) -> None:
    """Asks the servers what can be asked before anything is loaded; waits `vllm_server_timeout` seconds for them.

    Args: length: tokens of the longest prompt and completion together.

    Raises:
        UserError: a server is not there, was started without something, or has less room.
    """
    if not config.vllm_server:
        return
    problem = None
    if config.process_index == 0:
        try:
            Engine(config, config.output_dir).check_room(length)
        except UserError as error:
            problem = str(error)
    if problem := from_main(problem):
        raise UserError(problem)


def close(trainer: Any) -> None:
    """The servers forget what they had of the trainer's run."""
    generation = getattr(trainer, "vllm_generation", None)
    if isinstance(generation, ServerGeneration):
        generation.close()


def save_ahead(trainer: Any, folder: Path) -> None:
    """Writes the rollout that is sampled ahead into a checkpoint, once it is there; on the main process."""
    if (ahead := _ahead_of(trainer)) is not None and (state := ahead.state()) is not None:
        (folder / AHEAD).write_text(json.dumps(state), encoding="utf-8")


def load_ahead(trainer: Any, folder: Path) -> None:
    """Takes it back; where there is none, the next rollout is sampled in its turn."""
    if (ahead := _ahead_of(trainer)) is not None and (folder / AHEAD).exists():
        ahead.load_state(read_json(folder / AHEAD, SHAPE))


def _ahead_of(trainer: Any) -> Ahead | None:
    generation = getattr(trainer, "vllm_generation", None)
    return generation.ahead if isinstance(generation, ServerGeneration) else None


@contextmanager
def speaking(trainer: Any, adapter: str | None) -> Iterator[Speaker | None]:
    """Inside, whoever answers in the place of the trainer's model; None: the model itself."""
    generation = getattr(trainer, "vllm_generation", None)
    if not isinstance(generation, ServerGeneration):
        yield None
        return
    with generation.speaking(adapter) as speaker:
        yield speaker


def log_difference(trainer: Any, batch: dict[str, Tensor]) -> None:
    """`sampler/kl` and `sampler/ratio_max` of a rollout, into TRL's own figures."""
    ours, theirs = batch.get("old_per_token_logps"), batch.get("sampling_per_token_logps")
    if ours is None or theirs is None:
        return
    mask = batch["completion_mask"].bool()
    kl, ratio = (x[mask] for x in difference(ours, theirs))
    sums = trainer.accelerator.reduce(torch.stack([kl.sum(), mask.sum()]))
    largest = trainer.accelerator.gather(ratio.max()[None]).max()
    figures = trainer._metrics["train" if trainer.model.training else "eval"]
    figures["sampler/kl"].append((sums[0] / sums[1]).item())
    figures["sampler/ratio_max"].append(largest.item())


def difference(old_logprobs: Tensor, sampler_logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """How far the sampler is from us at each of its tokens, (B, T): r - 1 - log r, whose mean estimates
    KL(sampler ‖ ours) in nats (k3, http://joschu.net/blog/kl-approx.html), and r = π_ours/π_sampler."""
    log_ratio = old_logprobs - sampler_logprobs
    return torch.expm1(log_ratio) - log_ratio, log_ratio.exp()
