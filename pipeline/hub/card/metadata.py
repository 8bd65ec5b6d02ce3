"""The card's metadata, as the Hub reads it."""

from huggingface_hub import EvalResult, ModelCardData

from pipeline.hub.card.run import Run
from pipeline.models.provenance import hub_data, license_fields
from pipeline.report.numbers import is_number
from pipeline.safety.markdown import visible


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


def _line(text: str) -> str:
    return visible(" ".join(str(text).split()))[:100]
