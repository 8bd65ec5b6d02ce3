"""vLLM servers as a rollout engine: the adapter travels to them, not the model.

Before each rollout the adapter is saved whole into a new folder (written aside, then renamed) and loaded under a new
name. Nothing is loaded in place: a server keeps what it computed of a prompt under the adapter's name. Each completion
is a request of its own, token ids both ways, with a seed of its own, so that equal prompts get different completions.
"""

import hashlib
import itertools
import os
import random
import shlex
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import ServerSettings
from pipeline.errors import UserError
from pipeline.models.adapters import POLICY, adapter_layers, base_of, use_adapter
from pipeline.models.probe import rows_of
from pipeline.models.structure import eval_mode
from pipeline.rollouts.vllm_server import COMMAND, Adapter, Completion, VllmServer, body_of
from rewards.foreign import beside_lora

SEEDS = 2**31  # vLLM takes a seed below it
PATIENCE = 240.0  # seconds for a server to be up, where no setting says so
_TRIED = 16  # tokens behind each row that shows whether a server has the same model
# The mean difference of log-probabilities that is put down to other kernels and 16 bits, nats; on a 4-bit base
_SAME, _SAME_QUANTISED = 0.2, 1.0
# What LoRA can be asked for beside A and B, and vLLM cannot: setting -> the value that is none of it
_NOT_SENT = {
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
}


