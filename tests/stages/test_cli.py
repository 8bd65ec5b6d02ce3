"""Settings from YAML and flags: strict about names and types, one clear line for an error."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli import flow_mapping, parse
from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ALL = (ModelArguments, DataArguments, SFTStage)


@dataclass
class Rewards:
    """Some rewards."""

    rewards: list[dict] | None = field(default=None, metadata={"help": "Rewards."})


def from_yaml(tmp_path: Path, text: str, kinds=ALL, more=()):
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(*kinds, argv=["--config", str(path), *more])


def refused(tmp_path: Path, text: str, kinds=ALL, more=()) -> str:
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, text, kinds, more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    text = "output_dir: x\nlearning_rate: 1e-3\nlora_r: 4\nmax_length: 99\n"
    model, _, config = from_yaml(tmp_path, text, more=["--lora_r", "8"])
    assert model.lora_r == 8
    assert config.learning_rate == 0.001  # YAML 1.1 reads 1e-3 as text
    assert config.max_length == 99
    assert config.logging_steps == 10


def test_both_spellings_of_config_and_of_flags(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("output_dir: x\n")
    _, data, config = parse(*ALL, argv=[f"--config={path}", "--learning-rate", "0.5", "--max-rows", "3"])
    assert (config.output_dir, config.learning_rate, data.max_rows) == ("x", 0.5, 3)


def test_misspelt_key_names_key_file_and_nearest(tmp_path):
    message = refused(tmp_path, "lerning_rate: 1.0\n")
    assert "lerning_rate" in message and "did you mean learning_rate?" in message and "some.yaml" in message


def test_key_of_another_stage_is_refused(tmp_path):
    assert "no such setting kl_coef" in refused(tmp_path, "kl_coef: 0.1\n")


@pytest.mark.parametrize("flag", ["--lerning_rate", "--lerning-rate", "--lerning_rate=1"])
def test_misspelt_flag_names_flag_and_nearest(flag):
    with pytest.raises(UserError, match="no such flag --lerning.rate, did you mean --learning_rate?"):
        parse(*ALL, argv=[flag, "1"])


def test_a_flag_is_never_completed():
    # argparse alone would take --learning_rat for --learning_rate
    with pytest.raises(UserError, match="no such flag --learning_rat"):
        parse(*ALL, argv=["--learning_rat", "1"])


def test_a_stray_word_is_named():
    with pytest.raises(UserError, match="'runs/x'"):
        parse(*ALL, argv=["runs/x"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("learning_rate: fast", "learning_rate wants a number, got 'fast'"),
        ("learning_rate: true", "learning_rate wants a number, got True"),
        ("lora_r: 2.5", "lora_r wants a whole number, got 2.5"),
        ("lora_r: [4]", "lora_r wants a whole number"),
        ("use_peft: 1", "use_peft wants true or false, got 1"),
        ("use_peft: 'false'", "use_peft wants true or false, got 'false'"),
        ("dataset: 5", "dataset wants text, got 5"),
        ("dtype: null", "dtype wants text, got None"),
        ("lora_target_modules: q_proj", "lora_target_modules wants a list (of text)"),
        ("lora_target_modules: [1]", "lora_target_modules wants a list (of text)"),
        ("save_strategy: no", "put words such as no, off, yes, on in quotes"),
        ("warmup_steps: null", "warmup_steps wants"),
    ],
)
def test_wrong_type_in_yaml_names_the_key(tmp_path, line, says):
    assert says in refused(tmp_path, line + "\n")


def test_optional_settings_take_null(tmp_path):
    _, _, config = from_yaml(tmp_path, "max_length: null\noutput_dir: x\n")
    assert config.max_length is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\n", "is not valid YAML"),
        ("- 1\n", "must hold lines of the form"),
        ("", "must hold lines of the form"),
        ("lora_r: 4\nlora_r: 8\n", "line 2 gives lora_r a second time"),
        ("x: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("1: 2\n", "no such setting 1"),
        ("env: {LD_PRELOAD: x}\n", "no such setting env"),
    ],
)
def test_broken_yaml(tmp_path, text, says):
    assert says in refused(tmp_path, text)


def test_yaml_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match="missing.yaml: there is no such file"):
        parse(*ALL, argv=["--config", "missing.yaml"])
    with pytest.raises(UserError, match="cannot be read"):
        parse(*ALL, argv=["--config", str(tmp_path)])
    with pytest.raises(UserError, match="wants the path"):
        parse(*ALL, argv=["--config"])
    (tmp_path / "b.yaml").write_bytes(b"dataset: \xff\n")
    with pytest.raises(UserError, match="b.yaml, line 1 is not UTF-8"):
        parse(*ALL, argv=["--config", str(tmp_path / "b.yaml")])


def test_wrong_value_on_the_command_line_names_the_flag():
    with pytest.raises(UserError, match="--learning_rate.*invalid float value: 'fast'"):
        parse(*ALL, argv=["--learning_rate", "fast"])


def test_refusals_of_the_dataclasses_name_the_file(tmp_path):
    message = refused(tmp_path, "lora_r: 0\n")
    assert "some.yaml: lora_r: 0 is not valid" in message


def test_refusals_of_trl_and_transformers_are_user_errors(tmp_path):
    # transformers: load_best_model_at_end needs eval_strategy and save_strategy to agree
    message = refused(tmp_path, "output_dir: x\nload_best_model_at_end: true\neval_strategy: epoch\n")
    assert "some.yaml" in message and "strategy" in message


def test_a_setting_that_two_dataclasses_have_reaches_both():
    model, _, config = parse(*ALL, argv=["--trust_remote_code", "--output_dir", "x"])
    assert model.trust_remote_code is True and config.trust_remote_code is True


def test_reward_items_from_yaml_and_flags(tmp_path):
    want = [{"name": "bleu", "weight": 0.5}, {"name": "keyword", "column": "facts"}, {"name": "rouge"}]
    text = "rewards:\n  - {name: bleu, weight: 0.5}\n  - {name: keyword, column: facts}\n  - rouge\n"
    assert from_yaml(tmp_path, text, (Rewards,))[0].rewards == want
    argv = ["--rewards", "{name: bleu, weight: 0.5}", "{name: keyword, column: facts}", "rouge"]
    assert parse(Rewards, argv=argv)[0].rewards == want
    assert "wants the form" in refused(tmp_path, "rewards: [3]\n", (Rewards,))
    assert "rewards wants a list" in refused(tmp_path, "rewards: {name: bleu}\n", (Rewards,))


def test_flow_mapping():
    assert flow_mapping("{name: a.b:c, weight: 2}") == {"name": "a.b:c", "weight": 2}
    assert flow_mapping("a.b:c") == {"name": "a.b:c"}
    with pytest.raises(UserError):
        flow_mapping("{name: ")


def test_help_shows_ours_first_and_all_on_request(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        parse(*ALL, argv=["--help"])
    short = capsys.readouterr().out
    assert stop.value.code == 0
    assert short.index("--model_name_or_path") < short.index("--dataset ") < short.index("--learning_rate")
    assert len(short.splitlines()) < 150 and "--help-all" in short
    assert "--torch_compile_backend" not in short
    with pytest.raises(SystemExit):
        parse(*ALL, argv=["--help-all"])
    assert "--torch_compile_backend" in capsys.readouterr().out


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse(*ALL, argv=["--help"])
    _usage, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80


def test_help_shows_the_values_of_the_config(tmp_path, capsys):
    with pytest.raises(SystemExit):
        from_yaml(tmp_path, "lora_r: 77\n", more=["--help"])
    assert "[77]" in capsys.readouterr().out


@pytest.mark.parametrize("kinds", [ALL, (ModelArguments, DataArguments, RewardStage)])
def test_every_setting_of_ours_has_a_help_text(kinds):
    for kind in kinds[:2]:
        for item in kind.__dataclass_fields__.values():
            assert item.metadata.get("help"), item.name


@pytest.fixture
def run_main(warm):
    """Runs `main`, which the code defines, as a program."""

    def run(code: str, *argv: str):
        script = f"from pipeline import cli\nfrom pipeline.errors import UserError\n{code}\ncli.launch(main)\n"
        return warm.run(["-c", script, *argv], ROOT)

    return run


def test_a_reader_who_has_seen_enough_is_no_error():
    code = "from pipeline import cli, config\ncli.launch(lambda: cli.parse(config.DataArguments))"
    line = [sys.executable, "-c", code, "--help"]
    program = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    program.stdout.close()  # before it has said anything
    assert (program.stderr.read(), program.wait()) == ("", 141)


RAISES = "def main():\n    raise UserError('row 3 is empty')"


def test_launch_prints_one_line_and_exits_2(run_main):
    done = run_main(RAISES)
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: row 3 is empty\n", "")


def test_launch_shows_the_trace_with_debug(run_main):
    done = run_main(RAISES, "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "row 3 is empty" in done.stderr


def test_launch_lets_our_own_bugs_through(run_main):
    done = run_main("def main():\n    raise ValueError('a bug')")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [("raise Stopped(15)", 143, ""), ("raise KeyboardInterrupt", 130, "\nstopped\n")],
)
def test_launch_ends_as_a_shell_says_it_when_it_was_stopped(run_main, line, code, says):
    done = run_main(f"from pipeline.runs.stopping import Stopped\ndef main():\n    {line}")
    assert (done.returncode, done.stderr) == (code, says)


def test_launch_knows_the_errors_of_rewards(run_main):
    pytest.importorskip("rewards.base")
    code = "from rewards.base import RewardError\ndef main():\n    raise RewardError('no reward foo')"
    done = run_main(code)
    assert (done.returncode, done.stderr) == (2, "error: no reward foo\n")


def test_debug_is_no_setting():
    assert parse(*ALL, argv=["--debug", "--output_dir", "x"])[2].debug == []
    assert cli.launch  # `--debug` is read by launch
