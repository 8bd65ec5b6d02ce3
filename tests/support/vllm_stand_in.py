"""A stand-in for `vllm serve` on loopback, in this process, over real sockets. It samples with transformers and PEFT,
answers in the words of vLLM 0.32 (`vllm_recorded.json`), and fails as it is told.

with serving(tmp_path) as server:           # on the base that vllm_base() makes, in tmp_path/base
    server.fail(429, {"Retry-After": "1"})  # the next completion; further ones wait behind it
    server.fail("drop") / "cut" / "nonsense" / "slow" / "other" / "short" / "unended" / "two" / "forget"
    server.asked, server.bodies, server.adapters, server.loaded, server.most
"""

import copy
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import toy
from faulty_http import FaultyHandler, running
from peft import PeftModel
from vllm_exchanges import MISSING, RECORDED

RECORD = json.loads(RECORDED.read_text(encoding="utf-8"))


def vllm_base(**changes) -> toy.LlamaForCausalLM:
    """The toy with heads of 32 numbers, the fewest that vLLM has kernels for on a CPU."""
    return toy.build_model(**{"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.15} | changes)


class StandIn(ThreadingHTTPServer):
    """`says`: changes of what /server_info says: name of a part -> its settings or None, or None for no such page.
    `key`: what it was started with as --api-key."""

    daemon_threads = True

    def __init__(self, folder: Path, base: toy.LlamaForCausalLM, port: int = 0, **says):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.base = folder, base.eval()
        self.takes_adapters, self.key = says.pop("takes_adapters", True), says.pop("key", None)
        self.says = copy.deepcopy(RECORD["server_info"]["answer"]["vllm_config"])
        self.says = None if says.get("info", 0) is None else self.says | says
        self.faults: deque[tuple[Any, dict]] = deque()
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.adapters: dict[str, tuple[str, torch.nn.Module]] = {}  # loaded now: name -> folder, model
        self.loaded: list[str] = []  # so far
        self.most = 0  # adapters at once
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, fault: int | str, headers: dict | None = None, times: int = 1) -> None:
        self.faults += [(fault, headers or {})] * times

    def handle_error(self, *args) -> None:  # who hangs up on us has done so on purpose
        pass

    # ------------------------------------------------------------ what it does
    def load(self, body: dict) -> tuple[int, Any]:
        if not body:
            return said("load nothing")
        name, folder = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return said("load again", one=name)
        if not Path(folder, "adapter_config.json").is_file():
            return said("load unseen", **{"unseen": name, MISSING: folder})
        with torch.random.fork_rng(devices=[]):  # PEFT draws weights before it reads them; the trainer is in here, too
            model = PeftModel.from_pretrained(copy.deepcopy(self.base), folder).eval()
        self.adapters[name] = (folder, model)
        self.loaded.append(name)
        self.most = max(self.most, len(self.adapters))
        return said("load", one=name)

    def unload(self, body: dict) -> tuple[int, Any]:
        name = body["lora_name"]
        return said("unload" if self.adapters.pop(name, None) else "unload again", one=name)

    def models(self) -> tuple[int, Any]:
        status, answer = said("models with one")
        base, one = answer["data"]
        base["root"] = str(self.folder)
        loaded = [one | {"id": name, "root": folder} for name, (folder, _) in self.adapters.items()]
        return status, answer | {"data": [base, *loaded]}

    @torch.no_grad()
    def complete(self, body: dict) -> tuple[int, Any]:
        name, room = body["model"], self.base.config.max_position_embeddings
        if name != "base" and name not in self.adapters:
            return said("unknown model", two=name)
        if body["max_tokens"] > room or len(body["prompt"]) + body["max_tokens"] > room:
            return said("too long", **{"600": str(body["max_tokens"])})
        model = self.base if name == "base" else self.adapters[name][1]
        drawn = torch.Generator().manual_seed(body["seed"])
        ids, new, logprobs = list(body["prompt"]), [], []
        while len(new) < body["max_tokens"] and not set(new) & set(body["stop_token_ids"]):
            with self.lock:  # adapters of one base are one module each; torch is asked one question at a time
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits = logits / (body["temperature"] or 1.0)
            token = (
                logits.argmax()
                if not body["temperature"]
                else torch.multinomial(logits.softmax(-1), 1, generator=drawn)
            )
            new.append(int(token))
            logprobs.append(logits.log_softmax(-1)[new[-1]].item())
            ids.append(new[-1])
        status, answer = said("the adapter speaks")
        [choice] = answer["choices"]
        choice["logprobs"]["token_logprobs"] = logprobs
        ended = new[-1] in body["stop_token_ids"]
        choice |= {
            "token_ids": new,
            "prompt_token_ids": body["prompt"],
            "finish_reason": "stop" if ended else "length",
        }
        choice["stop_reason"] = new[-1] if ended else None
        return status, answer | {"model": name, "choices": [choice]}


def said(name: str, **others: str) -> tuple[int, Any]:
    """What vLLM said when it was asked so, with other names in it."""
    record = copy.deepcopy(RECORD[name])
    text = json.dumps(record["answer"])
    for old, new in others.items():
        text = text.replace(f"'{old}'", f"'{new}'").replace(f"`{old}`", f"`{new}`").replace(f" {old}", f" {new}")
    return record["status"], json.loads(text)


class _Handler(FaultyHandler):
    server: StandIn

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path == "/health":
            return self._send(*said("health"))
        if self._refused(path):
            return None
        if path == "/server_info" and self.server.says is not None:
            return self._send(200, {"vllm_config": self.server.says})
        return self._send(*(self.server.models() if path == "/v1/models" else said("no such page")))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        server.asked.append(self.path)
        if self._refused(self.path):
            return None
        if self.path == "/v1/completions":
            with server.lock:
                server.bodies.append(body)
                fault, headers = server.faults.popleft() if server.faults else (None, {})
            return self._complete(body, fault, headers)
        change = {"/v1/load_lora_adapter": server.load, "/v1/unload_lora_adapter": server.unload}.get(self.path)
        if change is None or not server.takes_adapters:
            return self._send(*said("no such page"))
        return self._send(*change(body))

    def _refused(self, path: str) -> bool:
        """vLLM guards what lies under /v1 (entrypoints/serve/middleware/authenticate.py), and these are its words."""
        key = self.server.key
        if key is None or not path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._send(401, {"error": "Unauthorized"})
        return True

    def _complete(self, body: dict, fault: Any, headers: dict) -> None:
        if self._fails(fault, headers, self.server.over):
            return
        if fault == "forget":
            self.server.adapters.clear()
        status, answer = self.server.complete(body | ({"prompt": [*body["prompt"], 3]} if fault == "other" else {}))
        if fault == "short":
            answer["choices"][0]["logprobs"]["token_logprobs"].pop()
        if fault == "unended":
            answer["choices"][0]["token_ids"] = [3] * (body["max_tokens"] + 1)
            answer["choices"][0]["logprobs"]["token_logprobs"] = [-1.0] * (body["max_tokens"] + 1)
        if fault == "two":
            answer["choices"].insert(0, copy.deepcopy(answer["choices"][0]))
            answer["choices"][0]["logprobs"]["token_logprobs"][0] -= 1  # the first is not the right one
        if fault == "cut":
            return self._send_half(status, answer, {})
        return self._send(status, answer)


@contextmanager
def serving(folder: Path, base: toy.LlamaForCausalLM | None = None, **says) -> Iterator[StandIn]:
    """A stand-in on `base`, whose folder is `folder`/base as far as anybody is told."""
    server = StandIn(folder / "base", vllm_base() if base is None else base, **says)
    with running(server, server.over):
        yield server


def dies_after(server, count: int):
    """From the completion number `count` on the server answers with an error; returns what gives it back its voice."""
    complete, left = server.complete, [count]

    def dies(body):
        left[0] -= bool(body["stop_token_ids"])
        return complete(body) if left[0] > 0 else (500, {"error": {"message": "engine is dead"}})

    server.complete = dies
    return lambda: setattr(server, "complete", complete)
