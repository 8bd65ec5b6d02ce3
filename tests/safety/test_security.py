"""Nothing that a model, a data set, a checkpoint or a run of somebody else brings is run; secrets stay secret."""

import ast
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
import yaml
from house import ROOT, python_files
from safetensors.torch import load_file

from pipeline import cli
from pipeline.chat.speakers import settings_of_run
from pipeline.config import ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.eval.candidates import read_candidates
from pipeline.models import loading as models
from pipeline.ppo.critic import Critic
from pipeline.runs import checkpoint_files
from pipeline.safety.redaction import is_secret, redact
from pipeline.stages.merge import MergeArguments, merge
from rewards import Learned, Perplexity, Relevance, RewardError

ROOMS = ("pipeline", "rewards", "recipes")
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "joblib.load", "runpy.run_path", "runpy.run_module"),
    *("pickle.Unpickler", "dill.load", "dill.loads", "marshal.loads", "shelve.open", "torch.hub.load"),
}
# Where the rule has an exception, and why it is none.
ALLOWED = {
    ("pipeline/worlds/__init__.py", "importlib.import_module"): "of the fixed list WORLDS",
    ("rewards/__init__.py", "importlib.import_module"): "of the fixed list of its names",
    ("rewards/build.py", "importlib.import_module"): "the registry, and `module:function` that the recipe names",
    ("rewards/sandbox_runner.py", "compile"): "the completion's code, in a process that is locked in",
    ("rewards/sandbox_runner.py", "exec"): "the completion's code, in a process that is locked in",
    ("rewards/code.py", "compile"): "parsing only",
    ("pipeline/card/__main__.py", "runpy.run_module"): "one fixed name",
    ("rewards/check.py", "runpy.run_module"): "one fixed name",
    ("pipeline/data/exact_rows.py", "importlib.import_module"): "modules of datasets, by a fixed list of names",
    ("pipeline/ppo/setup.py", "importlib.import_module"): "`module:function` that the recipe names",
    ("pipeline/rollouts/environments.py", "importlib.import_module"): "`module:Class` that the recipe names",
}


