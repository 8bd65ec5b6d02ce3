"""What a run saved loads with plain PEFT and Transformers where none of our code is, and says the same.

The second environment is a venv of its own that is given this one's libraries by a line in a .pth file. Python does
not read the .pth files of a folder that was added so: an editable install of this project, which is such a file, is
not there. So it has the same libraries and none of our code, which is checked there. Only the slow test at the end
installs anew from the package index.
"""

import json
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from finished_runs import make_run
from saved import make_adapter

from pipeline.config import ModelArguments
from pipeline.hub.card import write_card
from pipeline.models import loading as models
from pipeline.stages.merge import MergeArguments, merge

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["say red =>\nIt is red.</s>", "It is a longer text than the other.</s>"]
# Runs in the second environment: the lines that load each model as its card gives them, then plain Transformers.
SCRIPT = """
import importlib.util, json, sys
import torch
for name in ("pipeline", "rewards", "recipes", "tests"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported here"
found = {}
for name, lines in json.load(open("cases.json")).items():
    space = {}
    exec(lines, space)
    model, tokenizer = space["model"].eval(), space["tokenizer"]
    batch = tokenizer(json.load(open("texts.json")), return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    if logits.dim() == 3:
        each = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        logits = each * batch["attention_mask"][:, 1:]
    found[name] = {"numbers": logits.tolist(), "type": type(model).__name__}
json.dump(found, open("found.json", "w"))
"""


def lines_of(card: Path) -> str:
    """The first Python of a card: how to load it."""
    return re.search(r"```python\n(.*?)\n```", card.read_text(), re.DOTALL)[1]


