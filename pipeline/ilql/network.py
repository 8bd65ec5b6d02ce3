"""Q and V over tokens: an adapter of their own on the policy's base, and heads.

The paper has three transformers: the policy, the value network with a head for Q and one for V, and the target, the
moving average of the value network. Here they are three LoRA adapters on one base: `default` (the policy, frozen),
`ilql` (learns), `ilql_target` (the average; what V learns from, and what decodes). A trunk of its own for the
values costs a second pass in decoding; what it buys is that the policy stays what SFT made it, to the bit.

Where this deviates from the paper: its Q head has an output for each token of the vocabulary. Here
Q(s, a) = e_a · f(s) + c(s), with e_a the frozen output embedding of the base, so that a head has about 3 H² weights
and not H times the vocabulary. Two Q heads, of which the smaller counts, are the paper's.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.ilql import math
from pipeline.models.adapter_files import add_adapter, read_weights
from pipeline.models.adapters import POLICY, copy_adapter, use_adapter
from pipeline.models.structure import freeze_idle
from pipeline.models.trunk import Trunk
from pipeline.safety.reading import read_json
from pipeline.safety.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_safetensors

VALUES, TARGET = "ilql", "ilql_target"  # adapters ("values" is taken: PEFT keeps them in a dict of modules)
FOLDER, ONLINE = "values", "values_online"  # in a run folder, what decodes; in a checkpoint, also what learns
HEADS, SETTINGS = "heads.safetensors", "ilql.json"
_SHAPE = {"beta": float, "hidden": int}


class Head(nn.Module):
    """A layer of 2 H units and linear outputs, which start at 0; float32. (…, H) -> (…, outputs)."""

    def __init__(self, hidden: int, outputs: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, outputs)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.outer(nn.functional.relu(self.inner(states)))


class Heads(nn.Module):
    """Two heads for Q and one for V on the last hidden states. Q's outputs are f(s) and, last, c(s)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.q1, self.q2, self.v = Head(hidden, hidden + 1), Head(hidden, hidden + 1), Head(hidden, 1)

    def start_at(self, value: float) -> None:
        """Every Q and V starts at `value`, say the mean return of the data."""
        with torch.no_grad():
            for head in (self.q1, self.q2, self.v):
                head.outer.bias[-1] = value

    def q(self, states: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Both Q of every token: states (B, T, H), embeddings (V, H) -> twice (B, T, V)."""
        found = []
        for head in (self.q1, self.q2):
            out = head(states)
            found.append((out[..., :-1].to(embeddings.dtype) @ embeddings.T).float() + out[..., -1:])
        return found[0], found[1]

    def q_of(self, states: Tensor, embeddings: Tensor, ids: Tensor) -> Tensor:
        """The smaller Q of the tokens `ids` (B, T) alone, (B, T)."""
        rows = embeddings[ids].float()
        both = [(out[..., :-1] * rows).sum(-1) + out[..., -1] for out in (self.q1(states), self.q2(states))]
        return torch.minimum(*both)

    def values(self, states: Tensor) -> Tensor:
        """V of every state, (B, T)."""
        return self.v(states).squeeze(-1)


class Values(NamedTuple):
    """Of the states before each token. `logits` is Q of the first head, by the name that models of text have."""

    logits: Tensor  # (B, T, V)
    q2: Tensor  # (B, T, V)
    values: Tensor  # (B, T)


class Network(nn.Module):
    """The base with policy, values and target; what the trainer trains.

    Args:
        lm: a PEFT model whose one adapter, `default`, is the policy. It gains the other two.
        path: folder of an adapter that these start from, such as that of a reward model; None: they start as the
            policy.

    Raises:
        UserError: the model has no output embeddings of the width of its hidden states, or the adapter in `path` is
            none that can stand on its base.
    """

    def __init__(self, lm: PeftModel, path: str | None = None):
        super().__init__()
        self.lm = lm
        if path is None:
            copy_adapter(lm, POLICY, VALUES)
        else:
            start_from(lm, VALUES, Path(path))
        copy_adapter(lm, VALUES, TARGET, dropout=0.0)
        self._trunk = Trunk(lm)
        check_embeddings(lm, self._trunk.width)
        self.heads, self.target_heads = (Heads(self._trunk.width).to(lm.device) for _ in range(2))
        self.target_heads.load_state_dict(self.heads.state_dict())
        self.requires_grad_(False)
        for parameter in self.learned():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        freeze_idle(lm)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int | None = None) -> Values:
        """Q and V of the last `num_tokens` tokens (None: all but the first). Ids and mask (B, P+T)."""
        num_tokens = num_tokens or input_ids.shape[1] - 1
        states = self._states(VALUES, input_ids, attention_mask, num_tokens)
        with torch.autocast(states.device.type, enabled=False):
            q1, q2 = self.heads.q(states, embeddings_of(self.lm))
            return Values(q1, q2, self.heads.values(states))

    @torch.no_grad()
    def target_q(self, input_ids: Tensor, attention_mask: Tensor, completion_ids: Tensor) -> Tensor:
        """The smaller Q of the target for each token of the completions, (B, T)."""
        states = self._states(TARGET, input_ids, attention_mask, completion_ids.shape[1])
        with torch.autocast(states.device.type, enabled=False):
            return self.target_heads.q_of(states, embeddings_of(self.lm), completion_ids)

    def learned(self) -> list[nn.Parameter]:
        """What training moves: the adapter `ilql` and its heads."""
        return [*_adapter(self.lm, VALUES), *self.heads.parameters()]

    def averaged(self) -> list[nn.Parameter]:
        """What follows it, in the same order."""
        return [*_adapter(self.lm, TARGET), *self.target_heads.parameters()]

    def follow(self, rate: float) -> None:
        """Moves the target by `rate` of the way."""
        math.polyak(self.averaged(), self.learned(), rate)

    def _states(self, adapter: str, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """Hidden states before each of the last `num_tokens` tokens, (B, T, H), float32."""
        with use_adapter(self.lm, adapter):
            hidden = self._trunk.run(input_ids=input_ids, attention_mask=attention_mask)
        return hidden[:, -num_tokens - 1 : -1].float()

    # ------------------------------------------------------------ on disk
    def save(self, folder: Path, beta: float, online: bool = False) -> None:
        """Writes the target (`online`: what learns) into `folder`: a LoRA adapter, heads.safetensors, ilql.json."""
        folder.mkdir(parents=True, exist_ok=True)
        adapter, heads = (VALUES, self.heads) if online else (TARGET, self.target_heads)
        config = LoraConfig(**self.lm.peft_config[adapter].to_dict())
        # its hidden states are what counts: nobody shall take it for a language model
        config.task_type, config.inference_mode = "FEATURE_EXTRACTION", True
        config.save_pretrained(folder)
        weights = get_peft_model_state_dict(self.lm, adapter_name=adapter)
        for name, tensors in ((ADAPTER_WEIGHTS, weights), (HEADS, heads.state_dict())):
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / name, {"format": "pt"})
        settings = {"beta": beta, "hidden": heads.hidden}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path, online: bool = False) -> None:
        """Takes back what `save` wrote."""
        adapter, heads = (VALUES, self.heads) if online else (TARGET, self.target_heads)
        put_weights(self.lm, folder, adapter, heads)


def start_from(lm: PeftModel, adapter: str, folder: Path) -> None:
    """Adds `adapter` with the settings and the LoRA weights in `folder`; a score head in there stays behind."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"values_path {folder} holds no LoRA adapter ({ADAPTER_CONFIG} is missing)")
    check_safetensors(folder, "adapter")
    try:
        add_adapter(lm, folder, adapter)
    except UserError as error:
        raise UserError(f"values_path: {error}") from None


def values_folder(run: str | Path) -> Path:
    """Where a run has the value network that it decodes with."""
    return Path(run, FOLDER)


def has_shift(run: str | Path | None) -> bool:
    """Whether a run folder is one of ILQL, which decodes with a value network."""
    return run is not None and (values_folder(run) / SETTINGS).is_file()


def put_weights(lm: PeftModel, folder: Path, adapter: str, heads: Heads) -> None:
    """The weights of a saved value network into an adapter that is there, and into `heads`.

    Raises:
        UserError: files are missing, or are of another base.
    """
    weights, found = read_weights(folder / ADAPTER_WEIGHTS), read_weights(folder / HEADS)
    expected = get_peft_model_state_dict(lm, adapter_name=adapter)
    for have, want, name in ((weights, expected, ADAPTER_WEIGHTS), (found, heads.state_dict(), HEADS)):
        odd = sorted(key for key in {*have, *want} if key not in have or key not in want)
        odd += [key for key in want if key in have and have[key].shape != want[key].shape]
        if odd:
            raise UserError(f"{folder / name} does not fit the base of the run (first difference: {odd[0]})")
    set_peft_model_state_dict(lm, weights, adapter_name=adapter)
    heads.load_state_dict(found)


def read_settings(folder: Path) -> dict:
    """`beta` and `hidden` of a saved value network."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEADS, SETTINGS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no whole value network ({name} is missing): train the run again")
    found = read_json(folder / SETTINGS, _SHAPE)
    if not (0 <= found["beta"] < float("inf") and 0 < found["hidden"] < 2**20):
        raise UserError(f"{folder / SETTINGS}: beta is {found['beta']}, hidden {found['hidden']}: train the run again")
    return found


def embeddings_of(lm: PeftModel) -> Tensor:
    """The frozen output embeddings of the base, (V, H)."""
    return lm.get_base_model().get_output_embeddings().weight


def check_embeddings(lm: PeftModel, hidden: int) -> None:
    """Raises `UserError` for a base without output embeddings (V, H) of plain numbers, H = `hidden`."""
    output = lm.get_base_model().get_output_embeddings()
    weight = getattr(output, "weight", None)
    if weight is None or weight.dim() != 2 or weight.shape[1] != hidden or not weight.is_floating_point():
        raise UserError("the base has no output embeddings as wide as its hidden states, which Q is made from")


def _adapter(lm: PeftModel, name: str) -> list[nn.Parameter]:
    return [p for key, p in lm.named_parameters() if "lora_" in key and name in key.split(".")]
