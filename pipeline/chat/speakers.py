"""A run folder, loaded to be talked to: one base in memory, its adapters taking turns, and the rewards of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from trl import is_conversational

from pipeline import cli, worlds
from pipeline.config import DataArguments, ModelArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.exam import evaluation
from pipeline.ilql.decoding import Shift, load_shift, shifted
from pipeline.ilql.network import TARGET, has_shift, values_folder
from pipeline.models import loading as models
from pipeline.models import precision
from pipeline.models.adapter_files import check_task, does_not_fit
from pipeline.models.adapters import POLICY, REFERENCE, use_adapter
from pipeline.models.ends import stop_token_ids
from pipeline.models.folders import Stage, check_same_base, name_of_start, resolve_model
from pipeline.models.prompts import context_of, tokenize_prompts, with_kwargs
from pipeline.runs.folder import CONFIG, SUMMARY
from pipeline.safety import shapes
from pipeline.safety.console import say
from pipeline.safety.reading import checked, read_json, read_yaml
from pipeline.safety.weights import ADAPTER_CONFIG, check_safetensors, read_adapter_config
from rewards import RewardError, WeightedReward, build_rewards, log_name_of, raw
from rewards.asking import guarded
from rewards.foreign import stays_on
from rewards.rendering import TEMPLATE_COLUMNS

MAX_TOKENS = 256  # of an answer, where the run names no limit


class Speaker(NamedTuple):
    """Who answers, and the adapter with which; None: the raw base. `shift`: what a run of ILQL adds to its logits."""

    name: str
    adapter: str | None
    shift: Shift | None = None


class Answer(NamedTuple):
    """One speaker's completion, and what each reward (and the referee) says of it; None: nothing to say."""

    text: str
    tokens: int
    finished: bool  # ended by itself rather than cut at the limit
    scores: dict[str, float | None]


@dataclass
class Run:
    """What a run folder holds, loaded to be talked to. `answer` may ask the speakers for `max_tokens` at most."""

    folder: Path
    base: str
    model: Any
    tokenizer: Any
    speakers: list[Speaker]
    rewards: list[WeightedReward]
    referee: Any
    rows: Sequence[dict]  # examples: held-out rows, or those of training when none are held out
    no_rows: str | None  # why there are none
    conversational: bool
    chat_template_kwargs: dict | None
    max_tokens: int
    temperature: float
    seed: int
    eos_token_ids: list[int]


