"""What the card says: its text, tables and the lines that load the result."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.exam import statistics
from pipeline.hub.card.curves import CURVES
from pipeline.hub.card.metadata import metadata
from pipeline.hub.card.run import Run
from pipeline.models.folders import resolve_stage
from pipeline.models.provenance import hub_model, license_of, shareable
from pipeline.report.numbers import is_number
from pipeline.safety.markdown import Markdown, environment, figure, quoted
from pipeline.watching.watch import read_warnings

SHOWN = 5  # samples
# What decides a run, in the order of the table. Settings that a stage does not have are left out.
SETTINGS = (
    "total_episodes num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "num_mini_batches num_iterations num_generations replay learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_length max_completion_length temperature kl_coef kl_estimator gamma lam epsilon "
    "cliprange_value vf_coef beta tau cql_coef polyak missing_eos_penalty baseline loss_type "
    "center_rewards_coefficient lora_r lora_alpha "
    "lora_dropout lora_target_modules adapter_averaging load_in_4bit load_in_8bit bf16 fp16 seed"
).split()
OF_OTHERS = {"ppo": {"beta", "loss_type", "baseline", "num_generations"}, "reward": {"loss_type"}}
MARK = re.compile(r"\n<!-- written by plumbline, ([0-9a-f]{16}) -->\n*$")


def render(
    run: Run,
    repo_id: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
    data_license: str | None = None,
    curves: Sequence[str] = (),
    merged: bool = False,
) -> str:
    """The whole README.md: metadata between two lines of `---`, the page, and a mark by which we know it again."""
    if repo_id is None and run.config.get("push_to_hub") and not merged:
        repo_id = run.config.get("hub_model_id")
    if repo_id is not None and hub_model(repo_id) is None:
        raise UserError(f"repo_id {repo_id} cannot be a name on the Hub: give one such as me/field-notes-ppo")
    name = slug(repo_id.split("/")[-1] if repo_id else _local_name(run, merged))
    data = metadata(run, name, license, merged)
    config, dataset = run.config, run.config.get("dataset")
    templates = environment()
    templates.filters["with_interval"] = show_interval
    page = templates.get_template("card.md.j2").render(
        run=run,
        summary=run.summary,
        name=Markdown(name),
        method=Markdown(run.method.upper()),
        merged=merged,
        hub_base=run.hub_base,
        base=shareable(run.base) or "not known",
        base_license=base_license or license_of(_base_folder(run)),
        dataset=shareable(dataset) or "not known",
        eval_dataset=shareable(config.get("eval_dataset")),
        data_license=data_license or license_of(dataset, "dataset"),
        license=license,
        started_from=shareable(run.summary.get("started_from") or config.get("adapter_path")),
        rewards=[_reward(spec) for spec in config.get("rewards") or []],
        referee=config.get("referee"),
        settings=settings(run),
        scores=scores(run),
        accuracy=_accuracy(run.summary),
        curves=[Markdown(title) for title in curves],
        curves_file=Markdown(CURVES),
        warnings=read_warnings(run.folder),
        samples=[_sample(row) for row in run.samples[:SHOWN]],
        loading=loading(run, repo_id, merged),
        needs_base=repo_id is not None and run.adapter and not merged and run.hub_base is None,
        has_critic=(run.folder / "critic").is_dir() and not merged,
        has_values=(run.folder / "values").is_dir() and not merged,
        time=duration(run.summary.get("seconds")),
        hardware=run.summary.get("hardware"),
        versions=[(key, value) for key, value in (config.get("versions") or {}).items()],
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{page.strip()}\n"
    return f"{text}\n<!-- written by plumbline, {digest(text)} -->\n"


def scores(run: Run) -> list[dict[str, Any]]:
    """Rows of the table before and after: means over the held-out prompts, with intervals where each prompt's score
    was kept; the referee and the rewards first."""
    before, after = run.summary.get("before") or {}, run.summary.get("after") or {}
    greedy = run.summary.get("greedy") or {}
    weights = {
        str(spec.get("name")): spec.get("weight", 1.0) for spec in map(_reward, run.config.get("rewards") or [])
    }
    referee = {name for exam in run.exams for name in exam.get("referee") or {}}
    rows = []
    for name in after:
        pairs = [
            (old, new)
            for row in run.samples
            if is_number(old := (row.get("scores_before") or {}).get(name))
            and is_number(new := (row.get("scores_after") or {}).get(name))
        ]
        rows.append(
            {
                "name": name,
                "weight": weights.get(name),
                "referee": name in referee,
                "before": _with_interval(before.get(name), [old for old, _ in pairs]),
                "after": _with_interval(after[name], [new for _, new in pairs]),
                "change": _with_interval(_less(after[name], before.get(name)), [new - old for old, new in pairs]),
                "greedy": [(greedy.get(side) or {}).get(name) for side in ("before", "after")],
            }
        )
    return rows


def settings(run: Run) -> list[tuple[str, Any]]:
    """The settings that decide the run, as (name, value), those without effect left out."""
    config = run.config
    unused = set(OF_OTHERS.get("ppo" if run.method in ("ppo", "a2c", "reinforce") else run.method, ()))
    if run.method == "reinforce":
        unused = {"beta", "loss_type", "cliprange_value", "vf_coef", "lam"}
    unused.add("num_train_epochs" if (config.get("max_steps") or -1) > 0 else "max_steps")
    if config.get("total_episodes"):
        unused |= {"max_steps", "num_train_epochs"}
    if not run.adapter:
        unused |= {key for key in SETTINGS if key.startswith("lora_")}
    return [
        (key, _plain(shareable(config[key])))
        for key in SETTINGS
        if key not in unused and config.get(key) is not None and config[key] is not False
    ]


def loading(run: Run, repo_id: str | None = None, merged: bool = False) -> str:
    """Three lines of Python that load the result with nothing but peft and transformers.

    Without `repo_id` they are for the machine at hand, where the adapter finds a base that is a local folder.
    """
    place = quoted(repo_id or _local_place(run, merged))
    dtype = run.summary.get("dtype") or run.config.get("dtype")
    options = f", dtype={quoted(dtype if dtype in ('float32', 'bfloat16', 'float16') else 'auto')}"
    head = "SequenceClassification" if run.kind == "reward" else "CausalLM"
    if run.kind == "reward" and run.adapter and not merged:
        options = f", num_labels=1, pad_token_id=tokenizer.pad_token_id{options}"
    lines = [f"tokenizer = transformers.AutoTokenizer.from_pretrained({place})"]
    if merged or not run.adapter:
        options = "" if merged else options  # as it was saved
        lines += [f"model = transformers.AutoModelFor{head}.from_pretrained({place}{options})"]
    elif repo_id is None or run.hub_base is not None:
        lines += [f"model = peft.AutoPeftModelFor{head}.from_pretrained({place}{options})"]
    else:
        lines += [
            f"base = transformers.AutoModelFor{head}.from_pretrained({quoted('path/to/the/base')}{options})",
            f"model = peft.PeftModel.from_pretrained(base, {place})",
        ]
    return "\n".join(["import transformers" if merged or not run.adapter else "import peft, transformers", *lines])


def slug(name: str) -> str:
    """Letters, digits and single hyphens: means nothing special in Markdown, YAML or Python."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "model"


