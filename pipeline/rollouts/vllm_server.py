"""Rollouts by a vLLM server, on this machine or another one: `vllm_server: http://host:8000`.

TRL's client does the work: prompts and completions go over HTTP, and before each rollout the policy's weights go over
NCCL. Added here: the one setting, the questions that can be asked before anything is loaded, and how the weights are
made. TRL adds the adapter into the base and takes it off again, so that a 16-bit base keeps the rounding of every
rollout and a 4-bit one is quantised anew; it would also send the critic's head, which no server knows.
"""

import importlib.util
import json
import time
from collections.abc import Iterator
from functools import partial
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.errors import UserError
from pipeline.models.adapters import POLICY
from pipeline.safety.console import from_main, is_main

# The server as the trainer needs it; {} is the base.
COMMAND = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve {} --weight-transfer-config \'{{"backend": "nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)
_RETRY = 2.0  # seconds between two looks at a server that is not up yet
_QUANTISED = ("Params4bit", "Int8Params")


def check(config) -> None:
    """Whether the run can use vLLM as it is asked to; waits up to `vllm_server_timeout` seconds for the server.

    Raises:
        UserError: vLLM is not installed, there is no GPU to send weights from, or the server is not there or was
            started without something that TRL needs.
    """
    if not config.use_vllm:
        return
    key = "vllm_server" if config.vllm_mode == "server" else "use_vllm"
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"{key} is set, but vLLM is not installed on this machine, where TRL's client needs it too: install it "
            f"with pip install 'trl[vllm]', or leave {key} out to sample with transformers"
        )
    if config.device.type != "cuda":
        raise UserError(
            f"{key} is set, but weights go to vLLM from a GPU (NCCL), and this run is on the {config.device.type}: "
            f"leave {key} out to sample with transformers"
        )
    if config.vllm_mode == "server":
        url = config.vllm_server_base_url or f"http://{config.vllm_server_host}:{config.vllm_server_port}"
        problem = from_main(problem_of(url, config.vllm_server_timeout) if is_main() else None)
        if problem:
            raise UserError(problem)


def problem_of(url: str, timeout: float) -> str | None:
    """What is wrong with the server at `url`, in one sentence; None: nothing. Waits `timeout` seconds for it."""
    start = f"start it with {COMMAND.format('<the base>')}"
    deadline = time.monotonic() + timeout
    while (said := _ask(f"{url}/health")) is None or said[0] != 200:
        if time.monotonic() + _RETRY > deadline:
            answer = "nothing answers there" if said is None else f"it answers with status {said[0]}"
            return f"vllm_server {url} is not up after {timeout:g} seconds ({answer}): {start}"
        time.sleep(_RETRY)
    status, text = _ask(f"{url}/server_info?config_format=json") or (0, "")
    if status != 200:
        return f"vllm_server {url} does not take new weights: {start}"
    try:
        found = json.loads(text)["vllm_config"]
        transfer, logprobs = found["weight_transfer_config"], found["model_config"]["logprobs_mode"]
    except (ValueError, KeyError, TypeError):
        return f"vllm_server {url} says nothing of its settings that TRL 1.16 understands: {start}"
    if transfer is None:
        return f"vllm_server {url} has no engine that takes new weights: {start}"
    if logprobs != "processed_logprobs":
        return f"vllm_server {url} gives {logprobs}, which are not those of the sampled distribution: {start}"
    return None


def _ask(url: str) -> tuple[int, str] | None:
    """Status and text of the answer; None: nobody answers."""
    try:
        with urlopen(Request(url), timeout=10) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except HTTPError as error:
        return error.code, ""
    except (URLError, OSError, ValueError):
        return None


def send_merged(trainer) -> None:
    """Makes `trainer` send `named_weights` to vLLM."""
    generation = getattr(trainer, "vllm_generation", None)
    if generation is not None and isinstance(trainer.model, PeftModel):
        generation._iter_named_params = partial(named_weights, trainer.model)


@torch.no_grad()
def named_weights(model: PeftModel, adapter: str = POLICY) -> Iterator[tuple[str, Tensor]]:
    """The weights of the base with `adapter` added, W + s B A, under the names that the base's own files have.

    One weight at a time; nothing of `model` is changed. Tied weights come once. Quantised ones come as what they stand
    for, in the precision that they compute in, so the server loads the base in 16 bits.

    Raises:
        UserError: an adapter that is not plain LoRA.
    """
    base = model.get_base_model()
    for name, parameter in base.named_parameters():
        path, _, leaf = name.rpartition(".")
        if "original_module" in path or ".lora_" in f".{name}":
            continue
        module = base.get_submodule(path)
        weight = dequantize_module_weight(module) if type(parameter).__name__ in _QUANTISED else parameter.data
        if isinstance(weight, DTensor):  # of a base that is shared out; every process is here
            weight = weight.full_tensor()
        layer = base.get_submodule(path.removesuffix(".base_layer"))
        if leaf == "weight" and isinstance(layer, LoraLayer) and adapter in layer.scaling:
            if adapter in layer.lora_variant or layer.lora_bias.get(adapter):
                raise UserError(f"the adapter changes {path} by more than plain LoRA, which vllm_server cannot send")
            weight = (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)
        yield f"{path}.{leaf}".replace(".base_layer.", ".").replace(f".modules_to_save.{adapter}.", "."), weight
