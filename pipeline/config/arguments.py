"""The settings that every stage has: which model, which data."""

from dataclasses import dataclass

from pipeline.config.checks import ATTENTION, CHAT_TEMPLATE, CHAT_TEMPLATE_KWARGS, DTYPES, check, mapping, setting
from pipeline.config.machine import settle_dtype


@dataclass
class ModelArguments:
    """Which base model, in which precision, and which LoRA adapter goes on it."""

    model_name_or_path: str | None = setting(
        None, "Base model: a folder, a Hub name, or the folder of an earlier stage (then its base and its adapter)."
    )
    adapter_path: str | None = setting(None, "LoRA adapter to start from, e.g. the folder of the SFT stage.")
    model_revision: str | None = setting(None, "Branch, tag or commit when the base comes from the Hub.")
    dtype: str = setting(
        "auto",
        "Precision of the base weights: float32, bfloat16, float16; auto: bfloat16 under LoRA on a GPU that has it, "
        "otherwise float32; fast: bfloat16 also on a processor that has units for it.",
    )
    attn_implementation: str | None = setting(None, "eager, sdpa, flash_attention_2 or flash_attention_3.")
    use_peft: bool = setting(True, "Train a LoRA adapter; false trains all weights.")
    lora_r: int = setting(16, "Rank of the LoRA matrices.")
    lora_alpha: int = setting(32, "LoRA scale: the update is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = setting(0.0, "Dropout on the LoRA input.")
    lora_target_modules: list[str] = setting(
        ["all-linear"], "Modules that get LoRA matrices: all-linear, or names such as q_proj v_proj."
    )
    load_in_4bit: bool = setting(False, "Load the base in 4 bits (nf4; needs bitsandbytes, and use_peft).")
    load_in_8bit: bool = setting(False, "Load the base in 8 bits (needs bitsandbytes, and use_peft).")
    use_bnb_nested_quant: bool = setting(
        True, "Quantise the 4-bit scales as well, as QLoRA does (saves 0.37 bit a weight)."
    )
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model. Leave it off.")
    chat_template_path: str | None = setting(None, CHAT_TEMPLATE)

    def __post_init__(self):
        if isinstance(self.lora_target_modules, str):
            self.lora_target_modules = [self.lora_target_modules]
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        self.dtype = settle_dtype(self.dtype)
        check(
            self.attn_implementation in (None, *ATTENTION),
            "attn_implementation",
            self.attn_implementation,
            f"one of {', '.join(ATTENTION)}",
        )
        check(self.lora_r >= 1, "lora_r", self.lora_r, "a whole number from 1 up")
        check(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "a number above 0")
        check(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a number from 0 up to, not including, 1")
        check(bool(self.lora_target_modules), "lora_target_modules", self.lora_target_modules, "at least one name")
        check(
            not (self.load_in_4bit and self.load_in_8bit), "load_in_8bit", True, "load_in_4bit is on, only one can be"
        )
        if self.load_in_4bit or self.load_in_8bit:
            key = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            check(self.use_peft, "use_peft", False, f"{key} is on, and quantised weights cannot be trained themselves")


@dataclass
class DataArguments:
    """Where the rows come from and which are held out."""

    dataset: str | None = setting(
        None,
        "Training data: a file (.jsonl .json .csv .tsv .parquet, also .gz), a local folder, or a Hub name; or two "
        "files of parallel text, such as train.{en,fi}; or a task of reasoning_gym, such as reasoning_gym:chain_sum.",
    )
    dataset_options: dict | str | None = setting(
        None, "Settings of a task of reasoning_gym, such as {size: 2000, seed: 1, max_terms: 3}."
    )
    dataset_config: str | None = setting(None, "Configuration of a Hub data set.")
    dataset_split: str = setting("train", "Split of a Hub data set or folder to train on.")
    eval_dataset: str | None = setting(None, "Held-out data, in the same forms; without it see eval_fraction.")
    eval_split: str | None = setting(None, "Split of the data set to hold out, e.g. test.")
    eval_fraction: float = setting(
        0.0,
        "Part of the training prompts to hold out when no held-out data is named; 0: none (reward model: a tenth).",
    )
    max_rows: int | None = setting(None, "Use only the first rows of each data set, for a quick look.")
    prompt_template: str | None = setting(None, 'Makes the prompt of other columns, such as "Translate: {source}".')
    completion_template: str | None = setting(None, 'Makes the completion of other columns, such as "{target}".')
    chosen_template: str | None = setting(None, 'Makes the better of a pair of other columns, such as "{better}".')
    rejected_template: str | None = setting(None, "Makes the worse of a pair in the same way.")
    as_messages: bool = setting(
        False,
        "Text becomes messages of user and assistant (HH: turn by turn), for the model's chat template.",
    )
    chat_template_kwargs: dict | str | None = setting(None, CHAT_TEMPLATE_KWARGS)

    def __post_init__(self):
        self.chat_template_kwargs = mapping(self.chat_template_kwargs, "chat_template_kwargs")
        self.dataset_options = mapping(self.dataset_options, "dataset_options")
        check(
            0 <= self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a number from 0 up to, not including, 1"
        )
        for key in ("prompt_template", "completion_template", "chosen_template", "rejected_template"):
            check(isinstance(getattr(self, key), str | None), key, getattr(self, key), "a text in quotes")
        check(self.max_rows is None or self.max_rows >= 1, "max_rows", self.max_rows, "a whole number from 1 up")
        named = self.eval_dataset or self.eval_split
        check(
            not (named and self.eval_fraction),
            "eval_fraction",
            self.eval_fraction,
            f"held-out data is already named ({named}); leave one of the two out",
        )
