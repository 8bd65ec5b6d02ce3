"""Reward models on the policy's base: one more adapter and a score head, instead of a second copy of the base.

A `learned` reward whose adapter was trained on the base that the policy stands on is served by it. One with another
base loads its own beside it, and the log says what that costs.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.models.adapter_files import add_adapter, check_shares_base, read_head
from pipeline.models.adapters import base_of, use_adapter
from pipeline.models.folders import check_same_base, resolve_stage
from pipeline.models.lockstep import lockstep_of
from pipeline.models.trunk import Trunk
from pipeline.safety.console import say
from pipeline.safety.weights import ADAPTER_CONFIG, check_safetensors
from rewards import Learned, RewardFunction, every_in, mixture
from rewards.model_based import ModelBased

Autocast = Callable[[], AbstractContextManager[None]]
REWARD = "reward"  # the first such adapter; a second one is called reward_2, and so on


class RewardAdapter:
    """What `Learned` asks of a model, answered by an adapter on the policy's base: one score for each text.

    Args:
        model: the PEFT model that carries the policy; gains the adapter `name`, which never learns.
        name: of the adapter. folder: of the reward stage.
        autocast: context in which the trunk runs, as in the policy's passes.

    Raises:
        UserError: when the adapter does not fit the base, or has no score head of one output.
    """

    def __init__(self, model: PeftModel, name: str, folder: Path, autocast: Autocast):
        self._model, self._name, self._autocast = model, name, autocast
        self._trunk = Trunk(model)
        self.config = copy.deepcopy(base_of(model).config)  # Learned writes the pad id into it
        self.config.num_labels = 1
        self.device = model.device
        head = read_head(folder)
        hidden_size = self._trunk.width
        if "weight" not in head or head["weight"].shape != (1, hidden_size):
            raise UserError(f"{folder} has no score head of one output for hidden size {hidden_size}")
        add_adapter(model, folder, name)
        self.head = nn.Linear(hidden_size, 1, bias="bias" in head, dtype=torch.float32, device=model.device)
        self.head.load_state_dict({key: x.float() for key, x in head.items()})
        self.head.requires_grad_(False)
        for key, parameter in model.named_parameters():
            if name in key.split("."):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`.logits` (B, 1) of texts (B, L): the head on the last token that is not the pad id, as transformers' own
        sequence classifiers read it."""
        with use_adapter(self._model, self._name), self._autocast():
            hidden = self._trunk.run(input_ids=input_ids, attention_mask=attention_mask)
        real = input_ids != self.config.get_text_config().pad_token_id
        last = (torch.arange(input_ids.shape[1], device=input_ids.device) * real).argmax(dim=1)
        states = hidden[torch.arange(len(last), device=last.device), last]
        with torch.autocast(states.device.type, enabled=False):
            return SimpleNamespace(logits=self.head(states.float()))


def put_on_base(rewards: Iterable[RewardFunction], model: PeftModel, autocast: Autocast) -> list[RewardAdapter]:
    """Gives every `learned` reward in `rewards` that was trained on the base of `model` an adapter on it."""
    on_base: dict[str, tuple[RewardAdapter, object]] = {}
    if (lockstep := lockstep_of(model)) is not None:
        mixture.before_gathering.append(lockstep.settle)
    for reward in [part for whole in rewards for part in every_in(whole) if isinstance(part, Learned)]:
        if reward.is_loaded:
            continue
        path = reward.path or ""
        if path not in on_base:
            name = f"{REWARD}_{len(on_base) + 1}" if on_base else REWARD
            try:
                on_base[path] = _make(reward, model, name, autocast)
            except UserError as why:
                say(f"Reward {reward.__name__} loads its own model beside the policy's base{_size(reward)}: {why}.")
                reward.prepare()  # now: what is wrong with it is to be said before training
                continue
        reward.take(*on_base[path])
        reward.prepare()  # now: what its options are wrong about is to be said before anything is measured
    return [adapter for adapter, _ in on_base.values()]


def stands_on(reward: RewardFunction, base: str) -> bool:
    """Whether every model that `reward` asks can be an adapter on `base`; it is not loaded then before it is."""
    parts = [part for part in every_in(reward) if isinstance(part, ModelBased)]
    return bool(parts) and all(isinstance(part, Learned) and _why_not(part, base) is None for part in parts)


def _why_not(reward: Learned, base: str) -> str | None:
    """Why a reward needs a model of its own; None: its adapter can stand on `base`."""
    folder = Path(reward.path or "")
    if reward.path is None or not (folder / ADAPTER_CONFIG).is_file():
        return f"{folder} is no LoRA adapter in a folder here"
    if reward.dtype != "auto" or reward.device is not None:
        return "its dtype or device is set"
    try:
        check_safetensors(folder, "adapter")
        check_shares_base(folder)
        check_same_base(base, str(folder))
    except UserError as error:
        return str(error)
    return None


def _make(reward: Learned, model: PeftModel, name: str, autocast: Autocast) -> tuple[RewardAdapter, object]:
    folder, base = Path(reward.path or ""), base_of(model)
    if why := _why_not(reward, base.name_or_path or ""):
        raise UserError(why)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer else base.name_or_path, trust_remote_code=False)
    if len(tokenizer) > len(cast(nn.Embedding, base.get_input_embeddings()).weight):
        raise UserError("its tokenizer has more tokens than the base")
    return RewardAdapter(model, name, folder, autocast), tokenizer


def _size(reward: Learned) -> str:
    """` (59 MB)`: the weights of the model that the reward loads, where they are files here."""
    try:
        stage = resolve_stage(reward.path or "")
    except UserError:
        return ""
    size = sum(file.stat().st_size for file in Path(stage.base).glob("*.safetensors"))
    return f" ({size / 1e6:,.0f} MB)" if size else ""
