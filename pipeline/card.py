"""The model card of a run: README.md and curves.png, written from what the run left in its folder.

`python -m pipeline.card --run runs/tiny/ppo [--repo_id me/name] [--license apache-2.0] [--data_license cc-by-sa-4.0]`
writes it again, with the name under which it will be shared.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline import cli, folders, shapes, statistics
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.folders import ADAPTER_CONFIG, resolve_stage
from pipeline.markdown import Markdown, environment, figure, quoted, visible
from pipeline.provenance import hub_data, hub_model, license_fields, license_of, told
from pipeline.reading import checked, read_json, read_lines, read_yaml
from pipeline.report import SAMPLES
from pipeline.report.numbers import is_number
from pipeline.run_folder import CONFIG, METRICS, SUMMARY, read_heldout, read_metrics, say
from pipeline.watch import read_warnings

CARD, CURVES = "README.md", "curves.png"
SHOWN = 5  # samples
EMPTY_FORM = "# Model Card for Model ID\n\n<!-- Provide a quick summary"
METHODS = ("ppo", "a2c", "reinforce", "grpo", "rloo", "ilql")
# What decides a run, in the order of the table. Settings that a stage does not have are left out.
SETTINGS = (
    "total_episodes num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "num_mini_batches num_iterations num_generations replay learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_length max_completion_length temperature kl_coef kl_estimator gamma lam epsilon "
    "cliprange_value vf_coef beta tau cql_coef polyak missing_eos_penalty baseline loss_type "
    "center_rewards_coefficient lora_r lora_alpha "
    "lora_dropout lora_target_modules load_in_4bit load_in_8bit bf16 fp16 seed"
).split()
OF_OTHERS = {"ppo": {"beta", "loss_type", "baseline", "num_generations"}, "reward": {"loss_type"}}
# Each panel shows the first of these metrics that the run has.
PANELS = (
    ("score", "reward"),
    ("kl",),
    ("loss",),
    ("accuracy", "mean_token_accuracy"),
    ("margin",),
    ("entropy",),
    ("length/mean", "completions/mean_length"),
    ("loss/value",),
    ("explained_variance",),
)
_MARK = re.compile(r"\n<!-- written by plumbline, ([0-9a-f]{16}) -->\n*$")


class Run(NamedTuple):
    """What a stage left in its folder."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    exams: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def kind(self) -> str:
        """sft, reward, or policy (trained by reinforcement learning)."""
        stage = self.summary.get("stage")
        return stage if stage in ("sft", "reward") else "policy"

    @property
    def method(self) -> str:
        found = self.summary.get("algorithm")
        return self.kind if self.kind != "policy" else found if found in METHODS else "ppo"

    @property
    def adapter(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def base(self) -> str | None:
        """The base's name as the run has it: a folder, a Hub name, or nothing known."""
        named = self.adapter and folders.read_json(self.folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        return named or self.summary.get("base") or self.config.get("model_name_or_path")

    @property
    def hub_base(self) -> str | None:
        return hub_model(self.base, self.summary.get("base_fingerprint"))


@dataclass
class CardArguments:
    """What the run itself does not know of its card."""

    run: str | None = setting(None, "Folder of the run.")
    repo_id: str | None = setting(None, "Name on the Hub under which it will be shared, e.g. me/field-notes-ppo.")
    license: str | None = setting(None, "License of the result, e.g. apache-2.0.")
    base_license: str | None = setting(None, "License of the base; by default from the base's README.md.")
    data_license: str | None = setting(None, "License of the data; by default from the README.md beside it.")
    force: bool = setting(False, "Also replace a README.md that was edited by hand.")


def write_card(
    run: str | Path,
    into: str | Path | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
    data_license: str | None = None,
    force: bool = False,
) -> Path:
    """Writes README.md, and curves.png beside it, about the run in folder `run`; returns the README's path.

    Args:
        into: folder to write into, by default `run`; another one holds the run's merged model.
        repo_id: the name on the Hub, for the lines that load it. license, base_license, data_license: see
            `CardArguments`; `license` is kept from an older card when it is not given.
        force: also replace a README.md that somebody has edited or that is not ours. Otherwise it is left as it is.

    Raises:
        UserError: `run` is not the folder of a finished stage.
    """
    found = read_run(run)
    folder = Path(into or run)
    path = folder / CARD
    old = path.read_text("utf-8") if path.is_file() else None
    if old is not None and not force and not is_ours(old):
        say(f"{path} was edited by hand, or is not of this run: it stays as it is.")
        return path
    if license is None and old is not None and _MARK.search(old):
        before = ModelCard(old).data
        license = before.get("license_name") or before.get("license")
    merged = into is not None and Path(into).resolve() != Path(run).resolve()
    drawn = draw_curves(found, folder / CURVES)
    text = render(found, repo_id, license, base_license, data_license, drawn, merged)
    path.write_bytes(text.encode("utf-8", "replace"))
    return path


def is_ours(text: str) -> bool:
    """Whether a README.md is as `write_card` left it, or PEFT's empty form, which every saved adapter gets."""
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark[1] or EMPTY_FORM in text


def read_run(folder: str | Path) -> Run:
    """Raises `UserError` unless `folder` is that of a finished stage."""
    folder = Path(folder)
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder} has no {SUMMARY}: give the folder of a stage that has finished")
    config = (
        checked(read_yaml(folder / CONFIG), shapes.CONFIG, str(folder / CONFIG)) if (folder / CONFIG).is_file() else {}
    )
    return Run(
        folder=folder,
        summary=read_json(folder / SUMMARY, shapes.SUMMARY),
        config=config,
        metrics=read_metrics(folder) if (folder / METRICS).is_file() else [],
        exams=read_heldout(folder),
        samples=read_lines(folder / SAMPLES, shapes.SAMPLE, cut=True) if (folder / SAMPLES).is_file() else [],
    )


# --- what the card says ---------------------------------------------------------------------------------------------


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
        base=told(run.base) or "not known",
        base_license=base_license or license_of(_base_folder(run)),
        dataset=told(dataset) or "not known",
        eval_dataset=told(config.get("eval_dataset")),
        data_license=data_license or license_of(dataset, "dataset"),
        license=license,
        started_from=told(run.summary.get("started_from") or config.get("adapter_path")),
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
    return f"{text}\n<!-- written by plumbline, {_digest(text)} -->\n"


def metadata(run: Run, name: str, license: str | None = None, merged: bool = False) -> ModelCardData:
    """The card's metadata by huggingface_hub's own classes. A base or data set that is not on the Hub is left out:
    the Hub would refuse the card."""
    adapter = run.adapter and not merged
    base, dataset = run.hub_base, hub_data(run.config.get("dataset"))
    tags = ["plumbline", "trl", "rlhf", "transformers", *([] if run.method == "reward" else [run.method])]
    tags += ["reward-model"] if run.kind == "reward" else []
    tags += ["lora"] if adapter else []
    tags += [f"base_model:{'adapter' if adapter else 'finetune'}:{base}"] if base else []
    return ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if run.kind == "reward" else "text-generation",
        tags=sorted(tags),
        model_name=name,
        eval_results=results(run, dataset) or None,
        **license_fields(license),
    )