def duration(seconds: Any) -> Markdown:
    if not is_number(seconds):
        return Markdown("not recorded")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return Markdown(f"{hours} h {minutes} min")
    return Markdown(f"{minutes} min {rest} s" if minutes else f"{rest} s")


def _local_place(run: Run, merged: bool) -> str:
    """The folder as the recipe has it; nothing of it where that is a path of one machine."""
    path = str(run.config.get("output_dir") or run.folder)
    return "path/to/this/folder" if merged or shareable(path) != path else path


def _local_name(run: Run, merged: bool) -> str:
    """`tiny-ppo` for runs/tiny/ppo; the folder's own name where the path says something of the machine."""
    path = Path(str(run.config.get("output_dir") or run.folder))
    parts = [path.name] if path.is_absolute() or ".." in path.parts else path.parts[-2:]
    return "-".join([*parts, *(["merged"] if merged else [])])


def _base_folder(run: Run) -> str | None:
    try:
        return resolve_stage(str(run.folder)).base if run.adapter else run.base
    except UserError:  # the base is gone
        return run.base


def _reward(spec: Any) -> dict[str, Any]:
    """A reward's line of the settings, as a mapping that may be shown to others."""
    return {"name": "no name"} | shareable(spec) if isinstance(spec, dict) else {"name": shareable(str(spec))}


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = "\n\n".join(
            f"{turn.get('role')}: {turn.get('content')}" if isinstance(turn, dict) else str(turn) for turn in prompt
        )
    sides = {
        side: {"text": row.get(side) or "", "scores": row.get(f"scores_{side}") or {}} for side in ("before", "after")
    }
    return {"prompt": (prompt or "").rstrip("\n"), **sides}


def _accuracy(summary: dict[str, Any]) -> tuple[float, float] | None:
    """The 95% interval of a reward model's accuracy, from its standard error (normal approximation)."""
    accuracy, error = summary.get("accuracy"), summary.get("accuracy_se")
    if not (is_number(accuracy) and is_number(error)):
        return None
    return max(0.0, accuracy - 1.96 * error), min(1.0, accuracy + 1.96 * error)


def _with_interval(mean: Any, values: Sequence[float]) -> dict[str, Any]:
    return {"mean": mean, "interval": statistics.interval(statistics.mean(values))}


def show_interval(cell: dict[str, Any]) -> Markdown:
    """`0.52 [0.41, 0.63]`, or the mean alone."""
    ends = cell["interval"]
    around = f" [{figure(ends[0])}, {figure(ends[1])}]" if ends else ""
    return Markdown(f"{figure(cell['mean'])}{around}")


def _less(after: Any, before: Any) -> float | None:
    return after - before if is_number(after) and is_number(before) else None


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
