"""The settings of the evaluation stage, and what it has in common with sampling."""

from dataclasses import dataclass

from pipeline.config import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_KWARGS,
    DTYPES,
    ModelArguments,
    ServerSettings,
    check,
    check_vllm_server,
    mapping,
    setting,
    settle_dtype,
)


@dataclass(kw_only=True)
class AnswerSettings(ServerSettings):
    """Which prompts are answered, how, and on what: of whatever lets models answer without training them."""

    dataset: str | None = setting(None, "Prompts with their columns: a file, a folder or a Hub name, as for PPO.")
    dataset_config: str | None = setting(None, "Configuration of a Hub data set.")
    dataset_split: str = setting("train", "Split of a Hub data set or folder.")
    chat_template_path: str | None = setting(None, CHAT_TEMPLATE)
    chat_template_kwargs: dict | str | None = setting(
        None, f"{CHAT_TEMPLATE_KWARGS} None: as who answers was trained."
    )
    max_completion_length: int = setting(256, "Longest completion in tokens.")
    temperature: float = setting(1.0, "Of sampled answers; 1 is the policy's own distribution.")
    seed: int = setting(0, "Seed of the sampling, and of intervals and tests.")
    dtype: str = setting("auto", "Precision of the base weights, as for the other stages.")
    load_in_4bit: bool = setting(False, "Load the bases in 4 bits (needs bitsandbytes).")
    use_cpu: bool = setting(False, "Stay on the CPU.")

    def __post_init__(self):
        check_vllm_server(self)
        self.chat_template_kwargs = mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        self.dtype = settle_dtype(self.dtype)
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0 up")
        length = self.max_completion_length
        check(length >= 1, "max_completion_length", length, "a whole number from 1 up")

    def model_arguments(self) -> ModelArguments:
        return ModelArguments(
            dtype=self.dtype, load_in_4bit=self.load_in_4bit, chat_template_path=self.chat_template_path
        )


@dataclass
class EvalArguments(AnswerSettings):
    """Who is evaluated, on which prompts, by what."""

    candidates: list[dict] = setting(
        [], "Models, adapters or stage folders by name: base=runs/tiny/base sft=runs/tiny/sft ppo=runs/tiny/ppo."
    )
    reference: str | None = setting(
        None, "The candidate that the others are compared with, and from which KL is measured; default: the first."
    )
    dataset: str | None = setting(
        None, "Prompts: a file, a folder or a Hub name as for PPO; or a CSV with a column mr of the E2E data."
    )
    prompt_template: str | None = setting(None, "Makes the prompt of other columns, as for the other stages.")
    as_messages: bool = setting(False, "Text prompts become a user's message, as for the other stages.")
    eval_samples: int | None = setting(None, "Use only the first prompts.")
    output_dir: str | None = setting(None, "Folder for the result. It must not hold anything yet.")
    outputs: str | None = setting(
        None,
        "Only write the greedy answers of the one candidate into this file, nothing is judged: a line each, or JSON "
        "lines with prompt and completion where it ends in .jsonl.",
    )
    rewards: list[dict] = setting(
        [], "Rewards that score the answers, written as for PPO; weights count for best_of alone."
    )
    referee: str | None = setting(None, "A world's own judgement of completions (e2e, dialogue, ...).")
    judges: list[dict] = setting(
        [],
        "Who says which of two answers wins: mymodule:function(prompts, completions_a, completions_b, **columns), or "
        "a language model, '{name: judge, url: http://localhost:8000/v1, model: name}'.",
    )
    best_of: int | None = setting(
        None,
        "Samples of the reference for each prompt, of which the weighted rewards choose: best-of-n up to this n as a "
        "baseline, e.g. 16; none: no baseline.",
    )
    sharpened: bool = setting(
        True,
        "Beside each trained candidate the reference sampled at a lower temperature, where its entropy is the "
        "candidate's: what sharpening alone gains.",
    )
    eval_batch_size: int = setting(50, "Prompts answered at once.")

    def __post_init__(self):
        self.rewards, self.judges = self.rewards or [], self.judges or []  # the parser gives None for none
        super().__post_init__()
        check(bool(self.candidates), "candidates", self.candidates, "at least one, such as sft=runs/tiny/sft")
        check(bool(self.dataset), "dataset", self.dataset, "the prompts, e.g. runs/tiny/data/prompts_heldout.jsonl")
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0; greedy answers come besides")
        first, size = self.eval_samples, self.eval_batch_size
        check(first is None or first >= 1, "eval_samples", first, "a whole number from 1 up")
        check(size >= 1, "eval_batch_size", size, "a whole number from 1 up")
        count = self.best_of
        check(count is None or count >= 2, "best_of", count, "a whole number from 2 up, such as 16")
        check(count is None or bool(self.rewards), "best_of", count, "it wants rewards, which choose the best")
