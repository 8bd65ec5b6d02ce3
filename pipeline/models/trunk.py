"""The decoder under the heads: run whole, run from one of its layers, and run without what nobody reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import Tensor, nn

_TOKEN_BY_TOKEN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


class Trunk:
    """The decoder without its language-model head, and its stack of layers."""

    def __init__(self, model: PeftModel):
        base = model.get_base_model()
        self.module = getattr(base, base.base_model_prefix)
        depth = base.config.get_text_config().num_hidden_layers
        stacks = ((n, m) for n, m in self.module.named_children() if isinstance(m, nn.ModuleList) and len(m) == depth)
        self._name, self.layers = next(stacks, (None, nn.ModuleList()))

    @property
    def depth(self) -> int:
        return len(self.layers)

    def run(self, **inputs) -> Tensor:
        """Last hidden states, (B, P+T, H)."""
        return self.module(**inputs, use_cache=False).last_hidden_state

    def run_from(self, first: int, states: Tensor, attention_mask: Tensor) -> Tensor:
        """The same by the layers from `first` on alone, which are given what enters them."""
        setattr(self.module, self._name, self.layers[first:])
        try:
            return self.run(inputs_embeds=states, attention_mask=attention_mask)
        finally:
            setattr(self.module, self._name, self.layers)

    @contextmanager
    def watch(self, first: int) -> Iterator[list[Tensor]]:
        """Inside the block, what enters layer `first` is put into the list."""
        seen: list[Tensor] = []

        def keep(module, args, kwargs):
            seen.append((args[0] if args else kwargs["hidden_states"]).detach())

        hook = self.layers[first].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield seen
        finally:
            hook.remove()


class Tail:
    """The last layer works only where somebody reads.

    Log-probabilities and values are read at the completion and one position before it. What the last layer makes of
    the prompt's positions besides keys and values (queries, attention output, feed-forward) is read by nobody: zeros
    stand in its place, and every gradient is what it would have been.

    A layer that is not built of the usual parts is left alone.
    """

    def __init__(self, trunk: Trunk):
        self._count: int | None = None
        modules = dict(trunk.layers[-1].named_modules()) if trunk.depth else {}
        if all(name in modules for name in _TOKEN_BY_TOKEN) and hasattr(modules["mlp"], "down_proj"):  # no mixture
            for name in _TOKEN_BY_TOKEN:
                modules[name].forward = self._limited(modules[name].forward)

    @contextmanager
    def reads(self, count: int) -> Iterator[None]:
        """Inside the block only the last `count` positions of each row are read."""
        self._count = count
        try:
            yield
        finally:
            self._count = None

    def _limited(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def limited(x: Tensor, *args, **kwargs) -> Tensor:
            unread = 0 if self._count is None else x.shape[1] - self._count
            if unread <= 0:
                return forward(x, *args, **kwargs)
            return nn.functional.pad(forward(x[:, unread:], *args, **kwargs), (0, 0, unread, 0))

        return limited