class Speaker(Protocol):
    """Whoever answers prompts in the place of a model: token ids in, token ids out."""

    def __call__(
        self,
        prompt_ids: Sequence[list[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: list[int],
        temperature: float,
        seed: int,
        sampling: dict | None = None,
        answered: Callable[[int], None] = ...,
    ) -> list[list[int]]: ...


class Engine:
    """The servers that `settings` name, and the adapters that they have of us. For the main process alone.

    Args:
        settings: with the fields of `ServerSettings`.
        result: folder of the result; adapters go through `adapters` in it, unless `vllm_adapters` names another.

    Raises:
        UserError: a server is not there, or was started without something.
    """

    def __init__(self, settings: ServerSettings, result: str | Path):
        patience = getattr(settings, "vllm_server_timeout", PATIENCE)
        timeout, at_once = settings.vllm_request_timeout, settings.vllm_at_once
        self.servers = [VllmServer(url, at_once, timeout, patience) for url in settings.vllm_server or []]
        self._copy = settings.vllm_copy
        here, _, there = (settings.vllm_adapters or str(Path(result, "adapters"))).partition(":")
        self.folder = Path(here).resolve()  # where adapters are written,
        self._seen_as = there.rstrip("/") or str(self.folder)  # and how the servers see it
        run = Path(result).resolve()
        self._run = f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:6]}-"
        self._names = (f"{self._run}{uuid.uuid4().hex[:6]}-{number}" for number in itertools.count())
        for server in self.servers:
            server.facts()

    def check_room(self, length: int) -> None:
        """Raises UserError where a server has no room for `length` tokens, prompt and completion together."""
        for server in self.servers:
            room = (server.known or server.facts()).room
            if room is not None and room < length:
                raise UserError(
                    f"{server} has room for {room} tokens, but prompt and completion may have {length}: start it with "
                    f"--max-model-len {length}, or lower max_completion_length"
                )

    def forget_earlier(self) -> None:
        """Takes away what an earlier process of this run has left, in the folder and on the servers."""
        for left in self.folder.glob(f"{self._run}*"):
            shutil.rmtree(left, ignore_errors=True)
        for server in self.servers:
            for name in server.names():
                if name.startswith(self._run):
                    server.unload(Adapter(name, ""))

    # ------------------------------------------------------------ adapters
    def load(self, model: PeftModel, name: str) -> Adapter:
        """Saves the adapter `name` of `model` and loads it on every server.

        Raises:
            UserError: vLLM cannot apply it, a server refuses it, or does not see the folder.
        """
        self._check(model, name)
        adapter = next(self._names)
        aside = self.folder / f"{adapter}.partial"
        model.save_pretrained(aside, selected_adapters=[name])
        os.replace(aside if name == POLICY else aside / name, self.folder / adapter)
        shutil.rmtree(aside, ignore_errors=True)
        if self._copy:
            self._run_copy()
        loaded = Adapter(adapter, f"{self._seen_as}/{adapter}")
        for server in self.servers:
            server.load(loaded)
        return loaded

    def unload(self, adapter: Adapter) -> None:
        """The servers forget the adapter, and its folder goes away."""
        for server in self.servers:
            server.unload(adapter)
        shutil.rmtree(self.folder / adapter.name, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _run_copy(self) -> None:
        done = subprocess.run(shlex.split(self._copy or ""), capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join(done.stderr.split())[-200:]
            raise UserError(f"vllm_copy ended with status {done.returncode} ({said}): {self._copy}")

    def _check(self, model: PeftModel, name: str) -> None:
        config = model.peft_config[name]
        if not isinstance(config, LoraConfig):
            raise UserError(f"vllm_server takes LoRA adapters, and this one is {config.peft_type.value}: leave it out")
        given = config.to_dict()
        beside = (name for name, none in _NOT_SENT.items() if given.get(name) not in (none, None))
        found = beside_lora(given) or next(beside, None)
        if found is not None:
            raise UserError(
                f"the adapter has {found}, which vLLM cannot apply: train without it, or leave vllm_server out"
            )
        base = base_of(model)
        ends = (base.get_input_embeddings(), base.get_output_embeddings())
        layers = [layer for layer in adapter_layers(model) if name in (*layer.lora_A, *layer.lora_embedding_A)]
        if any(layer is end for layer in layers for end in ends):
            raise UserError(
                "the adapter stands on the embeddings or the output layer, which vLLM does not apply everywhere: "
                "train it on the layers in between (lora_target_modules: all-linear), or leave vllm_server out"
            )
        rank = max([config.r, *(config.rank_pattern or {}).values()])
        for server in self.servers:
            facts = server.known or server.facts()
            if rank > facts.max_rank:
                raise UserError(
                    f"{server} was started for adapters up to rank {facts.max_rank}, and this one has {rank}: start "
                    f"it with {COMMAND.format(base=facts.root, rank=_rank_for(rank))}"
                )

    # ------------------------------------------------------------ completions
    def sample(
        self,
        prompt_ids: Sequence[list[int]],
        adapter: Adapter | None,
        seeds: Sequence[int],
        settings: dict[str, Any],
        answered: Callable[[int], None] = lambda count: None,
    ) -> list[Completion]:
        """A completion for each prompt, the prompts shared out over the servers.

        Args:
            adapter: None: the servers' base.
            seeds: one for each prompt. settings: as of `body_of`.
            answered: is told of each number of prompts that have been answered.

        Raises:
            UserError: a server cannot; the completions of the others are lost as well.
        """
        count, lock = len(self.servers), threading.Lock()
        found: list[list[Completion | None]] = []
        problems: list[BaseException] = []

        def tell(number: int) -> None:
            with lock:
                answered(number)

        def ask(server: VllmServer, *share) -> None:
            try:
                server.sample(*share, tell)
            except BaseException as error:
                problems.append(error)

        threads = []
        for place, server in enumerate(self.servers):
            model = adapter.name if adapter else (server.known or server.facts()).base
            mine = zip(prompt_ids[place::count], seeds[place::count], strict=True)
            bodies = [body_of(model, prompt, settings, seed) for prompt, seed in mine]
            found.append([None] * len(bodies))
            # daemons: a second Ctrl-C must not wait for answers
            threads.append(threading.Thread(target=ask, args=(server, bodies, adapter, found[-1]), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        together = [found[i % count][i // count] for i in range(len(prompt_ids))]
        return [completion for completion in together if completion is not None]

    @contextmanager
    def speaking(
        self, model: PeftModel | PreTrainedModel, adapter: str | None, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Speaker]:
        """Inside, the servers answer as `model` does with `adapter` (None: without any).

        Raises:
            UserError: as `load`, or when a server says something else than `model` does.
        """
        loaded = self.load(model, adapter) if adapter is not None else None
        try:
            self._prove(model, adapter, loaded, tokenizer)

            def speak(
                prompt_ids, *, max_new_tokens, eos_token_ids, temperature, seed, sampling=None, answered=lambda n: None
            ):
                asked = {"max_tokens": max_new_tokens, "stop_token_ids": list(eos_token_ids)}
                asked |= {"temperature": temperature} | ((sampling or {}) if temperature else {})
                drawn = random.Random(seed)
                seeds = [drawn.randrange(SEEDS) for _ in prompt_ids]
                completions = self.sample(prompt_ids, loaded, seeds, asked, answered)
                return [completion.ids for completion in completions]

            yield speak
        finally:
            if loaded is not None:
                self.unload(loaded)

    @torch.no_grad()
    def _prove(self, model, adapter: str | None, loaded: Adapter | None, tokenizer) -> None:
        """Each server samples behind two rows of ordinary tokens, and `model` says how likely that was."""
        base = base_of(model)
        rows = [row.tolist() for row in rows_of(tokenizer, base)]
        limit = _SAME if getattr(base, "quantization_method", None) is None else _SAME_QUANTISED
        for server in self.servers:
            name = loaded.name if loaded else (server.known or server.facts()).base
            asked = {"max_tokens": _TRIED, "stop_token_ids": []}
            found: list[Completion | None] = [None] * len(rows)
            server.sample([body_of(name, row, asked, seed) for seed, row in enumerate(rows)], loaded, found)
            differences = []
            for row, completion in zip(rows, found, strict=True):
                ids = torch.tensor([[*row, *completion.ids]], device=base.device)
                with eval_mode(model), use_adapter(model, adapter):
                    logits = model(input_ids=ids, use_cache=False).logits[0, len(row) - 1 : -1]
                ours = logits.float().log_softmax(-1).gather(1, ids[0, len(row) :, None])[:, 0].cpu()
                differences.append((ours - torch.tensor(completion.logprobs)).abs())
            mean = torch.cat(differences).mean().item()
            if not mean <= limit:
                facts = server.known or server.facts()
                raise UserError(
                    f"{server} serves {facts.root}, which says something else than the base of this run: the "
                    f"log-probabilities of {_TRIED * len(rows)} sampled tokens differ by {mean:.2f} nats on average. "
                    f"Start it with {COMMAND.format(base=_name_of(base), rank=facts.max_rank)}"
                )


def engine_of(settings: ServerSettings, result: str | Path) -> Engine | None:
    """The engine that `settings` ask for, if they do."""
    return Engine(settings, result) if settings.vllm_server else None


@contextmanager
def speaker_of(engine: Engine | None, model, adapter: str | None, tokenizer) -> Iterator[Speaker | None]:
    """Inside, who answers in the place of `model` with `adapter`; None: the model itself."""
    if engine is None:
        yield None
        return
    with engine.speaking(model, adapter, tokenizer) as speaker:
        yield speaker


def _rank_for(rank: int) -> int:
    """The smallest --max-lora-rank of vLLM that takes an adapter of this rank."""
    return next((allowed for allowed in (1, 8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), rank)


def _name_of(base: PreTrainedModel) -> str:
    return getattr(base.config, "name_or_path", "") or "<the base>"
