"""Every command of the documents is read by make's rules and by the programs' own parsers, to the last flag."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from documents import blocks, inline_code, pages, save_titled
from house import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(" ".join(re.findall(r"^([a-z0-9 -]+):(?!=)", MAKEFILE, re.MULTILINE)).split())
VARIABLES = set("RECIPE ARGS NPROC HARDWARE RESUME VENV PYTHON EXTRAS RUNS REPO SEEDS LAST JOBS".split())
SCRIPT_OF = dict.fromkeys(("a2c", "reinforce"), "ppo") | {"samples": "sample"}
# Programs that others make, or that a shell has; what follows them is theirs.
OTHERS = "git cd mkdir cp export printf cat source for do done time pytest .ci/run .venv/bin/pre-commit".split()
OTHERS += "vllm transformers hf tensorboard trackio mlflow plumbline".split()
PLACEHOLDER = re.compile(r"…|\.\.\.|<|\$|\bX\b|\bx\.yaml\b")


def logical_lines(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def commands_in(line: str) -> list[list[str]]:
    """The simple commands of a line, each as words; what sets variables before one is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";|&"):
            found.append([])
        elif found[-1] or word == "do" or not re.match(r"[A-Z_]+=", word):
            if word != "do":
                found[-1].append(word)
    return [words for words in found if words]


def shown() -> list[tuple[str, Path, str]]:
    """Where, the page, and a line for each command of the documents: in blocks, and those inside of sentences."""
    found = []
    for page in pages():
        for block in blocks(page):
            if block.language == "bash":
                found += [(str(block), page, line) for line in logical_lines(block.text)]
        if page.name != "CHANGELOG.md":  # which tells of what was
            starts = ("make ", "python ", "accelerate launch ", "pip install ")
            inside = [code for code in inline_code(page) if code.startswith(starts) and not PLACEHOLDER.search(code)]
            inside = [
                code for code in inside if not re.fullmatch(r"(python -m|accelerate launch) [\w./]+", code)
            ]  # named, not typed
            found += [(f"{page.relative_to(ROOT)} (inside of a sentence)", page, code) for code in inside]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """page -> a folder with the recipes of this repository and the files that the page lets its reader write."""

    class Folders(dict):
        def __missing__(self, page: Path) -> Path:
            folder = self[page] = tmp_path_factory.mktemp("reader")
            (folder / "recipes").mkdir()
            for path in (ROOT / "recipes").iterdir():
                (folder / "recipes" / path.name).symlink_to(path)
            save_titled(page, folder)
            return folder

    return Folders()


def python_commands(words: list[str], folder: Path) -> list[list[str]]:
    """The Python programs that a command starts, as words behind `python`. AssertionError: it cannot be one."""
    program, *rest = words
    if program == "make":
        return made(rest, folder)
    if program == "python":
        return [rest] if not (folder / rest[0]).exists() or rest[0].startswith("recipes/") else []
    if program == "accelerate" and "-m" in rest:
        return []
    if program in ("accelerate", "sbatch"):
        files = [word for word in rest if word.endswith((".yaml", ".sbatch"))]
        assert all((folder / name).exists() for name in files), files
        if program == "sbatch":
            at = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
            return [[f"recipes/{rest[at + 1]}.py", *rest[at + 2 :]]]
        at = next((i for i, word in enumerate(rest) if word.endswith(".py")), None)
        return [] if at is None else [rest[at:]]
    if program == "pip":
        extras = set(re.findall(r"\[([a-z,]+)\]", " ".join(rest)))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        assert {name for group in extras for name in group.split(",")} <= set(known), extras
        return []
    assert program in OTHERS, f"{program} is no program that the documents know"
    return []


