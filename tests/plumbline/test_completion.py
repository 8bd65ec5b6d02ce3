"""Completion by the Tab key: the real script in a real bash."""

import subprocess

import pytest

from plumbline.commands import COMMANDS


@pytest.fixture(scope="module")
def script(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    done = warm.run(["-m", "plumbline", "completion", "bash"], folder)
    assert done.returncode == 0, done.stderr
    (folder / "plumbline.bash").write_text(done.stdout)
    (folder / "recipe").mkdir()
    (folder / "recipe/sft.yaml").touch()
    return folder / "plumbline.bash"


def completed(script, *words):
    """What the Tab key offers behind `plumbline <words>`, of which the last is begun."""
    quoted = " ".join(f"'{word}'" for word in ("plumbline", *words))
    code = (
        f"source {script.name}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        "_shtab_plumbline plumbline; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_commands_flags_and_files_are_completed(script):
    assert completed(script, "pp") == ["ppo"]
    assert set(completed(script, "")) >= set(COMMANDS)
    assert completed(script, "ppo", "--kl_co") == ["--kl_coef"]
    assert completed(script, "reinforce", "--total_epi") == ["--total_episodes"]
    assert completed(script, "compare", "--se") == ["--seeds"]
    assert completed(script, "sft", "--conf") == ["--config"] and completed(script, "sft", "--np") == ["--nproc"]
    assert completed(script, "init", "--like", "transl") == ["translation"]
    assert completed(script, "sft", "--config", "recipe/s") == ["recipe/sft.yaml"]