# ------------------------------------------------------------ the rules
def breaches(source: str, file: str = "x.py") -> list[str]:
    """Calls in `source` that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [
                f"import {name}" for name in names if name.split(".")[0] in ("pickle", "dill", "marshal", "shelve")
            ]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN or name.endswith("import_module"):
            found.append(name)
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            found.append("torch.load")
        if name.endswith("yaml.load") and "Safe" not in keywords.get("Loader", ""):
            found.append("yaml.load")
        if name.endswith((".load", ".loadtxt")) and keywords.get("allow_pickle", "False") != "False":
            found.append("allow_pickle")
        # what a person said in as many words, never a constant
        if keywords.get("trust_remote_code", "False") not in ("False", "args.trust_remote_code"):
            found.append("trust_remote_code")
        if keywords.get("shell", "False") != "False":
            found.append("shell")
    return [name for name in found if (file, name) not in ALLOWED]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "eval(x)",
            "torch.load(f)",
            "torch.load(f, weights_only=False)",
            "import pickle",
            "from pickle import loads",
        ),
        *("yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)", "yaml.unsafe_load(f)", "np.load(f, allow_pickle=True)"),
        *("A.from_pretrained(p, trust_remote_code=True)", "subprocess.run(c, shell=True)", "import_module(name)"),
    ],
)
def test_the_rules_are_seen_to_be_broken(line):
    assert breaches(line)


def test_the_rules_let_the_rest_through():
    good = "torch.load(f, weights_only=True); yaml.safe_load(f); model.eval(); re.compile(x)"
    assert breaches(good + "; A.from_pretrained(p, trust_remote_code=args.trust_remote_code)") == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_line_of_ours_runs_what_a_file_says(room):
    found = {}
    for path in python_files(room):
        name = str(path.relative_to(ROOT))
        if wrong := breaches(path.read_text("utf-8"), name):
            found[name] = wrong
    assert found == {}


def test_remote_code_is_off_unless_it_is_asked_for(tmp_path):
    (model,) = cli.parse(ModelArguments, argv=[])
    assert model.trust_remote_code is False
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert "trust_remote_code" not in path.read_text("utf-8")


# ------------------------------------------------------------ pickles that would make a file
class Evil:
    """Whoever unpickles it makes the file `at`."""

    def __init__(self, at: Path):
        self.at = at

    def __reduce__(self):
        return os.mkdir, (str(self.at),)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


def test_the_payload_does_what_it_says(canary):
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of PPO. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("run")
    toy.make_trainer(folder, save_strategy="steps", save_steps=1).train()
    return folder / "checkpoint-1"


def sealed(folder: Path) -> None:
    """Gives a checkpoint that was changed a manifest that says nothing of it."""
    manifest = checkpoint_files.read_manifest(folder)
    (folder / checkpoint_files.MANIFEST).unlink()
    aside = folder.rename(folder.with_name("aside"))
    checkpoint_files.seal(aside, folder, {name: manifest[name] for name in ("step", "inputs", "whole")})
    assert checkpoint_files.damage(folder) is None


@pytest.mark.parametrize("form", ["zip", "plain"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_of_somebody_else_runs_nothing(checkpoint, tmp_path, canary, name, form):
    evil = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    assert (evil / name).is_file()
    if form == "zip":
        torch.save({"state": Evil(canary), "param_groups": Evil(canary)}, evil / name)
    else:
        (evil / name).write_bytes(pickle.dumps(Evil(canary)))
    sealed(evil)
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    trainer = toy.make_trainer(tmp_path / "again")
    with pytest.raises(UserError) as caught:
        trainer.train(resume_from_checkpoint=str(evil))
    said = str(caught.value)
    assert not canary.exists()
    assert said.startswith(str(evil)) and said.endswith("give an earlier checkpoint") and "\n" not in said
    assert "weights_only" not in said  # torch's own words advise to read it all the same
    random.setstate(kept[0]), np.random.set_state(kept[1]), torch.set_rng_state(kept[2])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("trainer_state.json", "{", "trainer_state.json is not JSON"),
        ("trainer_state.json", '{"global_step": "1"}', "global_step is text, but wants a whole number"),
        ("trainer_state.json", '{"global_step": -1}', "global_step is -1"),
        ("ppo_state.json", '{"micro_step": 0}', "kl_coef is missing"),
        ("adapter_model.safetensors", "", "is truncated or damaged"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(checkpoint, tmp_path, name, content, says):
    broken = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (broken / name).write_text(content)
    sealed(broken)
    with pytest.raises(UserError, match=says) as caught:
        toy.make_trainer(tmp_path / "again").train(resume_from_checkpoint=str(broken))
    assert "\n" not in str(caught.value)


def test_supervised_stages_and_grpo_read_checkpoints_in_the_same_way(tmp_path):
    from pipeline.runs.checkpoint_loading import ReadsCheckpoints
    from pipeline.stages.reward_model import Reward
    from pipeline.stages.sft import SFT
    from pipeline.stages.trl_stage import CountedGRPO, CountedRLOO

    for trainer in (SFT, Reward, CountedGRPO, CountedRLOO):
        assert issubclass(trainer, ReadsCheckpoints)
        assert trainer._load_rng_state is ReadsCheckpoints._load_rng_state


# ------------------------------------------------------------ weights in a pickle
@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_model_folder) -> Path:
    """`base`, and the adapters `sft` and `reward` on it. Copy them before you change them."""
    from peft import get_peft_model

    root = tmp_path_factory.mktemp("good")
    shutil.copytree(tiny_model_folder, root / "base")
    args = ModelArguments(str(root / "base"), lora_r=2)
    tokenizer = models.load_tokenizer(str(root / "base"))
    for name, task, kind in (("sft", "CAUSAL_LM", "causal"), ("reward", "SEQ_CLS", "scores")):
        model = models.load_base(args, kind, tokenizer=tokenizer)
        get_peft_model(model, models.lora_config(args, task)).save_pretrained(root / name)
    return root


def pickled(folder: Path, canary: Path) -> str:
    """Puts the weights in `folder` into a pickle with something else in it."""
    for path in folder.glob("*.safetensors"):
        name = "adapter_model.bin" if path.name.startswith("adapter") else "pytorch_model.bin"
        torch.save(load_file(path) | {"x": Evil(canary)}, folder / name)
        path.unlink()
    return str(folder)


LOADERS = {
    "base": lambda path, other: models.load_base(ModelArguments(path), base=path),
    "sft": lambda path, other: models.load_adapter(models.load_base(ModelArguments(other)), path),
    "adapter_path": lambda path, other: models.resolve_model(ModelArguments(other, adapter_path=path)),
    "eval": lambda path, other: read_candidates([{"x": path}], ModelArguments()),
    "merge": lambda path, other: merge(MergeArguments(path, f"{path}-merged")),
    "learned": lambda path, other: Learned(path, device="cpu")(["a"], ["b"]),
    "perplexity": lambda path, other: Perplexity(path, device="cpu")(["a"], ["b"]),
    "relevance": lambda path, other: Relevance(path).model,
    "critic": lambda path, other: Critic(toy.with_sft_adapter(), path),
}


@pytest.mark.parametrize("decoy", [False, True], ids=["alone", "beside other safetensors"])
@pytest.mark.parametrize("loader", LOADERS)
def test_weights_in_a_pickle_are_refused_everywhere(good, tmp_path, canary, loader, decoy):
    kind = {"base": "base", "relevance": "base", "learned": "reward", "critic": "reward"}.get(loader, "sft")
    folder = shutil.copytree(good / kind, tmp_path / kind)
    path = pickled(folder, canary)
    if decoy and kind != "base":  # of another name: it must not be taken for the weights
        shutil.copy(good / "base/model.safetensors", folder / "other.safetensors")
    with pytest.raises((UserError, RewardError)) as caught:
        LOADERS[loader](path, str(good / "base"))
    assert not canary.exists() and "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("pickle", "safetensors")), str(caught.value)


def test_a_pickle_under_the_name_of_safetensors_is_no_weights(good, tmp_path, canary):
    for kind in ("base", "sft"):
        folder = shutil.copytree(good / kind, tmp_path / kind)
        torch.save({"x": Evil(canary)}, next(folder.glob("*.safetensors")))
    with pytest.raises(UserError, match="no usable model"):
        LOADERS["base"](str(tmp_path / "base"), "")
    with pytest.raises(UserError, match="is truncated or damaged"):
        LOADERS["sft"](str(tmp_path / "sft"), str(good / "base"))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "of which only LORA is read"),
        (
            {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            r"names code to be loaded",
        ),
    ],
)
def test_an_adapter_that_names_code_is_refused(good, tmp_path, changes, says):
    for kind, load in (("sft", LOADERS["sft"]), ("sft", LOADERS["perplexity"]), ("reward", LOADERS["learned"])):
        folder = shutil.copytree(good / kind, tmp_path / kind, dirs_exist_ok=True)
        config = json.loads((good / kind / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises((UserError, RewardError), match=says):
            load(str(folder), str(good / "base"))


def test_remote_code_beside_a_model_is_not_run(good, tmp_path, canary):
    folder = shutil.copytree(good / "base", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    with pytest.raises(UserError, match="trust_remote_code"):
        LOADERS["base"](str(folder), "")
    with pytest.raises(RewardError, match="never runs that"):
        LOADERS["perplexity"](str(folder), "")
    assert not canary.exists()


# ------------------------------------------------------------ what is imported, and when
def test_a_run_of_somebody_else_imports_nothing(tmp_path, monkeypatch, capsys, canary):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evilreward.py").write_text(f"import os\nos.mkdir({str(canary)!r})\ndef f(**c): return [0.0]\n")
    inner = {"name": "mixture", "rewards": [{"name": "evilreward:f"}]}
    gate = {"name": "gate", "condition": {"name": "evilreward:f"}, "rewards": ["bleu"]}
    rewards = [{"name": "keyword", "column": "a"}, {"name": "evilreward:f"}, inner, gate]
    settings = {"rewards": rewards, "trust_remote_code": True, "dataset": "evilreward:f"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    found, model, _ = settings_of_run(tmp_path, own_code=False)
    assert found["rewards"] == rewards[:1] and model.trust_remote_code is False and not canary.exists()
    assert "--own_code" in capsys.readouterr().out
    found, model, _ = settings_of_run(tmp_path, own_code=True)  # a person has said so
    assert found["rewards"] == rewards and model.trust_remote_code is True


def test_data_that_looks_like_a_reward_is_data(tmp_path, monkeypatch, canary):
    from pipeline.config import DataArguments
    from pipeline.data import loading as data

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evildata.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    text = "evildata:f"
    rows = [{"prompt": text, "completion": f"!!python/name:evildata.f {i}", "name": text} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _ = data.load(DataArguments("rows.jsonl"), "sft")
    assert train["name"] == [text] * 2 and not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "output_dir: !!python/object/apply:os.mkdir ['{canary}']\n",
        "output_dir: !!python/object/new:os.mkdir ['{canary}']\n",
        "? !!python/object/apply:os.mkdir ['{canary}']\n: 1\n",
    ],
)
def test_yaml_makes_no_objects(tmp_path, canary, text):
    path = tmp_path / "a.yaml"
    path.write_text(text.format(canary=canary))
    with pytest.raises(UserError, match="not valid YAML"):
        cli.parse(SFTStage, argv=["--config", str(path)])
    assert not canary.exists()


def test_a_few_lines_that_stand_for_millions_are_refused(tmp_path):
    # nine lists of nine: 9^9 values
    bomb = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9))
    for text, says in ((bomb, "begins more than 100,000 values"), ("a: &a [*a]\n", "line 1 has an alias of itself")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            cli.parse(SFTStage, argv=["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("output_dir: &a out\nrun_name: *a\n")  # an alias alone is welcome
    (config,) = cli.parse(SFTStage, argv=["--config", str(tmp_path / "a.yaml")])
    assert (config.output_dir, config.run_name) == ("out", "out")


# ------------------------------------------------------------ secrets
def test_what_is_a_secret():
    secret = ("hub_token", "push_to_hub_token", "token", "api_key", "openai_api_key", "apikey", "password", "hf_token")
    assert all(map(is_secret, secret))
    plain = ("eos_token", "pad_token", "max_tokens", "tokenize", "dataset_text_field", "token_ends", "seed")
    assert not any(map(is_secret, plain))


def test_secrets_are_struck_out_of_any_text(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MAX_TOKENS_SEEN", "ordinary")
    monkeypatch.setattr("sys.argv", ["x", "--hub_token", "plainsecret", "--hub-token=another1", "--seed", "123456"])
    text = "a 0123456789abcdef b plainsecret c another1 d hf_abcdefgh e ordinary f 123456"
    assert redact(text) == "a *** b *** c *** d *** e ordinary f 123456"


def test_a_token_in_the_wrong_place_is_not_repeated(tmp_path):
    (tmp_path / "a.yaml").write_text("hub_token: [canarysecret]\n")
    with pytest.raises(UserError, match="hub_token wants text, got something else") as caught:
        cli.parse(SFTStage, argv=["--config", str(tmp_path / "a.yaml")])
    assert "canarysecret" not in str(caught.value)


def test_secrets_within_settings_are_not_written_down(tmp_path):
    from pipeline.runs.folder import settings_of

    kept = {"token": "canarysecret", "a": 1}
    config = SFTStage(str(tmp_path), hub_token="canarysecret", lr_scheduler_kwargs=kept)
    written = settings_of(config)
    assert "canarysecret" not in yaml.safe_dump(written) and written["lr_scheduler_kwargs"] == {"a": 1}
    with pytest.raises(UserError, match="model_init_kwargs") as caught:
        SFTStage(str(tmp_path), model_init_kwargs=kept)
    assert "canarysecret" not in str(caught.value)
