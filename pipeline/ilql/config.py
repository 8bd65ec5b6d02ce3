"""The settings of the ILQL stage: those of `transformers.TrainingArguments` with our defaults, and its own."""

from dataclasses import dataclass

from transformers import TrainingArguments

from pipeline.config import StageDefaults, check, setting


@dataclass
class ILQLStage(StageDefaults, TrainingArguments):
    """Settings of implicit language Q-learning (Snell et al. 2022, arXiv 2206.11871)."""

    learning_rate: float = setting(5e-4, "Learning rate of AdamW, of the values' adapter and heads.")
    bf16: bool | None = setting(None, "Mixed precision in bfloat16; none: on a GPU that has it.")
    ddp_find_unused_parameters: bool | None = setting(False, "Every weight that learns is used in every step.")
    beta: float = setting(4.0, "In decoding, logits of the policy + beta (Q - V); in 1 / score units.")
    tau: float = setting(
        0.7, "Expectile that V takes of Q over the data's tokens: 0.5 is the mean, near 1 nearly the best."
    )
    gamma: float = setting(0.99, "Discount of a token.")
    lam: float = setting(
        0.0, "Part of what the completion did earn in the target of Q; 0 is the paper's one-step target."
    )
    values_path: str | None = setting(
        None, "LoRA adapter that the values start from, such as runs/tiny/reward; none: the policy's."
    )
    cql_coef: float = setting(0.01, "Weight of the conservative term, which holds tokens down that the data lacks.")
    polyak: float = setting(0.005, "Part of the way that the target goes to the value network in each step.")
    missing_eos_penalty: float | None = setting(
        None, "Score units subtracted from a completion that did not end by itself (rows with finished: false)."
    )
    train_sampling_strategy: str = setting(
        "group_by_length", "Order of the rows: group_by_length puts rows of like length together; or random."
    )
    max_length: int = setting(1024, "Rows with more tokens are left out.")
    max_completion_length: int = setting(256, "Longest answer to a held-out prompt, tokens.")
    temperature: float = setting(1.0, "Of the sampled answers to held-out prompts.")

    def __post_init__(self):
        check(0 <= self.beta < float("inf"), "beta", self.beta, "a number from 0 up")
        check(0 < self.tau < 1, "tau", self.tau, "a number between 0 and 1")
        check(0 <= self.gamma <= 1, "gamma", self.gamma, "a number from 0 to 1")
        check(0 <= self.lam <= 1, "lam", self.lam, "a number from 0 to 1")
        check(0 <= self.cql_coef < float("inf"), "cql_coef", self.cql_coef, "a number from 0 up")
        check(0 < self.polyak <= 1, "polyak", self.polyak, "a number above 0, up to 1")
        penalty = self.missing_eos_penalty
        check(penalty is None or penalty >= 0, "missing_eos_penalty", penalty, "a number from 0 up")
        check(self.max_length >= 2, "max_length", self.max_length, "a whole number from 2 up")
        check(
            self.max_completion_length >= 1,
            "max_completion_length",
            self.max_completion_length,
            "a whole number from 1 up",
        )
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0; greedy answers come besides")
        strategies = ("group_by_length", "random", "sequential")
        strategy = str(getattr(self.train_sampling_strategy, "value", self.train_sampling_strategy))
        check(strategy in strategies, "train_sampling_strategy", strategy, f"one of {', '.join(strategies)}")
        super().__post_init__()
        self.remove_unused_columns = False  # the rows are ours, and so is what joins them
