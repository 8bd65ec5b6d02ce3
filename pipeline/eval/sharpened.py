"""The control for sharpening: the start, sampled at the temperature at which it is as sure of itself as a policy.

Training by reward also makes a policy surer of its words, and whoever samples the start at a lower temperature has
that for nothing. So each trained candidate is set beside the start at the temperature T at which

    the mean over tokens of H(softmax(logits / T)), in nats, on the start's own samples at T

is that of the policy on its own samples. What the policy gains beyond this is more than sharpening.
"""

from collections.abc import Callable
from typing import NamedTuple

TEXTS = 50  # prompts on which entropies are measured
HALVINGS = 7  # of the range of temperatures at most
CLOSE = 0.01  # of the entropy: nearer than so many texts can tell


class Sharpened(NamedTuple):
    """How the start was made as sharp as a policy. Entropies are means over tokens, in nats."""

    name: str  # of the control, among the candidates
    temperature: float | None  # None: the policy has no less entropy than the start, so there is nothing to sharpen
    entropy: float  # of the policy, which is aimed at
    entropy_start: float  # of the start, sampled as the policy was
    entropy_found: float | None = None  # of the start at `temperature`


def control_name(start: str, policy: str) -> str:
    """What the tables call the control."""
    return f"{start} as sharp as {policy}"


def sharpen(
    start: str,
    policy: str,
    entropy: float,
    entropy_start: float,
    entropy_at: Callable[[float], float],
    highest: float,
) -> Sharpened:
    """Finds the temperature by bisection between 0 and `highest`, at which the start has `entropy_start`.

    Args: entropy_at: temperature -> entropy of the start; it should rise, and is asked at most `HALVINGS` times.
    """
    name = control_name(start, policy)
    if entropy >= entropy_start:
        return Sharpened(name, None, entropy, entropy_start)
    low, high, tried = 0.0, highest, {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried[middle] = entropy_at(middle)
        if abs(tried[middle] - entropy) <= CLOSE * entropy:
            break
        low, high = (middle, high) if tried[middle] < entropy else (low, middle)
    best = min(tried, key=lambda temperature: abs(tried[temperature] - entropy))
    return Sharpened(name, best, entropy, entropy_start, tried[best])


def in_words(policy: str, start: str, found: dict) -> str:
    """One sentence about a control, from its entry in `summary.json`."""
    entropies = f"{found['entropy']:.3f} nats a token"
    if found["temperature"] is None:
        return (
            f"{policy} is no surer of its words than {start} (entropy {entropies} against "
            f"{found['entropy_start']:.3f}), so nothing it gains is sharpening, and there is no control."
        )
    return (
        f"{found['name']}: {start} sampled at temperature {found['temperature']:.3g}, where its entropy is "
        f"{found['entropy_found']:.3f}, as that of {policy} ({entropies}); sampled as {policy} was it is "
        f"{found['entropy_start']:.3f}."
    )