def made(words: list[str], folder: Path) -> list[list[str]]:
    """What `make` would start of the stages' scripts, with their YAML and ARGS."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert set(given) <= VARIABLES, set(given) - VARIABLES
    targets = [word for word in words if "=" not in word]
    recipe = given.get("RECIPE", "recipes/tiny")
    if recipe != "recipes/mine":  # which the reader has yet to write
        assert (folder / recipe).is_dir(), recipe
    if "HARDWARE" in given:
        assert (ROOT / f"recipes/accelerate/{given['HARDWARE']}.yaml").is_file(), given["HARDWARE"]
    for target in targets:
        assert target in TARGETS or target.startswith("ppo_"), f"make has no target {target}"
    found = []
    if recipe != "recipes/mine":
        found = [command for target in targets for command in launched(target, recipe, folder)]
    if found:
        found[0] += shlex.split(given.get("ARGS", ""))
    return found


def launched(target: str, recipe: str, folder: Path) -> list[list[str]]:
    """The program behind a target, with the flags that the Makefile gives it."""
    run = f"runs/{Path(recipe).name}/ppo"
    others = {"report": ["-m", "pipeline.report", run], "chat": ["-m", "pipeline.chat", run]}
    others |= {"judge": ["recipes/judge.py", "--samples", f"{run}/samples.jsonl", "--output_dir", "x"]}
    others |= {"merge": ["recipes/merge.py", "--run", run, "--output", "x"]}
    others |= {"push": ["recipes/push.py", "--run", run, "--repo", "account/name"]}
    others |= {"compare": ["recipes/compare.py", recipe], "seeds": ["recipes/seeds.py", recipe, "0"]}
    if target in others:
        return [others[target]]
    script = "ppo" if target.startswith("ppo_") else SCRIPT_OF.get(target, target)
    config = folder / recipe / f"{'sample' if target == 'samples' else target}.yaml"
    if not (ROOT / f"recipes/{script}.py").is_file() or (target == "base" and not config.exists()):
        return []
    assert config.is_file(), f"{recipe} has no {config.name}"
    return [[f"recipes/{script}.py", "--config", f"{recipe}/{config.name}"]]


def test_each_command_is_read_by_the_program_that_it_names(folders, warm, tmp_path):
    refused, commands = [], []
    for where, page, line in shown():
        if PLACEHOLDER.search(line) and not line.startswith(("python recipes", "make ppo ARGS")):
            continue
        for words in commands_in(line):
            try:
                found = python_commands(words, folders[page])
            except (AssertionError, StopIteration) as error:
                refused.append(f"{where}: {line.strip()}: {error}")
                continue
            for command in found:
                config = command.index("--config") + 1 if "--config" in command else None
                if config and command[config].startswith("runs/"):  # what an earlier command has written
                    own = f"recipes/tiny/{Path(command[0]).stem}.yaml"
                    command[config - 1 : config + 1] = ["--config", own] if (ROOT / own).is_file() else []
                commands.append([where, str(folders[page]), command])
    assert len(commands) > 60
    (tmp_path / "commands.json").write_text(json.dumps(commands), "utf-8")
    done = warm.run([str(ROOT / "tests/support/parse_commands.py"), str(tmp_path / "commands.json")], tmp_path)
    assert done.returncode == 0, done.stderr
    # what the reader makes first, or installs
    later = ("[Errno 2] No such file", "needs a package that is not installed")
    refused += [line for line in done.stdout.splitlines() if not any(sign in line for sign in later)]
    assert not refused, "\n".join(refused)


def test_bash_reads_every_block():
    for page in pages():
        for block in blocks(page):
            if block.language == "bash":
                read = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
                assert read.returncode == 0, f"{block}: {read.stderr}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A=1 make ppo NPROC=2 # why", [["make", "ppo", "NPROC=2"]]),
        ("cd x && make sft; make ppo", [["cd", "x"], ["make", "sft"], ["make", "ppo"]]),
        ("printf 'a|b' | python -m x", [["printf", "a|b"], ["python", "-m", "x"]]),
    ],
)
def test_a_line_falls_into_commands(line, words):
    assert commands_in(line) == words


def test_what_make_would_start_is_found_with_its_flags(folders):
    folder = folders[ROOT / "README.md"]
    line = 'make ppo RECIPE=recipes/tiny ARGS="--kl_coef 0.1"'
    assert python_commands(shlex.split(line), folder) == [
        ["recipes/ppo.py", "--config", "recipes/tiny/ppo.yaml", "--kl_coef", "0.1"]
    ]
    for wrong in (
        "make pop",
        "make ppo RECIPE=recipes/tyni",
        "make ppo HARDWARE=gpuz",
        "make ppo NPROC_=2",
        "mkae ppo",
    ):
        with pytest.raises(AssertionError):
            python_commands(wrong.split(), folder)