@torch.no_grad()
def numbers(model, tokenizer) -> torch.Tensor:
    """Log-probabilities of the texts' tokens, each text alone, zeros behind the shorter one; or scores, (N, 1)."""
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()[0]
        if logits.dim() == 1:
            rows.append(logits)
        else:
            rows.append(torch.stack([logits[t].log_softmax(-1)[ids[0, t + 1]] for t in range(ids.shape[1] - 1)]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def stage_folder(name: str, base: str, scores: bool = False, dtype: str = "float32"):
    """runs/x/<name> as a stage leaves it, and what our own code says with it: (adapter on, adapter off)."""
    path = Path("runs/x", name)
    config = {"output_dir": str(path), "dtype": dtype}
    make_run(path, "reward" if scores else "sft", summary={"dtype": dtype}, config=config)
    make_adapter(base, path, value=0.05, scores=scores, dtype=dtype)
    build_tokenizer().save_pretrained(path)
    write_card(path)
    args = ModelArguments(dtype=dtype)
    tokenizer = models.load_tokenizer(str(path), args)
    model = models.load_base(args, "scores" if scores else "causal", base=base, tokenizer=tokenizer)
    model = models.load_adapter(model, str(path))
    ours = numbers(model, tokenizer)
    with model.disable_adapter():
        return ours, numbers(model, tokenizer)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """name -> (what our code says, what the base says, what the second environment found)"""
    project = tmp_path_factory.mktemp("project")
    libraries = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    if any(Path(folder, "pipeline").exists() for folder in libraries):
        pytest.skip("this project is not installed in editable form: its code lies among the libraries")
    venv.create(project / "second", with_pip=False, symlinks=True)
    [inner] = (project / "second").glob("lib/python3*/site-packages")
    (inner / "libraries.pth").write_text("".join(f"{folder}\n" for folder in sorted(libraries)))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        build_model().save_pretrained("runs/x/base")
        build_tokenizer().save_pretrained("runs/x/base")
        # more embeddings than tokens, saved in bfloat16, trained in float32; no pad token of its own
        build_model(vocab_size=320, pad_token_id=None).to(torch.bfloat16).save_pretrained("runs/x/wide")
        build_tokenizer().save_pretrained("runs/x/wide")
        wanted = {
            "policy": stage_folder("policy", "runs/x/base"),
            "reward": stage_folder("reward", "runs/x/base", scores=True),
            "wide-policy": stage_folder("wide-policy", "runs/x/wide"),
            "wide-reward": stage_folder("wide-reward", "runs/x/wide", scores=True),
        }
        cases = {name: lines_of(Path("runs/x", name, "README.md")) for name in wanted}
        # as one would write it without the card
        tokenizer = "tokenizer = transformers.AutoTokenizer.from_pretrained"
        cases["bare policy"] = f"import peft, transformers\n{tokenizer}('runs/x/policy')\n" + (
            "model = peft.AutoPeftModelForCausalLM.from_pretrained('runs/x/policy')"
        )
        cases["bare reward"] = f"import peft, transformers\n{tokenizer}('runs/x/reward')\n" + (
            "model = peft.AutoPeftModelForSequenceClassification.from_pretrained('runs/x/reward', num_labels=1)"
        )
        for name in ("policy", "reward"):
            wanted[f"bare {name}"] = wanted[f"merged {name}"] = wanted[name]
            merge(MergeArguments(run=f"runs/x/{name}", output=f"runs/x/merged-{name}"))
            cases[f"merged {name}"] = lines_of(Path(f"runs/x/merged-{name}/README.md")).replace(
                "path/to/this/folder", f"runs/x/merged-{name}"
            )
        Path("cases.json").write_text(json.dumps(cases))
        Path("texts.json").write_text(json.dumps(TEXTS))
        found = in_environment(project / "second/bin/python", project)
    return {name: (*wanted[name], found[name]) for name in cases}


def in_environment(python: Path, project: Path) -> dict:
    (project / "script.py").write_text(SCRIPT)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(project)}
    done = subprocess.run(
        [python, "-I", "script.py"], cwd=project, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((project / "found.json").read_text())


CASES = {
    "policy": "PeftModelForCausalLM",
    "reward": "PeftModelForSequenceClassification",
    "wide-policy": "PeftModelForCausalLM",
    "wide-reward": "PeftModelForSequenceClassification",
    "bare policy": "PeftModelForCausalLM",
    "bare reward": "PeftModelForSequenceClassification",
    "merged policy": "LlamaForCausalLM",
    "merged reward": "LlamaForSequenceClassification",
}


@pytest.mark.parametrize("name", CASES)
def test_it_says_the_same_without_our_code(loaded, name):
    ours, base, found = loaded[name]
    theirs = torch.tensor(found["numbers"])
    assert found["type"] == CASES[name]
    assert (theirs - ours).abs().max() < 1e-5
    assert (ours - base).abs().max() > 1e-3  # the adapter does something: leaving it out would show


def test_the_card_loads_it_in_three_lines(tmp_path):
    lines = lines_of(write_card(make_run(tmp_path), repo_id="me/mine"))
    assert lines.splitlines() == [
        "import peft, transformers",
        'tokenizer = transformers.AutoTokenizer.from_pretrained("me/mine")',
        'model = peft.AutoPeftModelForCausalLM.from_pretrained("me/mine", dtype="float32")',
    ]


@pytest.mark.slow
def test_it_loads_in_an_environment_installed_anew(tmp_path, monkeypatch):
    """torch, transformers and peft by pip at the pins of constraints.txt, and nothing else."""
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.split("==")[0] in ("torch", "transformers", "peft")
    ]
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh/bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    peft = next(pin for pin in pins if pin.startswith("peft"))
    tried = subprocess.run([*pip, "download", "--no-deps", "--retries", "0", "-d", tmp_path / "try", peft])
    if tried.returncode:
        pytest.skip("no package index can be reached")
    subprocess.run([*pip, "install", "-c", ROOT / "constraints.txt", *pins], check=True, timeout=3000)
    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained("runs/x/base")
    build_tokenizer().save_pretrained("runs/x/base")
    wanted = {"policy": stage_folder("policy", "runs/x/base"), "reward": stage_folder("reward", "runs/x/base", True)}
    Path("cases.json").write_text(json.dumps({name: lines_of(Path(f"runs/x/{name}/README.md")) for name in wanted}))
    Path("texts.json").write_text(json.dumps(TEXTS))
    found = in_environment(python, tmp_path)
    for name, (ours, _) in wanted.items():
        assert (torch.tensor(found[name]["numbers"]) - ours).abs().max() < 1e-5
    shutil.rmtree(tmp_path / "fresh")
