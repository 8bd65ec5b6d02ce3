"""What a kind of instruction is: its name, the parameters it takes and the check. The kinds themselves lie beside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base import RewardError, nearest

RELATIONS = ("at least", "less than", "at most", "exactly")  # IFEval has the first two


@dataclass(frozen=True)
class Parameter:
    """One parameter: the words that say what it takes, and the function that reads it (`ValueError` if it is none)."""

    wants: str
    read: Callable[[Any], Any]
    optional: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    `check(text, **parameters)` says whether a text that is not blank meets it; every parameter has been read before.
    With `of_prompt`, the parameter of that name is the text of the prompt where a row leaves it out.
    """

    id: str
    says: str
    check: Callable[..., bool]
    parameters: Mapping[str, Parameter]
    of_prompt: str | None = None

    def read(self, given: Mapping[str, Any], prompt: str | None = None) -> dict[str, Any]:
        """The parameters of one instruction as `check` takes them. A value of None counts as left out.

        Raises:
            RewardError: a parameter that the kind has not, one that is missing, or one that is none.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in self.parameters:
                takes = f"it takes {', '.join(self.parameters)}" if self.parameters else "it takes none"
                raise RewardError(f"{self.id} has no parameter '{name}'{nearest(name, self.parameters)}; {takes}.")
        if self.of_prompt and self.of_prompt not in given and prompt is not None:
            given = {**given, self.of_prompt: prompt}
        read = {}
        for name, parameter in self.parameters.items():
            if name in given:
                try:
                    read[name] = parameter.read(given[name])
                except ValueError:
                    raise RewardError(f"{self.id}: {name} is {given[name]!r:.100}; give {parameter.wants}.") from None
            elif not parameter.optional:
                raise RewardError(f"{self.id} needs the parameter '{name}': {parameter.wants}.")
        return read


@dataclass
class Kinds:
    """The kinds of one file, gathered by the decorator that an object of this class is."""

    found: dict[str, Kind] = field(default_factory=dict)

    def __call__(
        self, id: str, says: str, of_prompt: str | None = None, **parameters: Parameter
    ) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
        """Makes the function below it the check of the kind `id`."""

        def keep(check: Callable[..., bool]) -> Callable[..., bool]:
            self.found[id] = Kind(id, says, check, parameters, of_prompt)
            return check

        return keep


def holds(count: int, relation: str, bound: int) -> bool:
    """Whether `count` stands in `relation` to `bound`."""
    return {
        "at least": count >= bound,
        "less than": count < bound,
        "at most": count <= bound,
        "exactly": count == bound,
    }[relation]


# --- what parameters take -------------------------------------------------------------------------------------------
def _whole(value: Any, lowest: int) -> int:
    # A column of whole numbers with gaps comes out of Arrow and pandas as floats.
    if isinstance(value, bool) or not isinstance(value, int | float) or value < lowest:
        raise ValueError
    if isinstance(value, float) and not value.is_integer():  # nan and inf are none, either
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return [_text(each) for each in value]


def _letter(value: Any) -> str:
    letter = _text(value)
    if len(letter) != 1:
        raise ValueError
    return letter.lower()


def one_of(names: tuple[str, ...], wants: str) -> Parameter:
    """A parameter that is one of `names`."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Parameter(wants, read)


TEXT = Parameter("a text", _text)
TEXTS = Parameter("a list of texts", _texts)
LETTER = Parameter("one letter", _letter)
COUNT = Parameter("a whole number", lambda value: _whole(value, 0))
PLACE = Parameter("a whole number from 1", lambda value: _whole(value, 1))
RELATION = one_of(RELATIONS, " or ".join(f'"{relation}"' for relation in RELATIONS))
