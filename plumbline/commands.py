"""All commands, in the order of the help. Nothing heavy is imported here: it is read at every start."""

from typing import NamedTuple


class Command(NamedTuple):
    """What `plumbline <name>` runs, and the line about it."""

    runs: str  # <script>.py of recipes/; a module, as `python -m` runs it; or a function of this package, module:name
    says: str
    launched: bool = False  # whether several processes may run it (--nproc, --hardware)


GROUPS: dict[str, dict[str, Command]] = {
    "Begin": {
        "init": Command("plumbline.new_recipe:main", "write a recipe of your own, like one of those that come along"),
        "recipes": Command("plumbline.new_recipe:show", "list the recipes that come along"),
        "doctor": Command("plumbline.doctor:main", "this machine, what is missing on it, how long a recipe will take"),
        "completion": Command("plumbline.completion:main", "completion by the Tab key, for bash, zsh or tcsh"),
    },
    "Train": {
        "base": Command("base.py", "data and the small base model that a recipe makes on the spot"),
        "sft": Command("sft.py", "stage 1: supervised fine-tuning", launched=True),
        "reward": Command("reward.py", "stage 2: the reward model", launched=True),
        "ppo": Command("ppo.py", "stage 3: PPO against the rewards", launched=True),
        "a2c": Command("ppo.py", "the same trainer with a critic, one epoch, no clipping", launched=True),
        "reinforce": Command("ppo.py", "the same trainer without a critic", launched=True),
        "grpo": Command("grpo.py", "TRL's own GRPO on the same data and rewards", launched=True),
        "rloo": Command("rloo.py", "TRL's own RLOO on the same data and rewards", launched=True),
        "dpo": Command("dpo.py", "TRL's own DPO on the preference pairs", launched=True),
        "samples": Command("sample.py", "completions of the SFT model as offline data"),
        "ilql": Command("ilql.py", "Q-learning on these completions, nothing is sampled", launched=True),
    },
    "Try out": {
        "check": Command("rewards.check", "what a recipe's rewards would pay, before anything is trained"),
        "seeds": Command("seeds.py", "the three stages with several seeds, and a table of what came out"),
        "compare": Command("compare.py", "PPO against GRPO and RLOO, several seeds each"),
        "sweep": Command("sweep.py", "which settings are best (Optuna)"),
        "scale": Command("pipeline.scale", "memory, time and network of larger models on several cards, by formula"),
    },
    "See, judge, share": {
        "report": Command("pipeline.report", "one page about a run, or several over each other"),
        "eval": Command("eval.py", "base, SFT and PPO side by side with intervals and tests", launched=True),
        "judge": Command("judge.py", "people as judges: a local page with two completions, blind"),
        "chat": Command("pipeline.chat", "talk to base, SFT and PPO side by side in the terminal"),
        "card": Command("pipeline.card", "write the model card of a run again"),
        "merge": Command("merge.py", "adapter and base as one whole model"),
        "push": Command("push.py", "a result to the Hub, private, after a dry run"),
    },
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}


def usage() -> str:
    """What `plumbline --help` prints."""
    lines = ["usage: plumbline COMMAND [--config FILE.yaml] [--setting VALUE ...]", ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<12}{command.says}" for name, command in group.items()), ""]
    several = ", ".join(name for name, command in COMMANDS.items() if command.launched)
    return "\n".join(
        [
            *lines,
            "plumbline COMMAND --help says what a command takes; --debug shows the trace of an error.",
            "--nproc 2 runs a command in two processes on the CPU, --hardware gpus on several cards, --hardware FILE",
            f"as an accelerate file of yours says: {several}.",
        ]
    )
