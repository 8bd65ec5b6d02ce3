"""The space of a sweep: which values a setting may take, and how a value gets into the stage's settings."""

import json
import re
from typing import Any, NamedTuple

from pipeline.errors import UserError, shortened

FORMS = "{choice: [...]}, {log: [low, high]}, {uniform: [low, high]} or {int: [low, high]}"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Dimension(NamedTuple):
    """The values of one setting: those of `choice`, or from `low` to `high`, both included."""

    form: str  # choice, log, uniform, int
    low: Any = None
    high: Any = None
    choices: tuple = ()

    def distribution(self):
        """As Optuna has it. Choices that its storage cannot hold (lists, mappings) go by their JSON."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.form == "choice":
            return CategoricalDistribution([_label(choice) for choice in self.choices])
        if self.form == "int":
            return IntDistribution(self.low, self.high)
        return FloatDistribution(self.low, self.high, log=self.form == "log")

    def value(self, param: Any) -> Any:
        """The setting's value for what Optuna chose; drawn numbers are cut to 4 digits, which a person can copy."""
        if self.form == "choice":
            return next(choice for choice in self.choices if _label(choice) == param)
        return float(f"{param:.4g}") if self.form in ("log", "uniform") else param

    def grid(self, key: str) -> list:
        """All values, as Optuna has them.

        Raises:
            UserError: there are infinitely many.
        """
        if self.form in ("log", "uniform"):
            raise UserError(
                f"space: {key} has infinitely many values, which sampler: grid cannot all try: give "
                f"{{choice: [...]}}, or another sampler"
            )
        return list(range(self.low, self.high + 1)) if self.form == "int" else [_label(c) for c in self.choices]

    def ends(self) -> list:
        """Values that stand for all others in a check."""
        return list(self.choices) if self.form == "choice" else [self.low, self.high]


def read_space(space: dict[str, Any]) -> dict[str, Dimension]:
    """The dimensions of `space:` in a YAML.

    Raises:
        UserError: no dimension, or one of no known form.
    """
    if not space:
        raise UserError(f"space is empty: name at least one setting and its values, {FORMS}")
    return {str(key): _dimension(str(key), value) for key, value in space.items()}


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Sets `key` in the settings of a stage: `learning_rate`, `rewards.bleu.weight` (the item of that name in a list)
    or `lr_scheduler_kwargs.min_lr` (a key of a mapping)."""
    setting, _, rest = key.partition(".")
    if not rest:
        settings[setting] = value
        return
    name, _, option = rest.rpartition(".")
    inside = settings.get(setting)
    if isinstance(inside, list):
        inside[:] = [{"name": item} if isinstance(item, str) else item for item in inside]
        found = [item for item in inside if isinstance(item, dict) and label(item) == name]
        if len(found) != 1:
            names = ", ".join(label(item) for item in inside if isinstance(item, dict))
            raise UserError(f"space: {key} wants the form {setting}.<name>.<option>, with one of these names: {names}")
        found[0][option] = value
    elif isinstance(inside, dict) and not name:
        inside[option] = value
    else:
        raise UserError(f"space: {key}: the stage's {setting} is no list of named items, and no mapping")


def label(item: dict) -> str:
    """The name by which an item of a list is known."""
    return str(item.get("log_name") or item.get("name"))


def _label(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, str | int | float | bool) else json.dumps(choice)


def _dimension(key: str, given: Any) -> Dimension:
    forms = ("choice", "log", "uniform", "int")
    if not isinstance(given, dict) or len(given) != 1 or (form := next(iter(given))) not in forms:
        raise UserError(f"space: {key} wants one of {FORMS}, got {shortened(repr(given))}")
    values = given[form]
    if not isinstance(values, list) or not values:
        raise UserError(f"space: {key} wants a list after {form}, got {shortened(repr(values))}")
    values = [_number(value) for value in values]
    if form == "choice":
        labels = [_label(value) for value in values]
        if repeated := [value for i, value in enumerate(labels) if value in labels[:i]]:
            raise UserError(f"space: {key} has {shortened(repr(repeated[0]))} twice (numbers count by their value)")
        return Dimension(form, choices=tuple(values))
    kind = int if form == "int" else int | float
    if len(values) != 2 or not all(isinstance(x, kind) and not isinstance(x, bool) for x in values):
        raise UserError(f"space: {key} wants two {'whole ' if form == 'int' else ''}numbers after {form}")
    low, high = values
    if not low < high or (form == "log" and low <= 0):
        above = ", both above 0" if form == "log" else ""
        raise UserError(
            f"space: {key} wants the lower number first, then the higher one{above}; got {shortened(repr(values))}"
        )
    return Dimension(form, low, high)


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
