"""One vLLM server as rollouts need it: adapters are loaded from folders, completions come as token ids with their
log-probabilities.

Plain HTTP; vLLM itself is not imported. Its own description: https://docs.vllm.ai (OpenAI-compatible server, LoRA
adapters). Tried with 0.32 (tests/rollouts/test_vllm_real.py).
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.errors import UserError
from rewards.json_server import Body, Failure, JsonServer, Passing, ServerError

# The server as rollouts need it; {} is the base. Parts of it are what a message asks for.
COMMAND = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_SERVER_DEV_MODE=1 vllm serve {base} --enable-lora --max-lora-rank {rank} "
    "--max-loras 2 --logprobs-mode processed_logprobs"
)
KEY_VARIABLE = "VLLM_API_KEY"  # of the environment; vLLM itself reads the same one where it is started
TRIES = 3  # of a share of a rollout, through a server that goes away and comes back
_ADVICE = "the run goes on from its last checkpoint with --resume once the server is well"


class Completion(NamedTuple):
    """What was sampled behind one prompt."""

    ids: list[int]
    logprobs: list[float]  # of each id, nats, under the distribution that was sampled from


class Adapter(NamedTuple):
    """A saved adapter: its name on the servers, and its folder as they see it."""

    name: str
    folder: str


class Facts(NamedTuple):
    """What a server says of itself."""

    base: str  # name by which the base is asked
    root: str  # folder or name that it was read from
    room: int | None  # tokens of prompt and completion together
    max_rank: int


class _Lost(Exception):
    """The server cannot go on with its share; the reason goes on after its name."""


class VllmServer(JsonServer[Completion]):
    """A server that runs already; where it wants a key, that is in the environment variable VLLM_API_KEY.

    Args:
        url: such as http://10.0.0.2:8000.
        at_once: requests under way at the same time, each for one completion.
        timeout: seconds for one completion.
        patience: seconds to wait for a server that is not up.
    """

    path = "/v1/completions"
    largest = 1 << 26
    pause = 2.0  # seconds between two looks at a server that is not up yet

    def __init__(self, url: str, at_once: int = 64, timeout: float = 600.0, patience: float = 240.0):
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {KEY_VARIABLE} has characters that no key has")
        super().__init__(url, key or None, at_once, timeout, retries=3)
        self.patience = patience
        self.known: Facts | None = None  # what it was when it was first asked

    def __str__(self) -> str:
        return f"vllm_server {self.url}"

    # ------------------------------------------------------------ what it is
    def facts(self) -> Facts:
        """Waits until the server is up, and asks what rollouts depend on.

        Raises:
            UserError: it is not there, was started without something (with the command that starts it right), or is
                another one than before.
        """
        self.wait()
        start = f"start it with {COMMAND.format(base='<the base>', rank='<the rank of the adapter>')}"
        status, found = self._ask("GET", "/server_info?config_format=json")
        refused, models = self._ask("GET", "/v1/models")  # in vLLM 0.32 this one wants the key, the other does not
        if {status, refused} & {401, 403}:
            known = f"does not take the key in {KEY_VARIABLE}" if self._key else "asks for a key"
            raise UserError(f"{self} {known}: put its --api-key into the environment variable {KEY_VARIABLE}")
        if status != 200:
            raise UserError(f"{self} says nothing of its settings (VLLM_SERVER_DEV_MODE=1 is missing): {start}")
        try:
            config = found["vllm_config"]
            lora, logprobs = config["lora_config"], config["model_config"]["logprobs_mode"]
            base = next(model for model in models["data"] if model["parent"] is None)
            facts = Facts(base["id"], base["root"], base["max_model_len"], lora["max_lora_rank"] if lora else 0)
        except (KeyError, TypeError, StopIteration):
            raise UserError(f"{self} says nothing of its settings that is known of vLLM 0.32: {start}") from None
        if lora is None:
            raise UserError(f"{self} takes no adapters (--enable-lora is missing): {start}")
        if logprobs != "processed_logprobs":
            raise UserError(f"{self} gives {logprobs}, which are not those of the sampled distribution: {start}")
        if self._ask("POST", "/v1/load_lora_adapter", {})[0] == 404:
            raise UserError(
                f"{self} takes no adapter while it runs (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is missing): {start}"
            )
        if self.known not in (None, facts):
            raise UserError(f"{self} came back as another one ({self.known} became {facts}): start it as it was")
        self.known = facts
        return facts

    def wait(self) -> None:
        """Until the server is up; raises UserError when it is not after `patience` seconds."""
        deadline = time.monotonic() + self.patience
        while (status := self._ask("GET", "/health")[0]) != 200:
            if time.monotonic() + self.pause > deadline:
                answer = f"it answers with status {status}" if status else "nothing answers there"
                start = COMMAND.format(base="<the base>", rank="<the rank of the adapter>")
                raise UserError(
                    f"{self} is not up after {self.patience:g} seconds ({answer}): start it with {start}, or set "
                    "vllm_server_timeout to wait longer"
                )
            time.sleep(self.pause)

    def _ask(self, method: str, path: str, body: Body | None = None) -> tuple[int, Any]:
        """Status and JSON of one answer, without a second try; status 0: nobody answers."""
        try:
            content = self._content(method, path, body)
        except Passing as error:
            return error.failure.status or 0, None
        except ServerError as error:
            return error.status or 0, None
        if isinstance(content, Failure):
            return content.status or 0, None
        try:
            return 200, json.loads(content or b"null")
        except ValueError:
            return 200, None

    # ------------------------------------------------------------ adapters
    def load(self, adapter: Adapter) -> None:
        """Raises UserError where the server refuses the adapter, or does not see its folder."""
        try:
            said = self._change("load", {"lora_name": adapter.name, "lora_path": adapter.folder})
        except ServerError as error:
            if error.status == 404 and "No adapter found" in str(error):
                raise UserError(
                    f"{self} does not see {adapter.folder}, where the adapter lies: name a folder that both machines "
                    "see (vllm_adapters: /shared/adapters, or /here:/there where it has two names), or a command that "
                    "copies it (vllm_copy: rsync -a --delete /here/ host:/there)"
                ) from None
            raise UserError(f"{self} {error}") from None
        # asked twice, because the answer to the first time was lost
        if said is not None and "already been loaded" not in said.reason:
            raise UserError(f"{self} does not take the adapter in {adapter.folder}: it {said.reason}")

    def unload(self, adapter: Adapter) -> None:
        """The server forgets an adapter; one that it has not, or a server that is gone, is left alone."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": adapter.name})

    def names(self) -> list[str]:
        """Of all that can be asked there: the base and the adapters that are loaded."""
        found = self._ask("GET", "/v1/models")[1]
        return [model["id"] for model in found["data"]] if found else []

    def _change(self, what: str, body: Body) -> Failure | None:
        def send() -> Failure | None:
            content = self._content("POST", f"/v1/{what}_lora_adapter", body)
            return content if isinstance(content, Failure) else None

        return self._patiently(send)

    # ------------------------------------------------------------ completions
    def sample(
        self,
        bodies: Sequence[Body],
        adapter: Adapter | None,
        found: list[Completion | None],
        answered: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Fills `found` with a completion for each body; `answered` is told of each, from other threads.

        A server that goes away is waited for, given the adapter again where it has lost it, and asked for what is
        missing: with the same seeds, so that nothing depends on which completions were there already.

        Raises:
            UserError: it cannot; what went wrong, and that the run can be resumed.
        """
        for further in range(TRIES - 1, -1, -1):
            missing = [i for i in range(len(bodies)) if found[i] is None]
            try:
                if missing:
                    self._sample([bodies[i] for i in missing], missing, found, answered)
                return
            except (_Lost, ServerError) as error:
                lost_adapter = isinstance(error, ServerError) and error.status == 404
                if not further or (isinstance(error, ServerError) and not lost_adapter):
                    raise UserError(f"{self} {error}; {_ADVICE}") from None
            self.facts()
            if adapter is not None and adapter.name not in self.names():
                self.load(adapter)

    def _sample(self, bodies: Sequence[Body], places: Sequence[int], found: list[Completion | None], answered) -> None:
        def keep(i: int, completion: Completion) -> None:
            found[places[i]] = completion
            answered(1)

        self.ask_all(bodies, keep)

    def ask(self, body: Body, stop: threading.Event | None = None) -> Completion | Failure:
        answer = super().ask(body, stop)
        if isinstance(answer, Failure):
            if answer.status in (400, 413, 422):  # it will say so again
                raise UserError(f"{self} {answer.reason}")
            raise _Lost(answer.reason)
        return answer

    def _read(self, content: bytes, body: Body) -> Completion:
        try:
            return completion_of(json.loads(content), body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = str(error) if type(error) is ValueError else f"'{content[:200].decode('utf-8', 'replace')}'"
            raise Passing(Failure(self.printable(f"answers with something that is no completion: {why}"))) from None


def body_of(model: str, prompt_ids: list[int], settings: Body, seed: int) -> Body:
    """A request for one completion.

    Args: settings: `max_tokens`, `stop_token_ids` and what shapes the distribution, by vLLM's names.
    """
    # All that vLLM would else take from the model's generation_config.json, and no end token but those that are named
    plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "temperature": 1.0, "repetition_penalty": 1.0, "ignore_eos": True}
    asked = {"model": model, "prompt": prompt_ids, "n": 1, "seed": seed, "logprobs": 0, "return_token_ids": True}
    return plain | settings | asked


def completion_of(answer: Any, body: Body) -> Completion:
    """Reads an answer to `body`, and holds it against what was asked.

    Raises:
        ValueError, KeyError, TypeError: it is not whole, or not an answer to this question.
    """
    [choice] = answer["choices"]
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if answer["model"] != body["model"] or choice["prompt_token_ids"] != body["prompt"]:
        raise ValueError("it answers another question")
    if not (isinstance(ids, list) and ids and all(type(token) is int and token >= 0 for token in ids)):
        raise ValueError("it has no token ids")
    if len(logprobs) != len(ids) or not all(isinstance(x, float | int) and math.isfinite(x) for x in logprobs):
        raise ValueError("it has not one log-probability for each token")
    stops = body["stop_token_ids"]
    ends = ids[-1] in stops or len(ids) == body["max_tokens"]
    if not ends or len(ids) > body["max_tokens"] or any(token in stops for token in ids[:-1]):
        raise ValueError("it does not end where it should")
    return Completion(list(ids), [float(x) for x in logprobs])
