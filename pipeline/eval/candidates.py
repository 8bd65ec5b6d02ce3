"""Who is evaluated: models and adapters by name. Adapters on one base share it in memory."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from peft import PeftModel

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.ilql.decoding import load_shift, shifted
from pipeline.ilql.network import has_shift, values_folder
from pipeline.models import loading as models
from pipeline.models import precision
from pipeline.models.adapter_files import check_task, does_not_fit, needs_own_base
from pipeline.models.folders import Stage, resolve_model
from pipeline.models.prompts import KWARGS
from pipeline.runs.folder import CONFIG
from pipeline.safety.reading import read_yaml
from pipeline.safety.weights import is_folder


class Candidate(NamedTuple):
    """A model under the name that the tables give it."""

    name: str
    path: str
    stage: Stage  # its base, and the adapter on it
    tokenizer: object


def read_candidates(specs: Iterable[dict], model_args: ModelArguments) -> list[Candidate]:
    """The candidates in their order, with their tokenizers; the weights are not loaded yet.

    Each spec is `{sft: runs/tiny/sft}`, or `{"name": "sft=runs/tiny/sft"}` or `{"name": "runs/tiny/sft"}` as the
    command line makes them of `sft=runs/tiny/sft` and `runs/tiny/sft`.

    Raises:
        UserError: two of one name, or no model there.
    """
    found: dict[str, Candidate] = {}
    for spec in specs:
        name, path = _name_and_path(spec)
        if name in found:
            raise UserError(f"candidates: two are called {name}; name them, e.g. first=runs/a/{name}")
        try:
            stage = resolve_model(ModelArguments(model_name_or_path=path))
            found[name] = Candidate(name, path, stage, models.load_tokenizer(stage, model_args))
        except UserError as error:
            raise UserError(f"candidate {name[:100]}: {str(error)[:500]}") from None
    return list(found.values())


def _name_and_path(spec: dict) -> tuple[str, str]:
    wants = "name=folder, or name: folder in a YAML file, e.g. sft=runs/tiny/sft"
    if len(spec) != 1 or not all(isinstance(part, str) and part for part in (*spec, *spec.values())):
        raise UserError(f"candidates: {spec!r} is not valid: each wants the form {wants}")
    [(name, path)] = spec.items()
    if name == "name":
        name, _, path = path.rpartition("=")
        name = name or Path(path).name
    if not path or not name.isprintable():
        raise UserError(f"candidates: {next(iter(spec.values()))!r} is not valid: each wants the form {wants}")
    return name, path


def template_kwargs(candidates: Sequence[Candidate], given: dict | None) -> dict | None:
    """What the chat template is given besides, for all of them alike: `given`, or what their runs were trained with.

    Raises:
        UserError: they were trained with different ones, and nothing is given.
    """
    if given is not None:
        return given
    found = {candidate.name: kwargs for candidate in candidates if (kwargs := _trained_with(candidate))}
    for name, kwargs in found.items():
        first, its = next(iter(found.items()))
        if kwargs != its:
            raise UserError(
                f"candidate {first} was trained with chat_template_kwargs {its}, and {name} with {kwargs}: set "
                "chat_template_kwargs, so that all answer the same prompts"
            )
    return next(iter(found.values()), None)


def _trained_with(candidate: Candidate) -> dict | None:
    folder = Path(candidate.path)
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / CONFIG).is_file():
            kwargs = read_yaml(place / CONFIG).get(KWARGS)
            return kwargs if isinstance(kwargs, dict) else None
    return None


def by_base(candidates: Sequence[Candidate], last: str) -> list[list[Candidate]]:
    """The candidates grouped by the base that they stand on; the group of the one called `last` at the end.

    An adapter that changes the base itself has one of its own.
    """
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        base, adapter = candidate.stage
        alone = candidate.name if adapter and needs_own_base(adapter) else ""
        groups.setdefault((str(Path(base).resolve()) if is_folder(base) else base, alone), []).append(candidate)
    return sorted(groups.values(), key=lambda group: last in [candidate.name for candidate in group])


def load_group(group: Sequence[Candidate], model_args: ModelArguments) -> torch.nn.Module:
    """The base of a group, with every adapter of the group on it under its candidate's place in the group.

    Raises:
        UserError: an adapter does not fit, or a tokenizer has more tokens than the base.
    """
    biggest = max((candidate.tokenizer for candidate in group), key=len)
    model = models.load_base(model_args, base=group[0].stage.base, tokenizer=biggest)
    shifts = {}  # adapter -> what a run of ILQL adds to its logits
    for place, candidate in enumerate(group):
        if candidate.stage.adapter is None:
            continue
        if isinstance(model, PeftModel):
            _add_adapter(model, candidate.stage.adapter, adapter_name(place))
        else:
            model = models.load_adapter(model, candidate.stage.adapter, name=adapter_name(place))
        if has_shift(candidate.stage.adapter):
            name = adapter_name(place)
            shifts[name] = load_shift(model, values_folder(candidate.stage.adapter), f"{name}_values")
    model.shifts = shifts
    return model.eval() if precision.quantization(model_args) else model.eval().to(PartialState().device)


def adapter_name(place: int) -> str:
    """What PEFT calls the adapter of the candidate at `place` in its group (its own name may have dots in it)."""
    return f"candidate_{place}"


def _add_adapter(model: PeftModel, adapter: str, name: str) -> None:
    check_task(adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            model.load_adapter(adapter, adapter_name=name)
        except Exception as error:  # half a file fails in many ways
            raise does_not_fit(adapter, model, error) from None


@contextmanager
def active_adapter(model: torch.nn.Module, adapter: str | None) -> Iterator[None]:
    """Inside, `model` is the base with this adapter, or with None the raw base."""
    if not isinstance(model, PeftModel):
        yield
    elif adapter is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(adapter, inference_mode=True)
        with shifted(model, getattr(model, "shifts", {}).get(adapter)):
            yield
