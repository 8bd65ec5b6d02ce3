"""From a YAML file and flags to checked settings, and from a user's error to one clear line."""

import copy
import difflib
import math
import os
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from trl import TrlParser

from pipeline.config.machine import leave_busy_cores
from pipeline.errors import UserError, shortened
from pipeline.runs import mishaps
from pipeline.runs.stopping import Stopped, farewell
from pipeline.safety.console import leave_unread
from pipeline.safety.reading import parse_yaml
from pipeline.safety.redaction import is_secret, print_redacted, redact
from pipeline.safety.visible import visible
from pipeline.watching.terminal import quiet

# What a person changes most often among the trainer's hundreds of settings, in the order of the help text.
COMMON = (
    "output_dir learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "per_device_eval_batch_size max_length lr_scheduler_type warmup_steps weight_decay max_grad_norm optim bf16 "
    "gradient_checkpointing completion_only_loss assistant_only_loss packing center_rewards_coefficient "
    "max_completion_length num_iterations epsilon temperature eval_strategy eval_steps "
    "logging_steps save_strategy save_steps save_minutes save_total_limit resume report_to use_cpu seed"
).split()
HELP = ("-h", "--help", "--help-all")


class Parser(TrlParser):
    """TRL's parser, but strict: no abbreviated flags, and errors as `UserError` instead of an exit."""

    def __init__(self, dataclass_types: Iterable[type]):
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)

    def error(self, message: str):
        raise UserError(message)

    def _parse_dataclass_field(self, parser, field):
        if any(action.dest == field.name for action in self._actions):
            return  # two of the dataclasses have it: one flag sets both
        if _list_of_mappings(field.type):
            field.type = list[dict]
            default = None if field.default is MISSING else field.default
            parser.add_argument(
                f"--{field.name}", type=flow_mapping, nargs="+", default=default, help=field.metadata.get("help")
            )
            return
        TrlParser._parse_dataclass_field(parser, field)


def parse(*dataclasses: type, argv: list[str] | None = None) -> tuple:
    """One instance of each dataclass, from `--config some.yaml` and flags; flags win over the file.

    Raises:
        UserError: for a key or flag that does not exist (with the nearest real ones), a value of the wrong type, or
            a setting that a dataclass refuses. `--help` and `--help-all` print and exit.
    """
    argv = [arg for arg in (sys.argv[1:] if argv is None else argv) if arg != "--debug"]
    argv, path = _take_config(argv)
    parser = Parser(dataclasses)
    where = ""
    if path is not None:
        where = f"{path}: "
        parser.set_defaults_with_config(**checked(_read_yaml(path), dataclasses, path))
    if wanted := [arg for arg in argv if arg in HELP]:
        print(help_text(parser, dataclasses, everything="--help-all" in wanted), flush=True)
        raise SystemExit(0)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0]
        if not flag.startswith("--"):
            raise UserError(f"{flag!r} stands on the command line without a flag before it")
        key = flag[2:].split("=")[0].replace("-", "_")
        raise UserError(
            f"no such flag {flag.split('=')[0]}{_near(key, _names(dataclasses), '--')} (--help lists them)"
        )
    try:
        return tuple(_build(kind, vars(namespace), where) for kind in dataclasses)
    except UserError as error:
        if path is None and not argv:
            raise UserError(f"nothing is set: give --config FILE.yaml, or settings ({error})") from None
        raise


def launch(main: Callable[[], Any]) -> None:
    """Runs `main()` with the libraries kept quiet.

    An error that the user can mend becomes one line and exit code 2; `--debug` shows the trace. Anything else is a bug
    of ours and keeps its trace.
    """
    quiet()
    sys.excepthook = print_redacted
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        # Without it Accelerate's processes on a CPU do not find each other: each believes that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    leave_busy_cores()
    try:
        main()
        _leave_together()
    except Stopped:
        _leave_together()
        raise
    except BrokenPipeError:  # whoever read what it prints has gone: `--help | head`
        leave_unread()
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"\n{farewell()}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # at once: the others may be waiting in the middle of a step
    except Exception as error:
        sentence, is_first = mishaps.in_words(error), _is_first_to_fail()
        if "--debug" in sys.argv:
            raise
        if sentence is None:
            if is_first or not (torch.distributed.is_initialized() and isinstance(error, RuntimeError)):
                raise
            raise SystemExit(1) from None  # the process that it waited for has failed, and said why
        if is_first:
            print(f"error: {visible(redact(sentence))}", file=sys.stderr)
        raise SystemExit(2) from None


