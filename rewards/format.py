"""The form of a completion: a regular expression, sections in order, JSON by a schema. What it says does not count."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from .base import Reward, RewardError, choice, number
from .text import Texts, text_of

# A pattern that backtracks without an end mostly does so on one of these: better when it is read than hours later.
_PROBES = [part * (300 // len(part)) + "!" for part in ("a", "0", " ", "\n", ".", "<", "-", "x", "a ", "a1", "<a>")]
_OPENED = re.compile(r"(`{3,}|~{3,})[ \t]*(?:json)?[ \t]*\n")
_TIMES = re.compile(r"\{(\d+)")
_MOST_TIMES = 10_000  # a{n} is compiled to n times a
_NAMED = ("properties", "$defs", "definitions", "dependentSchemas")  # hold schemas under names
_DATA = ("const", "enum", "default", "examples")  # hold no schemas
_DEPTH = 50  # of a value that is no reason for a schema to run out of stack


class Format(Reward):
    """1 where a completion has the form that is asked for, else 0. Give one of `pattern`, `sections` and `schema`.

        {name: format, pattern: "^The answer is \\\\d+\\\\.$"}
        {name: format, sections: [think, answer], partial: true}
        {name: format, schema: {type: object, required: [name], properties: {name: {type: string}}}}

    Options:
        pattern: a regular expression, or a list of them, to be found in the completion (^ and $ hold it to its
            beginning and end; `(?s)` lets . match line ends). With `partial`, the share that is found.
        sections: names of tags. The completion is `<think>...</think><answer>...</answer>`: each tag once, in this
            order, something in each, nothing but white space outside. With `partial`, each section that is right and
            stands behind the right ones before it counts as 1, nothing outside as 1 if all are right: the share.
        opened (false): the prompt's template has opened the first section already, so the completion begins in it.
        outside (false): there may be text outside of the sections.
        schema: a JSON Schema, or the path of its file; the completion is JSON (perhaps fenced as a code block) that
            the schema allows, no key twice in an object. Whether `format` holds is not checked; `$ref` stays within
            the schema. With `partial`, an object that breaks it scores the share of the schema's properties that it
            has and that are right, one more counted that it has not.
        partial (false): part of the score for a part of the form.
        seconds (1): time limit of each match of a regular expression, the schema's ones included.

    Raises:
        RewardError: a pattern or schema that is none, and a pattern that takes longer than `seconds`, be it in a trial
            when the reward is made or on a completion.
    """

    def __init__(
        self,
        pattern: str | Sequence[str] | None = None,
        sections: Sequence[str] | None = None,
        schema: Mapping[str, Any] | str | None = None,
        opened: bool = False,
        outside: bool = False,
        partial: bool = False,
        seconds: float = 1.0,
        log_name: str = "format",
    ):
        super().__init__(log_name)
        if sum(given is not None for given in (pattern, sections, schema)) != 1:
            raise self.error("give one of pattern, sections and schema; for more of them, name the reward again.")
        self.partial = choice(partial, "partial", (True, False), log_name)
        self.opened = choice(opened, "opened", (True, False), log_name)
        self.outside = choice(outside, "outside", (True, False), log_name)
        self.seconds = number(seconds, "seconds", log_name)
        if self.seconds <= 0:
            raise self.error(f"seconds is {seconds}; give a number above 0.")
        if sections is None and (opened or outside):
            raise self.error(f"{'opened' if opened else 'outside'} is for sections; leave it out.")
        if pattern is not None:
            self.patterns = self._compiled([pattern] if isinstance(pattern, str) else pattern)
        elif sections is not None:
            self.sections = self._names(sections)
        else:
            self.schema = self._read(schema)
            try:
                self.validator = self._validator(self.schema)
                self._try_schema()
            except RecursionError:
                raise self._endless() from None
        kinds = {"patterns": self.by_patterns, "sections": self.by_sections, "schema": self.by_schema}
        self._score = next(score for kind, score in kinds.items() if hasattr(self, kind))

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return [self._score(text_of(completion)) for completion in completions]

    # --- regular expressions ----------------------------------------------------------------------------------------
    def by_patterns(self, text: str) -> float:
        """The score of one completion by the patterns."""
        found = [self.found(pattern, text) for pattern in self.patterns]
        return sum(found) / len(found) if self.partial else float(all(found))

    def found(self, pattern: "regex.Pattern[str]", text: str) -> bool:
        """Whether `pattern` is found in `text`; `RewardError` past the time limit."""
        try:
            return pattern.search(text, timeout=self.seconds) is not None
        except TimeoutError:
            raise self.error(
                f"the regular expression {pattern.pattern!r:.200} takes more than {self.seconds:g} seconds on a "
                f"text of {len(text)} characters ({text[:20]!r}...): it backtracks; write it so that no repetition "
                "matches the same text in two ways, as (a|aa)+ does."
            ) from None

    def _compiled(self, patterns: Sequence[str]) -> list["regex.Pattern[str]"]:
        if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise self.error(f"pattern is {patterns!r:.100}; give a regular expression, or a list of them.")
        made = []
        for pattern in patterns:
            if any(len(count) > 9 or int(count) > _MOST_TIMES for count in _TIMES.findall(pattern)):
                raise self.error(f"{pattern!r:.200} repeats more than {_MOST_TIMES} times; give fewer.")
            try:
                made.append(regex.compile(pattern))
            except (regex.error, OverflowError, RecursionError) as error:
                raise self.error(f"{pattern!r:.200} is no regular expression: {error}.") from None
            for probe in _PROBES:
                self.found(made[-1], probe)
        return made

    # --- sections ---------------------------------------------------------------------------------------------------
    def by_sections(self, text: str) -> float:
        """The score of one completion by its sections."""
        if self.opened:
            text = f"<{self.sections[0]}>{text}"
        end, right, rest = 0, 0, []
        for name in self.sections:
            first, last = f"<{name}>", f"</{name}>"
            start, close = text.find(first), text.find(last)
            if text.count(first) != 1 or text.count(last) != 1 or not end <= start < close:
                continue
            if not text[start + len(first) : close].strip():
                continue
            rest.append(text[end:start])
            end, right = close + len(last), right + 1
        whole = right == len(self.sections)
        clean = whole and (self.outside or not "".join([*rest, text[end:]]).strip())
        return (right + clean) / (len(self.sections) + 1) if self.partial else float(clean)

    def _names(self, sections: Any) -> list[str]:
        names = list(sections) if isinstance(sections, list | tuple) else []
        if not names or not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) for name in names):
            raise self.error(f"sections is {sections!r:.100}; give names without brackets, e.g. [think, answer].")
        if len(set(names)) < len(names):
            raise self.error(f"sections is {sections!r:.100}; give each name once.")
        return names

    # --- JSON -------------------------------------------------------------------------------------------------------
    def by_schema(self, text: str) -> float:
        """The score of one completion by the schema."""
        try:
            value = json.loads(_unfenced(text), parse_constant=_no_number, object_pairs_hook=_each_once)
        except (ValueError, RecursionError):
            return 0.0
        try:
            wrong = self._errors(value)
        except RewardError:  # of the schema
            raise
        except (ValueError, ArithmeticError):  # numbers too large for the schema's arithmetic
            return 0.0
        except RecursionError:
            if not _deeper(value, _DEPTH):
                raise self._endless() from None
            return 0.0
        if not wrong:
            return 1.0
        if not self.partial or not isinstance(value, dict):
            return 0.0
        spoilt = {error.absolute_path[0] for error in wrong if error.absolute_path}
        right = [name for name in self.schema["properties"] if name in value and name not in spoilt]
        return len(right) / (len(self.schema["properties"]) + 1)

    def _errors(self, value: Any) -> list[Any]:
        import referencing.exceptions

        try:
            return list(self.validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as error:
            raise self.error(f"the schema has a $ref to '#{error.ref.lstrip('#')}', which is not in it.") from None

    def _read(self, schema: Any) -> dict[str, Any]:
        if isinstance(schema, str):
            try:
                schema = json.loads(Path(schema).read_text("utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise self.error(f"the schema {schema!r:.200} cannot be read: {str(error)[:200]}.") from None
        if not isinstance(schema, Mapping):
            raise self.error(
                f"schema is {repr(schema)[:80]}; give a JSON Schema as a mapping, or the path of its file."
            )
        if self.partial and not schema.get("properties"):
            raise self.error("partial goes by the properties of an object, and the schema names none; leave it out.")
        return dict(schema)

    def _validator(self, schema: dict[str, Any]) -> Any:
        import jsonschema  # for a schema alone
        import referencing

        if not isinstance(schema.get("$schema", ""), str):
            raise self.error(f"the schema names {str(schema['$schema'])[:80]} as its $schema; give a text.")
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            where = "/".join(map(str, error.absolute_path)) or "its root"
            raise self.error(f"the schema is no JSON Schema: {error.message[:200]} (at {where}).") from None
        for key, value in _keywords(schema):
            if key == "patternProperties":
                raise self.error("the schema has patternProperties, which are not read here: name the properties.")
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and not str(value).startswith("#"):
                raise self.error(
                    f"the schema refers to {str(value)[:80]!r}; only a $ref within it (#...) is followed."
                )
            if key == "pattern" and isinstance(value, str):
                self._compiled([value])

        def pattern(validator: Any, wanted: str, text: Any, schema: Any) -> Any:
            if isinstance(text, str) and not self.found(regex.compile(wanted), text):
                yield jsonschema.ValidationError("does not match the pattern")

        limited = jsonschema.validators.extend(kind, {"pattern": pattern})
        return limited(schema, registry=referencing.Registry())  # an empty one: nothing is fetched

    def _try_schema(self) -> None:
        try:
            value: Any
            for value in (None, True, 0, "", [], {}, dict.fromkeys(self.schema.get("properties", {}), 0)):
                self._errors(value)
        except (TypeError, ValueError, ArithmeticError) as error:
            if isinstance(error, RewardError):
                raise
            raise self.error(f"the schema cannot be used: {error}.") from None

    def _endless(self) -> RewardError:
        return self.error("the schema refers to itself without an end, or is too deep; take the $ref out.")


def _unfenced(text: str) -> str:
    """What stands in the fence that is the whole of `text`, else `text`. Without a regular expression, which would try
    each line end as the one before the closing fence."""
    bare = text.strip()
    opened = _OPENED.match(bare)
    if not opened or not bare.endswith(opened[1]):
        return text
    inside, line_end, before = bare[opened.end() : -len(opened[1])].rpartition("\n")
    return inside if line_end and not before.strip() else text


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice: each reader would take another one")
    return found


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings stand in each other more than `depth` deep."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema and of those in it with its value, however deep; not the names of properties."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in _DATA:
                continue
            yield key, value
            yield from _keywords(list(value.values()) if key in _NAMED and isinstance(value, Mapping) else value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _keywords(value)
