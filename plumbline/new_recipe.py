"""`plumbline init my-recipe --like tiny`: a folder of YAMLs of one's own; `plumbline recipes`: what there is."""

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from pipeline.errors import UserError
from pipeline.safety.commands import Parser
from pipeline.safety.console import say
from plumbline.commands import COMMANDS
from plumbline.launching import recipes

HARDWARE = "accelerate"  # the one folder in recipes/ that is no recipe
ORDER = ("base", "sft", "reward", "ppo", "samples", "ilql", "eval")
# Settings that name what a run reads: it must be there, or be made by an earlier stage.
READ = ("dataset", "eval_dataset", "data_path", "model_name_or_path")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def names() -> list[str]:
    """Of the recipes that come along."""
    return sorted(path.name for path in recipes().iterdir() if path.is_dir() and path.name != HARDWARE and yamls(path))


def yamls(folder: Path) -> list[Path]:
    """The YAMLs of a recipe, in the order in which they are run."""
    rank = {stage: place for place, stage in enumerate(ORDER)}
    return sorted(folder.glob("*.yaml"), key=lambda path: (rank.get(command_of(path), len(rank)), path.stem))


def command_of(path: Path) -> str:
    """The command that takes a YAML: `ppo` for ppo.yaml and ppo_4bit.yaml."""
    name = path.stem.split("_")[0]
    return "samples" if name == "sample" else name


def show(arguments: list[str]) -> int:
    """`plumbline recipes`."""
    parser = Parser("plumbline recipes", description="The recipes that come along, for `plumbline init --like`.")
    parser.parse_args(arguments)
    for name in names():
        files = yamls(recipes() / name)
        about = next((path for path in files if path.stem == "ppo"), files[0])
        say(f"{name:<19}{_first_sentence(about)}")
        say(f"{'':<19}{', '.join(path.stem for path in files)}")
    say(f"\nThey lie in {recipes()}. A copy of your own: plumbline init my-recipe --like tiny")
    return 0


def main(arguments: list[str]) -> int:
    """`plumbline init`."""
    parser = Parser("plumbline init", description="A recipe of your own: a folder of YAMLs, one for each stage.")
    parser.add_argument("folder", help="the new folder; its last part is the recipe's name: results go to runs/<name>")
    parser.add_argument("--like", default="tiny", metavar="RECIPE", help="one of `plumbline recipes` (tiny)")
    args = parser.parse_args(arguments)
    folder = write(Path(args.folder), args.like)
    files = yamls(folder)
    say(f"{folder}: {', '.join(path.name for path in files)}")
    if missing := list(to_be_set(files)):
        say("Before the first run:")
        for line in missing:
            say(f"  {line}")
    say("How long it will take here:")
    say(f"  plumbline doctor {folder}")
    say("Then, one after the other:")
    there = {path.stem for path in files}
    for stage in (stage for stage in ("base", "sft", "reward", "ppo", "eval") if stage in there):
        say(f"  plumbline {stage} --config {folder / stage}.yaml")
    return 0


def write(folder: Path, like: str) -> Path:
    """Writes the recipe `like` into the new `folder`, with the paths and commands of its new name.

    Raises:
        UserError: no such recipe, a name that cannot stand in a path, or something is there already.
    """
    if like not in names():
        close = difflib.get_close_matches(like, names(), n=2, cutoff=0.5)
        hint = f", did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"--like {like[:100]}: there is no such recipe{hint} (there are {', '.join(names())})")
    if any(part != ".." and not NAME.fullmatch(part) for part in folder.parts if part != folder.anchor):
        raise UserError(
            f"{str(folder)[:200]!r}: make the name of letters, digits, dots, - and _; it becomes part of paths"
        )
    name = folder.name
    if not NAME.fullmatch(name) or name in ("..", HARDWARE):
        raise UserError(f"{str(folder)[:200]!r}: the folder needs a name of its own, such as my-recipe")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists already: give another name, nothing is overwritten")
        texts = {path.name: adapted(path.read_text("utf-8"), like, folder) for path in yamls(recipes() / like)}
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with (folder / file).open("x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): give another folder") from None
    return folder


def adapted(text: str, like: str, folder: Path) -> str:
    """A YAML of the recipe `like` as one of the recipe in `folder`: paths, and the commands in its comments."""
    text = re.sub(rf"\bruns/{re.escape(like)}(?![\w-])", f"runs/{folder.name}", text)
    text = re.sub(r"`make (?P<targets>[a-z0-9_ ]+?)(?P<rest> RECIPE=[^`]*)?`", lambda m: _typed(m, like, folder), text)
    text = re.sub(r"(after|for|first): make (?P<targets>[a-z ]+?)(?P<rest> RECIPE=\S+)", _plain(like, folder), text)
    text = re.sub(r"\bpython recipes/(\w+)\.py", r"plumbline \1", text)
    text = re.sub(rf"\brecipes/{re.escape(like)}(?![\w-])", str(folder), text)
    return f"{text.rstrip()}\n\n# What a setting means: plumbline COMMAND --help; all that there are: --help-all\n"


def _typed(found: re.Match[str], like: str, folder: Path) -> str:
    return f"`{_commands(found, like, folder)}`"


def _plain(like: str, folder: Path) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{found[1]}: {_commands(found, like, folder)}"


def _commands(found: re.Match[str], like: str, folder: Path) -> str:
    """`make sft RECIPE=recipes/hh ARGS="--seed 1"` as a command of ours."""
    flags = re.search(r'ARGS="(.*?)"', found["rest"] or "")
    recipe = re.search(r"RECIPE=recipes/([\w-]+)", found["rest"] or "")
    home = folder if recipe is None or recipe[1] == like else Path(recipe[1])
    lines = []
    for target in found["targets"].split():
        command = target if target in COMMANDS else target.split("_")[0]
        what = home if command in ("compare", "seeds") else f"--config {home / _file(target)}.yaml"
        lines.append(f"plumbline {command} {what}{' ' + flags[1] if flags else ''}")
    return "; ".join(lines)


def _file(target: str) -> str:
    return "sample" if target == "samples" else target


def to_be_set(files: list[Path]) -> Iterator[str]:
    """One line for each file or folder that a recipe reads and that neither is there nor is made by its stages."""
    wanted: dict[str, list[str]] = {}
    for path in files:
        settings = yaml.safe_load(path.read_text("utf-8"))
        for key in READ:
            value = settings.get(key)
            if isinstance(value, str) and _is_missing(value, f"runs/{path.parent.name}/", key == "model_name_or_path"):
                wanted.setdefault(f"{key}: {value}", []).append(path.name)
    for value, places in wanted.items():
        yield f"{value} is not here: name one of yours in {', '.join(places)}"


def _is_missing(value: str, made: str, is_model: bool) -> bool:
    """Whether `value` is a path of something that is not here; what begins with `made` the stages make."""
    if value.startswith("runs/"):
        return not value.startswith(made) and not Path(value).exists()
    if is_model:  # Qwen/Qwen2.5-0.5B looks like a path
        return False
    local = value.startswith(("..", "./", "/")) or "." in Path(value).name
    first = re.sub(r"\{(\w+)(,\w+)*\}", r"\1", value)  # train.{en,de}: of its files the first
    return local and ":" not in value and not Path(first).exists()


def _first_sentence(path: Path) -> str:
    """Of the comment at the top of a YAML."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=\.)\s", " ".join(lines) + " ")[0]
