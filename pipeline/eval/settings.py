"""The settings of the evaluation stage."""

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


@dataclass
class EvalArguments(ServerSettings):
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
    dataset_config: str | None = setting(None, "Configuration of a Hub data set.")
    dataset_split: str = setting("train", "Split of a Hub data set or folder.")
    prompt_template: str | None = setting(None, "Makes the prompt of other columns, as for the other stages.")
    as_messages: bool = setting(False, "Text prompts become a user's message, as for the other stages.")
    chat_template_path: str | None = setting(None, CHAT_TEMPLATE)
    chat_template_kwargs: dict | str | None = setting(
        None, f"{CHAT_TEMPLATE_KWARGS} None: as the candidates were trained."
    )
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
    max_completion_length: int = setting(256, "Longest completion in tokens.")
    temperature: float = setting(1.0, "Of the sampled answers; 1 is the policy's own distribution.")
    eval_batch_size: int = setting(50, "Prompts answered at once.")
    seed: int = setting(0, "Seed of the sampling, the bootstrap and the permutation tests.")
    dtype: str = setting("auto", "Precision of the base weights, as for the other stages.")
    load_in_4bit: bool = setting(False, "Load the bases in 4 bits (needs bitsandbytes).")
    use_cpu: bool = setting(False, "Stay on the CPU.")

    def __post_init__(self):
        self.rewards, self.judges = self.rewards or [], self.judges or []  # the parser gives None for none
        check_vllm_server(self)
        self.chat_template_kwargs = mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check(bool(self.candidates), "candidates", self.candidates, "at least one, such as sft=runs/tiny/sft")
        check(bool(self.dataset), "dataset", self.dataset, "the prompts, e.g. runs/tiny/data/prompts_heldout.jsonl")
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        self.dtype = settle_dtype(self.dtype)
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0; greedy answers come besides")
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0 up")
        for key in ("eval_samples", "max_completion_length", "eval_batch_size"):
            value = getattr(self, key)
            check((value is None and key == "eval_samples") or value >= 1, key, value, "a whole number from 1 up")
        count = self.best_of
        check(count is None or count >= 2, "best_of", count, "a whole number from 2 up, such as 16")
        check(count is None or bool(self.rewards), "best_of", count, "it wants rewards, which choose the best")

    def model_arguments(self) -> ModelArguments:
        return ModelArguments(
            dtype=self.dtype, load_in_4bit=self.load_in_4bit, chat_template_path=self.chat_template_path
        )
