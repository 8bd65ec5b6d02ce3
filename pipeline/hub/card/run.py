"""What a stage left in its folder, as its card reads it."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.models.provenance import hub_model
from pipeline.report import SAMPLES
from pipeline.runs.folder import CONFIG, METRICS, SUMMARY, read_heldout, read_metrics
from pipeline.safety import shapes
from pipeline.safety.reading import checked, read_json, read_lines, read_yaml
from pipeline.safety.weights import ADAPTER_CONFIG, read_adapter_config

METHODS = ("ppo", "a2c", "reinforce", "grpo", "rloo", "ilql", "dpo")


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
        named = self.adapter and read_adapter_config(self.folder).get("base_model_name_or_path")
        return named or self.summary.get("base") or self.config.get("model_name_or_path")

    @property
    def hub_base(self) -> str | None:
        return hub_model(self.base, self.summary.get("base_fingerprint"))


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
