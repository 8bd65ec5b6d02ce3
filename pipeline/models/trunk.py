"""The decoder under the heads: run whole, run from one of its layers, and run without what nobody reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from peft import PeftModel
from torch import Tensor, nn

from pipeline.models import structure

_TOKEN_BY_TOKEN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


class Trunk:
    """The decoder without its language-model head, and its stack of layers.

    Raises:
        UserError: at the first use of `width` or `layers`, when the model gives no hidden states for a text alone.
    """

    def __init__(self, model: PeftModel):
        self._model = model
        self.module = structure.trunk_of(model)

    @cached_property
    def _seen(self) -> structure.Anatomy:
        return structure.look(self._model)

    @property
    def width(self) -> int:
        """H of the last hidden states."""
        return self._seen.width

    @property
    def layers(self) -> nn.ModuleList:
        return self._seen.layers

    @property
    def depth(self) -> int:
        return len(self.layers)

    def run(self, **inputs) -> Tensor:
        """Last hidden states, (B, P+T, H)."""
        return self.module(**inputs, use_cache=False).last_hidden_state

    def run_from(self, first: int, states: Tensor, **inputs) -> Tensor:
        """The same, with the layers below `first` standing still and `states`, what enters it, in their place.

        The model's own loop runs over all of its layers, so that each one keeps its number, its mask and its
        positions.
        """
        below = list(self.layers[:first])
        own = [vars(layer).get("forward") for layer in below]
        for layer in below:
            layer.forward = _returning(states, self._seen.returned.get(layer, 0))
        try:
            return self.run(**inputs)
        finally:
            for layer, forward in zip(below, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def hands_on(self, first: int) -> bool:
        """Whether layer `first` runs once, and those below it return hidden states first of all."""
        seen = self._seen
        return seen.passes[self.layers[first]] == 1 and all(seen.returned.get(x, 0) >= 0 for x in self.layers[:first])

    @contextmanager
    def watch(self, first: int) -> Iterator[list[Tensor]]:
        """Inside the block, what enters layer `first` is put into the list."""
        seen: list[Tensor] = []

        def keep(module, args, kwargs):
            entering = args[0] if args else kwargs.get("hidden_states")
            if isinstance(entering, Tensor):
                seen.append(entering.detach())

        hook = self.layers[first].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield seen
        finally:
            hook.remove()


def _returning(states: Tensor, count: int) -> Callable:
    """A layer's forward that returns `states`, alone or with None in a tuple of `count`."""
    output = (states, *(None,) * (count - 1)) if count else states
    return lambda *args, **kwargs: output


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