def _leave_together() -> None:
    """Several processes end at the same time: one that goes too early may make another abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _is_first_to_fail() -> bool:
    """Whether this process says its error: the first one that failed, or before they know of each other rank 0."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized():
        try:
            return dist.distributed_c10d._get_default_store().add("plumbline_error", 1) == 1
        except RuntimeError:  # it was kept by a process that has ended
            return True
    return int(os.environ.get("RANK", "0")) == 0


def flow_mapping(text: str | dict) -> dict:
    """`{name: bleu, weight: 0.5}` or the bare name `bleu`, as a mapping."""
    if isinstance(text, str):
        try:
            value = parse_yaml(text, "it")
        except UserError:
            value = None
        text = {"name": value} if isinstance(value, str) else value
    if not isinstance(text, dict):
        raise UserError("each item wants the form '{name: bleu, weight: 0.5}', in quotes on the command line")
    return text


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    rest, path, position = [], None, 0
    while position < len(argv):
        arg = argv[position]
        if arg == "--config":
            if position + 1 == len(argv):
                raise UserError("--config wants the path of a YAML file after it")
            path, position = argv[position + 1], position + 1
        elif arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        else:
            rest.append(arg)
        position += 1
    return rest, path


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which plain YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1} gives {key} a second time")
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # whole, so that an error knows its line
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise UserError(f"--config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    found = parse_yaml(text, path, _Loader)
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold lines of the form `key: value`")
    found.pop("versions", None)  # config.yaml of a finished run can be used again
    return found


def build(found: dict[str, Any], *dataclasses: type, where: str) -> tuple:
    """As `parse`, from what a YAML file would hold; `where` stands in the errors in place of its path."""
    parser = Parser(dataclasses)
    parser.set_defaults_with_config(**checked(copy.deepcopy(found), dataclasses, where))
    values = vars(parser.parse_known_args([])[0])
    return tuple(_build(kind, values, f"{where}: ") for kind in dataclasses)


def checked(found: dict[str, Any], dataclasses: Iterable[type], path: str) -> dict[str, Any]:
    """`found`, if the dataclasses have every key of it and take a value of that type; a `UserError` names `path`."""
    names = _names(dataclasses)
    hints = {}
    for kind in dataclasses:
        hints |= get_type_hints(kind)
    for key, value in found.items():
        if key not in names:
            raise UserError(f"{path}: no such setting {shortened(str(key))}{_near(str(key)[:100], names)}")
        hint = hints[key]
        if _list_of_mappings(hint) and isinstance(value, list):
            try:
                value = found[key] = [flow_mapping(item) for item in value]
            except UserError as error:
                raise UserError(f"{path}: {key}: {error}") from None
        if not _fits(value, hint):
            hint_text = _describe(hint)
            extra = " (put words such as no, off, yes, on in quotes)" if isinstance(value, bool) else ""
            got = "something else" if is_secret(key) else shortened(repr(value))
            raise UserError(f"{path}: {key} wants {hint_text}, got {got}{extra}")
    return found


def _names(dataclasses: Iterable[type]) -> list[str]:
    return [field.name for kind in dataclasses for field in fields(kind) if field.init]


def _near(key: str, names: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(key, list(dict.fromkeys(names)), n=3, cutoff=0.7)
    return f", did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    given = {field.name: values[field.name] for field in fields(kind) if field.init}
    _check_values(given, get_type_hints(kind), where)
    try:
        return kind(**given)
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    except Exception as error:
        # TRL and transformers refuse some combinations in words of their own, by errors of any kind.
        what = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise UserError(f"{where}{what}{shortened(' '.join(str(error).split()), 400)}") from error


def _check_values(given: dict[str, Any], hints: dict[str, Any], where: str) -> None:
    """What neither YAML nor argparse looks at: words that only a library would refuse, in a list of 800 characters."""
    for key, value in given.items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{where}{key} is nan: give a number")
        parts = get_args(hints[key]) if _is_union(hints[key]) else [hints[key]]
        choices = [item.value for part in parts if isinstance(part, type) and issubclass(part, Enum) for item in part]
        if choices and isinstance(value, str) and not isinstance(value, Enum) and value not in choices:
            some = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
            raise UserError(
                f"{where}{key} is {shortened(repr(value))}{_near(value[:100], choices)} (there are {some})"
            )


def pick(kind: type, found: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` from those of `found` that it has; `found` may come from somebody else.

    Raises:
        UserError: a value of the wrong type, or one that the dataclass refuses.
    """
    hints = get_type_hints(kind)
    values = {field.name: found[field.name] for field in fields(kind) if field.init and field.name in found}
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise UserError(f"{where}: {key} wants {_describe(hints[key])}, got {shortened(repr(value))}")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _list_of_mappings(hint: Any) -> bool:
    if _is_union(hint):
        return any(_list_of_mappings(part) for part in get_args(hint))
    return get_origin(hint) is list and get_args(hint)[:1] in ((dict,), (dict[str, Any],))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value suits a field. Text that reads as a number is a number: YAML takes 1e-4 for text."""
    origin = get_origin(hint)
    if _is_union(hint):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, part) for item in value for part in get_args(hint)[:1])
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return not isinstance(value, bool) and (isinstance(value, int | float) or _reads_as_float(value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [item.value for item in hint]
    if hint in (str, list, dict) or origin in (dict, tuple):
        return isinstance(value, origin or hint)
    return True


def _reads_as_float(value: Any) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _describe(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    if _is_union(hint):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return " or ".join(dict.fromkeys(_describe(part) for part in parts))
    if get_origin(hint) is list or hint is list:
        inner = get_args(hint)
        return "a list" if not inner or inner[0] is Any else f"a list (of {_describe(inner[0])})"
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(item.value) for item in hint)
    return words.get(hint) or words.get(typing.get_origin(hint)) or getattr(hint, "__name__", str(hint))


def help_text(parser: Parser, dataclasses: tuple[type, ...], everything: bool = False) -> str:
    """Our own settings first, then the common ones of the trainer; with `everything` all of them."""
    actions = {action.dest: action for action in reversed(parser._actions) if action.option_strings}
    width = min(shutil.get_terminal_size().columns, 114)
    lines = [f"usage: {parser.prog} [--config FILE.yaml] [--setting VALUE ...] [--debug] [--help | --help-all]", ""]
    shown = set()
    for kind in dataclasses:
        own = kind.__module__.startswith("pipeline.") and len(fields(kind)) < 60
        names = [field.name for field in fields(kind) if field.init]
        if not own and not everything:
            fresh = {
                name
                for base in kind.__mro__
                if base.__module__.startswith("pipeline.")
                for name in base.__dict__.get("__annotations__", {})
            }
            names = [name for name in COMMON if name in names]
            names += sorted(fresh.intersection(actions).difference(names))
        names = [name for name in names if name not in shown]
        shown.update(names)
        lines += [f"{(kind.__doc__ or kind.__name__).strip().splitlines()[0]}", ""]
        lines += [line for name in names for line in _help_entry(actions[name], width)] + [""]
    rest = len(set(actions) - shown)
    if rest:
        lines.append(f"{rest} more settings of the trainer: --help-all")
    return "\n".join(lines)


def _help_entry(action: Any, width: int) -> list[str]:
    default = "" if action.default in (None, [], "") else f" [{action.default}]"
    text = " ".join((action.help or "").replace("%%", "%").split())
    head = f"  --{action.dest}"
    body = textwrap.wrap(text + default, max(width - 36, 40)) or [""]
    if len(head) > 34:
        return [head, *(" " * 36 + line for line in body)]
    return [f"{head:<36}{body[0]}", *(" " * 36 + line for line in body[1:])]
