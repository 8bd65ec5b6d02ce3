"""What came out of a sweep: the table, the plot of what mattered, and the best YAML, ready to run."""

import warnings
from pathlib import Path

import matplotlib
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState

from pipeline.report.numbers import number
from pipeline.runs.folder import write_aside
from pipeline.safety.commands import command
from pipeline.safety.visible import visible
from pipeline.sweep.comparison import CLOCKS
from pipeline.sweep.settings import Plan
from pipeline.sweep.study import EXAM, Study, dump

TABLE, PLOT, BEST = "table.md", "what_mattered", "best.yaml"
MOST_LETTERS = 100  # of an error in the table
TOP = 0.25  # of the trials: what mattered is what tells them from the rest
FEW = 4  # trials that came to their end within the limit; with fewer, nothing can be told from anything
OPEN = (TrialState.RUNNING, TrialState.WAITING)
PANELS_IN_A_ROW = 4


def write(study: Study, plot: bool = False) -> None:
    """Table and best YAML into the sweep's folder, and the plot if asked for."""
    with study.locked():
        trials = study.trials()
        write_aside(study.folder / TABLE, table(study.plan, trials))
        if winner := best(study.plan, trials):
            write_aside(study.folder / BEST, best_yaml(study.plan, winner, len(trials)))
        if plot and ended(trials):
            for ending in ("svg", "png"):
                draw(study, trials, study.folder / f"{PLOT}.{ending}")


def conclusion(study: Study) -> str:
    """What the terminal shows at the end."""
    trials, plan = study.trials(), study.plan
    text = "\n" + table(plan, trials)
    if others := sum(trial.state in OPEN for trial in trials):
        text += f"\n{others} trials are still being run by another process, which writes the files anew at its end.\n"
    if winner := best(plan, trials):
        run = f"{command(plan.asked.stage)} --config {plan.folder / BEST}"
        return text + (
            f"\nThe best is trial {winner.number}. To run it: {run}\nThe table and the plot lie in {plan.folder}: "
            f"{TABLE}, {PLOT}.svg, {PLOT}.png."
        )
    return text + f"\nNo trial came to its end{_limit(plan)}, so there is no {BEST}; the logs lie in {plan.folder}."


def allowed(trial: FrozenTrial) -> bool:
    """Whether it ended within the KL limit."""
    return all(excess <= 0 for excess in trial.constraints.values())


def exam(trial: FrozenTrial, key: str) -> float | None:
    """A figure of the trial's last exam, None where there is none."""
    return trial.user_attrs.get(EXAM, {}).get(key)


def ended(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that came to their end."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def best(plan: Plan, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The best that came to its end within the KL limit."""
    return min((t for t in ended(trials) if allowed(t)), key=lambda trial: _loss(plan, trial), default=None)


def importances(study: Study, trials: list[FrozenTrial]) -> dict[str, float]:
    """Setting -> its part in what tells the best quarter of the trials from all of them; the parts sum to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255). A trial over the KL limit counts as the worst. Empty with fewer
    than `FEW` trials.
    """
    done = ended(trials)
    if sum(map(allowed, done)) < FEW:
        return {}
    worst = max(_loss(study.plan, trial) for trial in done)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lower is better, which it is
        return optuna.importance.get_param_importances(
            study.study,
            evaluator=evaluator,
            target=lambda trial: _loss(study.plan, trial) if allowed(trial) else worst,
        )


def table(plan: Plan, trials: list[FrozenTrial]) -> str:
    """The trials, the best first, with what the columns mean."""
    winner = best(plan, trials)
    has_kl = any(exam(trial, "kl") is not None for trial in trials)
    clock = "cpu_seconds" if any(exam(trial, "cpu_seconds") is not None for trial in trials) else "seconds"
    head = ["trial", *plan.space, plan.asked.measure, *(["KL, nats"] if has_kl else []), "exams", "minutes", "outcome"]
    rows = []
    for trial in sorted(trials, key=lambda trial: _rank(plan, trial)):
        seconds = exam(trial, clock)
        cells = [str(trial.number), *(plan.shown(key, trial.params) for key in plan.space)]
        cells += [number(exam(trial, "value"), 3), *([number(exam(trial, "kl"), 2)] if has_kl else [])]
        cells += [number(exam(trial, "exams")), number(None if seconds is None else seconds / 60, 1)]
        rows.append([*cells, "**best**" if winner and trial.number == winner.number else _outcome(trial)])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, *rows]
    texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    direction = "higher" if plan.higher_is_better else "lower"
    texts += [
        "",
        f"{plan.asked.measure}: of the last exam on held-out prompts, {direction} is better; the best is the best "
        f"one{_limit(plan)} that came to its end. One run a trial, with one seed; minutes are of "
        f"training{CLOCKS[clock]}, without the exams.",
    ]
    return "\n".join(texts) + "\n"