def load_run(path: str, own_code: bool = False) -> Run:
    """The base, the adapters, the rewards and the held-out prompts of a run folder, or of a checkpoint in one.

    Args:
        own_code: import the rewards `module:function` that the run's config.yaml names, and run code that comes with
            the base if it says so. Without it a run from somebody else cannot bring code.

    Raises:
        UserError, RewardError: no finished run of SFT or of an algorithm that trains on rewards lies there.
    """
    folder = Path(path)
    settings, model_args, data_args = settings_of_run(folder, own_code)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder} holds no LoRA adapter: the run has not finished, or it trained all weights")
    if read_adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise UserError(f"{folder} is a reward model, which scores but does not answer: give the folder of SFT or PPO")
    check_safetensors(folder, "adapter")
    start = resolve_model(model_args)
    for adapter in filter(None, (str(folder), start.adapter)):
        if setting := stays_on(read_json(Path(adapter, ADAPTER_CONFIG))):
            raise UserError(
                f"{adapter} has {setting}, which changes the base, so that the base cannot speak beside it: compare "
                "them by recipes/eval.py, which gives each its own base"
            )

    # 1. One base; the policy's adapter and the one that it started from
    check_same_base(start.base, str(folder))
    tokenizer = models.load_tokenizer(Stage(start.base, str(folder)), model_args)
    model = models.load_base(model_args, base=start.base, tokenizer=tokenizer)
    model = models.load_adapter(model, str(folder), name=POLICY)
    shift = load_shift(model, values_folder(folder), TARGET) if has_shift(folder) else None
    speakers = [Speaker("base", None), Speaker(_name_of(folder, settings), POLICY, shift)]
    on_rewards = "rewards" in settings
    if start.adapter is not None:
        check_task(start.adapter)
        try:
            model.load_adapter(start.adapter, adapter_name=REFERENCE)
        except Exception as error:  # half a file fails in many ways
            raise does_not_fit(start.adapter, model, error) from None
        name = name_of_start(start.adapter)
        speakers.insert(1, Speaker("start" if name == speakers[-1].name else name, REFERENCE))
    if precision.quantization(model_args) is None:
        model.to(PartialState(cpu=bool(settings.get("use_cpu"))).device)

    # 2. Rewards, referee, and prompts to try
    rows, no_rows = _examples(data_args, settings.get("seed") or 0, "prompts" if on_rewards else "sft")
    return Run(
        folder=folder,
        base=start.base,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        speakers=speakers,
        rewards=build_rewards(settings.get("rewards") or []),
        referee=worlds.referee(settings["referee"]) if settings.get("referee") else None,
        rows=rows,
        no_rows=no_rows,
        conversational=is_conversational(rows[0]) if rows else tokenizer.chat_template is not None,
        chat_template_kwargs=data_args.chat_template_kwargs,
        max_tokens=settings.get("max_completion_length") or MAX_TOKENS,
        temperature=settings.get("temperature", 1.0) if on_rewards else 1.0,
        seed=settings.get("seed", 0),
        eos_token_ids=stop_token_ids(model, tokenizer),
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run folder's config.yaml; a checkpoint's are in the folder above it."""
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / CONFIG).exists():
            found = checked(read_yaml(place / CONFIG), shapes.CONFIG, str(place / CONFIG))
            if not found:
                raise UserError(f"{place / CONFIG} does not hold settings")
            return found
    raise UserError(f"{folder} is no run folder (there is no {CONFIG} in it): give that of a PPO or SFT run")


def settings_of_run(folder: Path, own_code: bool) -> tuple[dict[str, Any], ModelArguments, DataArguments]:
    """The settings of a run, and what they say of model and data; without `own_code` nothing that would run code."""
    settings, where = read_settings(folder), str(folder / CONFIG)
    if not own_code:
        rewards = [spec if isinstance(spec, dict) else {"name": spec} for spec in settings.get("rewards") or []]
        own = [str(spec.get("name")) for spec in rewards if _names_code(spec)]
        if own:
            say(f"{where} names code as a reward, which is left out ({', '.join(own)}): --own_code takes it.")
        if "rewards" in settings:
            settings["rewards"] = [spec for spec in rewards if not _names_code(spec)]
        settings["trust_remote_code"] = False
    settings = settings | {"chat_template_path": None}  # the template lies with the run's tokenizer
    return settings, cli.pick(ModelArguments, settings, where), cli.pick(DataArguments, settings, where)


def _names_code(spec: Any) -> bool:
    """Whether a reward, or one of those in a mixture, a gate or a product, is `module:function`."""
    if not isinstance(spec, dict):
        return ":" in str(spec)
    inner = spec.get("rewards") or []
    inner = [*(inner if isinstance(inner, list) else [inner]), *([spec["condition"]] if spec.get("condition") else [])]
    return ":" in str(spec.get("name")) or any(map(_names_code, inner))


def _name_of(folder: Path, settings: dict[str, Any]) -> str:
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    return str(settings.get("algorithm") or summary.get("algorithm") or summary.get("stage") or folder.name).upper()


def _examples(args: DataArguments, seed: int, kind: str) -> tuple[list[dict], str | None]:
    try:
        train, held_out = data.load(args, kind, seed)
    except UserError as error:
        return [], str(error)
    rows = (held_out or train).to_list()
    if kind == "sft" and "prompt" not in rows[0]:
        if "messages" not in rows[0]:
            return [], "the data of this run has no prompts, only texts"
        rows = [row | {"prompt": row["messages"][:-1]} for row in rows if len(row["messages"]) > 1]
    return rows, None if rows else "the data of this run has no prompts"


def answer(run: Run, prompts: list, row: dict, temperature: float, seed: int) -> tuple[list[Answer], list[str]]:
    """What each speaker says to its prompt, with the scores; and why a reward has none.

    Args:
        prompts: one a speaker, text or messages.
        row: the columns for the rewards; empty when the user typed the prompt.

    Raises:
        UserError: a prompt that leaves no room in the model's context.
    """
    told = {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name) is not None}  # to the template
    [told] = with_kwargs([told], run.chat_template_kwargs)
    asked = [{"prompt": prompt, **told} for prompt in prompts]
    context = context_of(run.model)
    longest = max(map(len, tokenize_prompts(run.tokenizer, asked)))
    limit = min(run.max_tokens, context - longest) if context else run.max_tokens
    if limit < 1:
        shorter = "/new starts a new conversation" if run.conversational else "take a shorter one"
        raise UserError(
            f"the prompt has {longest} tokens and leaves no room in the model's context of {context}: {shorter}"
        )
    ids = []
    for speaker, prompt in zip(run.speakers, asked, strict=True):
        with use_adapter(run.model, speaker.adapter), shifted(run.model, speaker.shift):
            ids += evaluation.complete(
                run.model, run.tokenizer, [prompt], limit, run.eos_token_ids, temperature, seed=seed
            )
    texts = evaluation.texts_of(run.tokenizer, asked, ids, run.eos_token_ids)
    scores, reasons = _score(run, prompts, texts, ids, row, told)
    return [
        Answer(text, len(each), each[-1] in run.eos_token_ids, {name: s[i] for name, s in scores.items()})
        for i, (text, each) in enumerate(zip(texts, ids, strict=True))
    ], reasons


def _score(run: Run, prompts: list, texts: list[str], ids: list[list[int]], row: dict, told: dict | None = None):
    """name -> scores of all answers, and the reasons of those rewards that have none.

    Args: row: its columns; empty for a prompt that the user typed. told: what the chat template was given.
    """
    scores: dict[str, list[float | None]] = {}
    reasons: list[str] = []
    known = {key: row[key] for key in row if key != "messages"} | (told or {})
    columns = evaluation.question_about([known | {"prompt": prompt} for prompt in prompts], texts)
    prompts, completions = columns.pop("prompts"), columns.pop("completions")
    columns["completion_ids"] = ids
    for reward, _ in run.rewards:
        name, function = log_name_of(reward), raw(reward)
        try:
            scores[name] = guarded(function, name)(prompts, completions, **columns)
        except RewardError as error:
            scores[name] = [None] * len(texts)
            reasons.append(str(error))
    if len(run.rewards) > 1:
        weights = {log_name_of(reward): weight for reward, weight in run.rewards}
        sums = [[weights[name] * s[i] for name, s in scores.items() if s[i] is not None] for i in range(len(texts))]
        scores["score"] = [sum(each) if len(each) == len(weights) else None for each in sums]
    if run.referee is not None and row:
        verdicts = [run.referee(text, row) for text in texts]
        scores |= {name: [verdict[name] for verdict in verdicts] for name in verdicts[0]}
    return scores, reasons
