"""The critic: a LoRA adapter of its own on the policy's base, and a value head.

It can be trained on the upper layers alone (`critic_layers`). What is below them then never changes, so what enters
the first trained layer is kept with the rollout, and the epochs over it begin there.

On disk it is an ordinary PEFT token-classification adapter (task type TOKEN_CLS, head saved as `score`), so that
`AutoPeftModelForTokenClassification.from_pretrained(folder, num_labels=1)` loads it with none of this code. A
reward-stage folder (SEQ_CLS, head `score`) has the same weights inside, so a critic can start from either.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.adapter_files import HEAD, add_adapter, difference, read_head, read_weights
from pipeline.models.adapters import CRITIC, base_of, use_adapter
from pipeline.models.trunk import Trunk
from pipeline.safety.console import say
from pipeline.safety.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_safetensors
from rewards.model_based import is_head


class Critic:
    """Values of every state of a completion.

    Args:
        model: the PEFT model that carries the policy; gains the adapter `critic` and the submodule `value_head`
            (so that optimizer, DDP and checkpoints find both).
        path: folder of a reward-stage adapter or of a saved critic to start from. None: the adapter starts as the
            identity and the head at 0, so every value is 0 at first and advantages are plain returns.
        layers: how many of the upper layers are trained; None: all.

    Raises:
        UserError: when `path` holds no adapter, an adapter without a score head, or one of another base, or when the
            model has fewer layers than `layers`.
    """

    def __init__(self, model: PeftModel, path: str | None = None, layers: int | None = None):
        self.model = model
        self._trunk = Trunk(model)
        self.frozen = 0 if layers is None else self._trunk.depth - layers  # layers at the bottom that never change
        if self.frozen < 0 or (layers is not None and not self._trunk.depth):
            raise UserError(
                f"critic_layers is {layers}, but the model has {self._trunk.depth} layers: give at most that many, or "
                "leave it out to train the critic on all of them."
            )
        # whether the upper layers run alone, as far as was seen: _try_from looks at every new length
        self.resumable = self.frozen > 0 and self._trunk.hands_on(self.frozen)
        self._tried = 0  # columns of the longest batch that it was tried with
        # float32 even on a 16-bit base: values are regressed, and half a percent of error matters
        self.head = nn.Linear(self._trunk.width, 1, dtype=torch.float32, device=model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if path is None:
            model.add_adapter(CRITIC, _like_policy(model))
        else:
            self._load(Path(path))
        model.value_head = self.head

    def values(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, states: Tensor | None = None
    ) -> Tensor:
        """V before each of the last `num_tokens` tokens. Ids and mask (B, P+T) -> (B, T), in score units.

        Column t comes from the position before token t, so it depends on the prompt and tokens < t only.

        Args: states: what `values_and_states` gave for the same rows, (B, P+T, H); the frozen layers are then passed
            over.
        """
        with use_adapter(self.model, CRITIC):
            hidden = self._hidden(states if self.resumable else None, input_ids, attention_mask)
        return self._read(hidden, num_tokens)

    def values_and_states(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        """`values`, and the states (B, P+T, H) that enter the first trained layer; None where every layer is trained,
        and for models whose upper layers need more than these states (such as keys and values of lower ones)."""
        if not self.resumable:
            return self.values(input_ids, attention_mask, num_tokens), None
        with use_adapter(self.model, CRITIC):
            with self._trunk.watch(self.frozen) as seen:
                hidden = self._hidden(None, input_ids, attention_mask)
            self._try_from(seen, hidden, input_ids, attention_mask)
        return self._read(hidden, num_tokens), seen[0] if self.resumable else None

    def _hidden(self, states: Tensor | None, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self._trunk.run(**inputs) if states is None else self._trunk.run_from(self.frozen, states, **inputs)

    def _try_from(self, seen: list[Tensor], hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Lets the upper layers go on from what entered them, and looks whether the same comes out.

        What longer rows need may be more than what short ones did (a window, the best so many keys): so it is tried
        with every batch that is longer than all before it.
        """
        length = input_ids.shape[1]
        if length <= self._tried:
            return
        self._tried = length
        same = len(seen) == 1 and seen[0].shape[:2] == input_ids.shape and seen[0].dim() == 3
        if same:
            try:
                again = self._hidden(seen[0], input_ids, attention_mask)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                if "out of memory" in str(error):
                    raise
                same = False
            else:
                real = attention_mask.bool()
                apart = (again - hidden)[real].abs().max() / hidden[real].abs().max()
                same = bool(apart < (1e-4 if hidden.dtype == torch.float32 else 0.02))  # up to rounding
        if not same:
            self.resumable = False
            kind = base_of(self.model).config.model_type
            say(f"critic_layers: the upper layers of {kind} do not run alone; the lower ones run again in every epoch")

    def _read(self, hidden: Tensor, num_tokens: int) -> Tensor:
        states = hidden[:, -num_tokens - 1 : -1]
        with torch.autocast(states.device.type, enabled=False):
            values: Tensor = self.head(states.float()).squeeze(-1)
        return values

    def learned(self) -> list[nn.Parameter]:
        """What training moves: the head, and the adapter in the layers above the frozen ones."""
        layers = [self._trunk.module] if not self.frozen else self._trunk.layers[self.frozen :]
        own = [p for m in layers for n, p in m.named_parameters() if "lora_" in n and CRITIC in n.split(".")]
        fixed = {id(p) for p in self._trunk.layers[: self.frozen].parameters()}  # of blocks that all layers share
        return [*(p for p in own if id(p) not in fixed), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        """Writes adapter, head and config as a PEFT TOKEN_CLS adapter into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        # "all-linear" was resolved to names when the adapter was made, so the config describes the weights exactly
        config = LoraConfig(**{**self.model.peft_config[CRITIC].to_dict(), "modules_to_save": ["score"]})
        config.task_type, config.inference_mode = "TOKEN_CLS", True
        config.save_pretrained(str(folder))
        weights = get_peft_model_state_dict(self.model, adapter_name=CRITIC, save_embedding_layers=False)
        weights |= {f"{HEAD}{name}": tensor for name, tensor in self.head.state_dict().items()}
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"}
        )

    def load_weights(self, folder: Path) -> None:
        """Puts the weights of a critic saved with `save` back, for resuming."""
        head, weights = self._checked(read_head(folder), folder), read_weights(folder / ADAPTER_WEIGHTS)
        weights = {key: value for key, value in weights.items() if not key.startswith(HEAD)}
        if odd := difference(self.model, weights, CRITIC):
            raise UserError(f"The critic in {folder} is not that of this run (first difference: {odd}).")
        set_peft_model_state_dict(self.model, weights, adapter_name=CRITIC)
        self._set_head(head)

    def _load(self, folder: Path) -> None:
        if not (folder / ADAPTER_CONFIG).is_file():
            raise UserError(
                f"critic_path is {folder}, but there is no LoRA adapter ({ADAPTER_CONFIG} is missing) in it. "
                "Give the folder of a reward-model stage, or leave critic_path out to start from the base."
            )
        check_safetensors(folder, "adapter")
        if any(is_head(key) and not key.startswith(HEAD) for key in read_weights(folder / ADAPTER_WEIGHTS)):
            raise UserError(
                f"The reward model in {folder} has another head than `score` on the last token, so that no critic can "
                "start from it. Leave critic_path out; it can still be a reward (learned)."
            )
        head = self._checked(read_head(folder), folder)
        add_adapter(self.model, folder, CRITIC)
        self._set_head(head)

    def _checked(self, head: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
        if "weight" not in head:
            raise UserError(
                f"The adapter in {folder} has no score head, so it can't be a critic's start. Train it with the "
                "reward-model stage (recipes/reward.py), which saves its head, or leave critic_path out."
            )
        if head["weight"].shape != self.head.weight.shape:
            labels, hidden_size = head["weight"].shape
            raise UserError(
                f"The score head in {folder} is for hidden size {hidden_size} and {labels} label(s), but the policy's "
                f"base has hidden size {self.head.weight.shape[1]} and a critic one label: it is of another model."
            )
        return head

    @torch.no_grad()
    def _set_head(self, head: dict[str, Tensor]) -> None:
        self.head.weight.copy_(head["weight"])
        self.head.bias.copy_(head.get("bias", torch.zeros(1)))


def _like_policy(model: PeftModel) -> LoraConfig:
    """A LoRA config of the policy's shape for a critic that starts from the base."""
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=list))
    for name in ("peft_type", "auto_mapping", "peft_version"):
        config.pop(name, None)
    fresh = {"task_type": "TOKEN_CLS", "modules_to_save": None, "inference_mode": False, "init_lora_weights": True}
    return LoraConfig(**config | fresh)