def best_yaml(plan: Plan, trial: FrozenTrial, trials: int) -> str:
    """The stage's whole YAML with what the best trial had, and where it comes from."""
    kl = "" if exam(trial, "kl") is None else f" at a KL of {number(exam(trial, 'kl'), 2)} nats"
    lines = [
        f"The best of {trials} trials in {plan.folder}: trial {trial.number}, "
        f"{plan.asked.measure} {number(trial.value, 3)}{kl}, one seed.",
        "Tried: " + ", ".join(f"{key} {plan.shown(key, trial.params)}" for key in plan.space),
    ]
    for key, value in plan.asked.overrides.items():
        was = f"{plan.config[key]}" if key in plan.config else "no such key"
        if plan.config.get(key) != value and key not in plan.space:
            lines.append(f"As in all trials: {key} {value} ({plan.asked.stage_config} has {was})")
    settings = plan.settings(trial.params)
    settings["output_dir"] = f"{plan.config.get('output_dir') or plan.folder / plan.asked.stage}-best"
    return "".join(f"# {visible(line)}\n" for line in lines) + dump(settings)


def draw(study: Study, trials: list[FrozenTrial], path: Path) -> None:
    """What mattered, as bars, and each setting against the measure, as SVG or PNG by the ending of `path`."""
    plan, parts = study.plan, importances(study, trials)
    names = list(parts) or list(plan.space)
    panels = len(names) + bool(parts)
    columns = min(PANELS_IN_A_ROW, panels)
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "font.size": 9}):
        figure = Figure(figsize=(3.4 * columns, 0.4 + 2.9 * -(-panels // columns)), layout="constrained")
        axes = list(figure.subplots(-(-panels // columns), columns, squeeze=False).flat)
        if parts:
            _bars(axes.pop(0), parts)
        for key, beside in zip(names, axes, strict=False):
            beside.sharey(axes[0])
            _slice(beside, plan, trials, key)
        axes[0].set_ylabel(plan.asked.measure)
        for unused in axes[len(names) :]:
            unused.set_axis_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _bars(axes, parts: dict[str, float]) -> None:
    names = list(parts)[::-1]
    bars = axes.barh(names, [parts[name] for name in names], color="tab:blue")
    axes.bar_label(bars, [f"{parts[name]:.0%}" for name in names], padding=3)
    axes.set(xlim=(0, 1.2), xticks=[], xlabel=f"what tells the best {TOP:.0%} from the rest")
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _slice(axes, plan: Plan, trials: list[FrozenTrial], key: str) -> None:
    within = [trial for trial in ended(trials) if allowed(trial)]
    over = [trial for trial in ended(trials) if not allowed(trial)]
    early = [t for t in trials if t.state == TrialState.PRUNED and exam(t, "value") is not None]
    dimension = plan.space[key]
    places = dimension.grid(key) if dimension.form == "choice" else None
    for name, some, style in (
        ("to its end", within, {"marker": "o", "color": "tab:blue"}),
        ("over the KL limit", over, {"marker": "o", "facecolors": "none", "edgecolors": "tab:red"}),
        ("stopped early", early, {"marker": "x", "color": "gray"}),
    ):
        xs = [places.index(trial.params[key]) if places else trial.params[key] for trial in some]
        if xs or name == "to its end":
            axes.scatter(xs, [exam(trial, "value") for trial in some], s=28, label=name, **style)
    if places:
        axes.set_xticks(range(len(places)), [str(place)[:20] for place in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif dimension.form == "log":
        axes.set_xscale("log")
        axes.set_xlim(dimension.low / 1.2, dimension.high * 1.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(key)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _loss(plan: Plan, trial: FrozenTrial) -> float:
    return -trial.value if plan.higher_is_better else trial.value


def _rank(plan: Plan, trial: FrozenTrial) -> tuple:
    if trial.state == TrialState.COMPLETE:
        return (0 if allowed(trial) else 1), _loss(plan, trial), trial.number
    order = (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
    return 2 + order.index(trial.state), 0, trial.number


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return "" if allowed(trial) else "over the KL limit"
    if trial.state == TrialState.FAIL:
        error = visible(str(trial.user_attrs.get("error"))).replace("|", "\\|")
        return f"failed: {error if len(error) <= MOST_LETTERS else error[:MOST_LETTERS] + ' …'}"
    return {TrialState.PRUNED: "stopped early", TrialState.RUNNING: "running"}.get(trial.state, "waiting")


def _limit(plan: Plan) -> str:
    return "" if plan.asked.kl_limit is None else f" within a KL of {number(plan.asked.kl_limit)} nats"