def results(run: Run, dataset: str | None) -> list[EvalResult]:
    """The figures of the run on held-out rows, as `model-index` has them. Nothing else: no figure, no entry."""
    summary = run.summary
    task = "text-classification" if run.kind == "reward" else "text-generation"
    if run.kind == "policy":
        sides = (("sampled", summary.get("after")), ("greedy", (summary.get("greedy") or {}).get("after")))
        found = [(name, f"{name}, {how}", value) for how, side in sides for name, value in (side or {}).items()]
        found.append(("kl", "KL to the start of the policy, nats a completion", summary.get("kl")))
    elif run.kind == "reward":
        names = ("accuracy", "log_loss", "margin", "calibration_error")
        found = [(name, f"{name} on held-out pairs", summary.get(name)) for name in names]
    else:
        loss = (summary.get("heldout_loss") or {}).get("after")
        found = [("loss", "held-out loss, nats a token", loss)]
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset or "held-out",
            dataset_name=f"held-out rows of {dataset}" if dataset else "held-out rows of the training data",
            metric_type=_line(kind),
            metric_name=_line(label),
            metric_value=round(value, 6),
        )
        for kind, label, value in found
        if is_number(value)
    ]


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
        (key, _plain(told(config[key])))
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


# --- curves ---------------------------------------------------------------------------------------------------------


def draw_curves(run: Run, path: Path) -> list[str]:
    """Draws up to six metrics over the optimizer steps as a PNG and returns their names; none: no picture."""
    panels = []
    for names in PANELS:
        name = next((name for name in names if len(_points(run.metrics, name)) > 1), None)
        # PPO's loss is no measure of how it is doing; its parts are.
        if name is not None and (name, run.kind) != ("loss", "policy"):
            panels.append(name)
    panels = panels[:6]
    if not panels:
        path.unlink(missing_ok=True)
        return []
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    picture = Figure(figsize=(3.2 * columns, 2.1 * lines), layout="constrained", dpi=100)
    FigureCanvasAgg(picture)
    for axes, name in zip(picture.subplots(lines, columns, squeeze=False).flat, panels + [None] * 5, strict=False):
        if name is None:
            axes.set_axis_off()
            continue
        points = _points(run.metrics, name)
        axes.plot(
            *zip(*points, strict=True), color="#0b62b0", linewidth=1.4, marker=".", markersize=3, label="training"
        )
        exams = _points(run.exams, name)
        if exams and name in ("score", "kl"):
            axes.plot(
                *zip(*exams, strict=True), color="#b3480b", linestyle="--", marker="o", markersize=4, label="held out"
            )
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    picture.supxlabel("optimizer steps", fontsize=8)
    picture.savefig(path, format="png", metadata={"Software": None})
    return panels


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if is_number(row.get("step")) and is_number(row.get(name))]


# --- small things ---------------------------------------------------------------------------------------------------


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
    return "path/to/this/folder" if merged or told(path) != path else path


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
    """A reward's line of the settings, as a mapping that may be told."""
    return {"name": "no name"} | told(spec) if isinstance(spec, dict) else {"name": told(str(spec))}


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


def _line(text: str) -> str:
    return visible(" ".join(str(text).split()))[:100]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def main() -> None:
    (args,) = cli.parse(CardArguments)
    if not args.run:
        raise UserError("run is not set: name the folder of the run, e.g. --run runs/tiny/ppo")
    say(f"{write_card(**vars(args))}")


if __name__ == "__main__":
    cli.launch(main)
