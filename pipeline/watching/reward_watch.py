"""Rewards that work, but spoil a run: far slower than the sampling, or of a scale beside which nothing else counts.

Both are said once, with the figures and the usual remedy; the run goes on.
"""

from transformers import TrainerCallback

from pipeline.runs.folder import say

SLOW = 10.0  # times the seconds of generation: nine tenths of an update are spent waiting for the rewards
AT_LEAST = 1.0  # second an update; below it nobody waits
HUGE = 1000.0  # score units; PPO's own terms (kl_coef times some nats) are of the order of 1


def slow(metrics: dict[str, float]) -> str | None:
    """A sentence when the reward functions took `SLOW` times as long as sampling; from the log of one update."""
    scoring, generation = metrics.get("time/scoring", 0.0), metrics.get("time/generation", 0.0)
    if scoring < AT_LEAST or not 0 < SLOW * generation < scoring:
        return None
    return (
        f"the rewards take {scoring:.1f} s of an update, generation {generation:.1f} s ({scoring / generation:.0f} "
        "times): score in batches, or make max_completion_length or the number of rewards smaller"
    )


def huge(metrics: dict[str, float], kl_coef: float) -> str | None:
    """A sentence when the mean score of one reward, or of their weighted sum, is beyond `HUGE`."""
    scores = {name: value for name, value in metrics.items() if name == "score" or name.startswith("score/")}
    name = max(scores, key=lambda key: (abs(scores[key]), key), default=None)
    if name is None or abs(scores[name]) <= HUGE:
        return None
    return (
        f"{name} is {scores[name]:.3g} on average, beside which the price of a nat (kl_coef {kl_coef:g}) counts for "
        "nothing: give the reward normalize: running, a clip, or a smaller weight"
    )


class RewardWatch(TrainerCallback):
    """Looks at each log of the training until it has warned of both."""

    def __init__(self, kl_coef: float):
        self.kl_coef, self.warned = kl_coef, set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        for kind, words in (("slow", slow(logs or {})), ("huge", huge(logs or {}, self.kl_coef))):
            if words and kind not in self.warned:
                self.warned.add(kind)
                say(f"warning: {words}")
