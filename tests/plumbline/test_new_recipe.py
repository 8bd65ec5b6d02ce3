"""`plumbline init`: every recipe under another name, and nothing overwritten."""

import re

import pytest
import yaml
from recipe_files import ROOT

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.sweep.settings import STAGES, dataclasses_of
from plumbline import new_recipe
from plumbline.commands import COMMANDS


@pytest.mark.parametrize("like", new_recipe.names())
def test_a_copy_is_the_recipe_with_the_paths_of_its_name(like, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_recipe.main(["my-own", "--like", like])
    files = new_recipe.yamls(tmp_path / "my-own")
    assert [path.name for path in files] == [path.name for path in new_recipe.yamls(ROOT / "recipes" / like)]
    for path in files:
        text = path.read_text("utf-8")
        original = (ROOT / "recipes" / like / path.name).read_text("utf-8")
        named = original.replace(f"runs/{like}/", "runs/my-own/").replace(f"recipes/{like}/", "my-own/")
        named = re.sub(rf"output_dir: runs/{like}$", "output_dir: runs/my-own", named, flags=re.MULTILINE)
        assert yaml.safe_load(text) == yaml.safe_load(named)
        assert f"runs/{like}" not in text and f"recipes/{like}" not in text.replace("recipes/tiny/compare.yaml", "")
        assert "`make " not in text
        stage = new_recipe.command_of(path).replace("a2c", "ppo").replace("reinforce", "ppo")
        if stage in STAGES:
            parse(*dataclasses_of(stage), argv=["--config", str(path)])


@pytest.mark.parametrize("like", new_recipe.names())
def test_the_commands_in_the_comments_can_be_typed(like, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_recipe.main(["my-own", "--like", like])
    found = []
    for path in new_recipe.yamls(tmp_path / "my-own"):
        typed = re.findall(r"plumbline ([a-z0-9]+) (?:--config )?(my-own\S*?)[`;\s]", path.read_text("utf-8"))
        found += typed
        for command, what in typed:
            assert command in COMMANDS and (tmp_path / what).exists(), (path, command, what)
    assert found or like in ("gsm8k", "mbpp", "tldr", "topics_qwen")


def test_commands_of_make_become_ours(tmp_path):
    def adapted(line, like="hh", folder="mine"):
        return new_recipe.adapted(line, like, tmp_path.relative_to(tmp_path) / folder).splitlines()[0]

    assert adapted("# `make sft RECIPE=recipes/hh`") == "# `plumbline sft --config mine/sft.yaml`"
    assert adapted("# `make sft`", "tiny") == "# `plumbline sft --config mine/sft.yaml`"
    assert adapted('# `make base RECIPE=recipes/hh ARGS="--seed 1"`') == (
        "# `plumbline base --config mine/base.yaml --seed 1`"
    )
    assert adapted("# `make ppo_stuffing RECIPE=recipes/hh`") == "# `plumbline ppo --config mine/ppo_stuffing.yaml`"
    assert adapted("# come first: make sft ppo RECIPE=recipes/hh") == (
        "# come first: plumbline sft --config mine/sft.yaml; plumbline ppo --config mine/ppo.yaml"
    )
    assert adapted("# `make compare`", "tiny") == "# `plumbline compare mine`"
    assert adapted("#   python recipes/reward.py --config recipes/hh/reward_cpu.yaml") == (
        "#   plumbline reward --config mine/reward_cpu.yaml"
    )
    assert adapted("path: runs/topics_qwen/sft", "topics") == "path: runs/topics_qwen/sft"  # another recipe's


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    new_recipe.write(new_recipe.Path("empty"), "translation")
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("empty", "file"):
        with pytest.raises(UserError, match=f"{name} exists already: give another name"):
            new_recipe.write(new_recipe.Path(name), "tiny")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["a b", "it's", "-x", "mine/a:b", "..", "{mine}", "ä", "accelerate"])
def test_names_that_would_break_a_path_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make the name of letters|needs a name of its own"):
        new_recipe.write(new_recipe.Path(name), "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="translatoin: there is no such recipe, did you mean translation.*tldr"):
        new_recipe.write(tmp_path / "mine", "translatoin")
    assert not (tmp_path / "mine").exists()


def test_what_is_not_here_is_to_be_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    new_recipe.main(["mine", "--like", "hh"])
    said = capsys.readouterr().out
    assert "model_name_or_path: runs/tiny/base is not here: name one of yours in reward_cpu.yaml\n" in said
    assert "harmless-base.jsonl.gz is not here: name one of yours in sft.yaml, " in said
    assert "Qwen" not in said  # a Hub name
    new_recipe.main(["small", "--like", "tiny"])
    said = capsys.readouterr().out
    assert "is not here" not in said and "plumbline ppo --config small/ppo.yaml" in said
    (tmp_path / "corpus").mkdir()
    for name in ("train.en", "valid.en", "test.en"):
        (tmp_path / "corpus" / name).touch()
    new_recipe.main(["text", "--like", "parallel"])
    assert "is not here" not in capsys.readouterr().out


def test_recipes_are_listed(capsys):
    assert new_recipe.show([]) == 0
    said = capsys.readouterr().out
    assert "translation        PPO from the SFT adapter, on BLEU and chrF against several references.\n" in said
    assert "accelerate " not in said.split("They lie in")[0]
