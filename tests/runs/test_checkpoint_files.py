"""Checkpoints on disk: whole or not there at all, and what is wrong with one is said."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.runs import checkpoint_files


def write(run: Path, step: int, content: str = "weights", **facts) -> Path:
    """A sealed checkpoint with two files, one in a folder."""
    aside = run / checkpoint_files.PARTIAL / f"checkpoint-{step}"
    (aside / "critic").mkdir(parents=True)
    (aside / "adapter_model.safetensors").write_text(content)
    (aside / "critic/adapter_model.safetensors").write_text("critic")
    checkpoint_files.seal(aside, run / f"checkpoint-{step}", {"step": step, "inputs": {}} | facts)
    return run / f"checkpoint-{step}"


def edit(path: Path, **changes) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | changes))


def test_a_whole_one_is_found_and_nothing_is_left_beside_it(tmp_path):
    folder = write(tmp_path, 3)
    assert checkpoint_files.damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert checkpoint_files.newest(tmp_path, print) == folder
    # echo -n weights | sha256sum
    wanted = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    files = checkpoint_files.read_manifest(folder)["files"]
    assert files["adapter_model.safetensors"] == {"bytes": 7, "sha256": wanted}
    assert set(files) == {"adapter_model.safetensors", "critic/adapter_model.safetensors"}


DAMAGES = {
    "torn": (lambda f: (f / "adapter_model.safetensors").write_text("wei"), "has 3 bytes in place of 7"),
    "tampered": (lambda f: (f / "adapter_model.safetensors").write_text("WEIGHTS"), "another checksum"),
    "below": (
        lambda f: (f / "critic/adapter_model.safetensors").unlink(),
        "critic/adapter_model.safetensors is missing",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "torn manifest": (lambda f: (f / "manifest.json").write_text('{"step": 2, "fil'), "manifest.json cannot be read"),
    "no object": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "edited": (lambda f: edit(f / "manifest.json", files={}), "manifest.json was changed"),
    "slipped in": (lambda f: (f / "pytorch_model.bin").write_text("x"), "pytorch_model.bin does not belong to it"),
    "a link": (
        lambda f: (
            [(f / "critic/adapter_model.safetensors").unlink()]
            + [(f / "critic/adapter_model.safetensors").symlink_to(f / "adapter_model.safetensors")]
        ),
        "critic/adapter_model.safetensors is missing",
    ),
    "of another step": (
        lambda f: [shutil.rmtree(f), shutil.copytree(f.with_name("checkpoint-1"), f)],
        "manifest.json is that of step 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, kind):
    before, newest = write(tmp_path, 1), write(tmp_path, 2)
    harm, says = DAMAGES[kind]
    harm(newest)
    told = []
    assert checkpoint_files.newest(tmp_path, told.append) == before
    assert len(told) == 1 and str(newest) in told[0] and says in told[0] and "passed over" in told[0]
    with pytest.raises(UserError, match="checkpoint-2 cannot be used"):
        checkpoint_files.check(newest)


def test_one_without_the_optimizer_is_not_gone_on_from(tmp_path):
    assert "save_only_model" in checkpoint_files.damage(write(tmp_path, 2, whole=False))


def test_what_a_kill_leaves_half_written_is_never_found(tmp_path):
    folder = write(tmp_path, 1)
    aside = tmp_path / checkpoint_files.PARTIAL / "checkpoint-2"
    shutil.copytree(folder, aside)  # even with a manifest
    assert checkpoint_files.newest(tmp_path, print) == folder
    assert checkpoint_files.of(tmp_path) == [folder]
    checkpoint_files.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_one_of_the_same_step_is_replaced(tmp_path):
    write(tmp_path, 5, "old")
    folder = write(tmp_path, 5, "new")
    assert (folder / "adapter_model.safetensors").read_text() == "new" and checkpoint_files.damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_the_newest_are_kept_and_the_best_and_later_ones_left_alone(tmp_path):
    for step in (2, 4, 6, 8, 10, 30):
        write(tmp_path, step)
    checkpoint_files.keep_newest(tmp_path, 10, 2, best=str(tmp_path / "checkpoint-4"))
    assert sorted(map(checkpoint_files.step_of, checkpoint_files.of(tmp_path))) == [4, 8, 10, 30]
    checkpoint_files.keep_newest(tmp_path, 10, None, best=None)
    assert len(checkpoint_files.of(tmp_path)) == 4 and not (tmp_path / checkpoint_files.PARTIAL).exists()


def test_files_that_grow_are_cut_to_where_the_checkpoint_found_them(tmp_path):
    metrics, heldout = tmp_path / "metrics.jsonl", tmp_path / "heldout.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2}\n')
    folder = write(tmp_path, 2)
    metrics.write_text(metrics.read_text() + '{"step": 2, "later": true}\n{"step": 3, "lo')
    heldout.write_text('{"step": 3}\n')
    checkpoint_files.cut(tmp_path, folder)
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n' and heldout.read_text() == ""


def test_a_start_from_the_beginning_sets_aside_what_was_written(tmp_path):
    kept = {"config.yaml": "a: 1", "resumed.jsonl": "{}", ".unfinished": ""}
    written = {"metrics.jsonl": "first", "checkpoint-2/optimizer.pt": "torn", "completions/1.parquet": "x"}
    for name, text in (kept | written).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert checkpoint_files.set_aside(tmp_path) == tmp_path / "before-restart"
    assert {name: (tmp_path / "before-restart" / name).read_text() for name in written} == written
    assert checkpoint_files.set_aside(tmp_path) is None
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == kept
    (tmp_path / "metrics.jsonl").write_text("second")
    assert checkpoint_files.set_aside(tmp_path) == tmp_path / "before-restart-2"
    assert (tmp_path / "before-restart/metrics.jsonl").read_text() == "first"
    assert (tmp_path / "before-restart-2/metrics.jsonl").read_text() == "second"


def test_rows_of_another_folders_checkpoint_are_cut_by_its_step(tmp_path):
    folder = write(tmp_path / "first", 2)
    metrics = tmp_path / "second/metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    checkpoint_files.cut(tmp_path / "second", folder)
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
