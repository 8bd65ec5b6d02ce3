"""The three stages and GRPO one after the other on two CPU processes, on a random Llama."""

import json
from pathlib import Path

import pytest
import yaml
from rows import write_rows

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
STAGES = {
    # rows to hold out: they are looked at before training, after which DDP must still be put around the model
    "sft": {"dataset": "sft.jsonl", "max_length": 64, "eval_fraction": 0.25, "adapter_averaging": 0.5},
    "reward": {"adapter_path": "out/sft", "dataset": "pairs.jsonl", "eval_fraction": 0.25, "max_length": 64},
    "ppo": {
        "adapter_path": "out/sft",
        "critic_path": "out/reward",
        "adapter_averaging": 0.5,
        "dataset": "prompts.jsonl",
        "eval_fraction": 0.25,
        "eval_samples": 4,
        "max_completion_length": 8,
        "num_iterations": 2,
        "rewards": [{"name": "keyword", "column": "facts"}, {"name": "learned", "path": "out/reward", "weight": 0.5}],
    },
    "grpo": {
        "adapter_path": "out/sft",
        "dataset": "prompts.jsonl",
        "eval_fraction": 0.25,
        "eval_samples": 4,
        "eval_every": 1,
        "max_completion_length": 8,
        "num_generations": 2,
        "beta": 0.1,
        "rewards": [{"name": "keyword", "column": "facts"}, {"name": "learned", "path": "out/reward", "weight": 0.5}],
    },
}


@pytest.fixture(scope="module")
def runs(warm, tmp_path_factory, tiny_model_folder):
    """Folder and standard output of each stage. PPO is run by the documented command for two CPU processes; the others
    in processes that need not import the libraries, with what that command would set."""
    folder, said = tmp_path_factory.mktemp("stages"), {}
    words = [f"w{i}" for i in range(24)]
    write_rows(folder / "sft.jsonl", [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in words])
    write_rows(
        folder / "pairs.jsonl",
        [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in words],
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {w} =>\n", "facts": [w]} for w in words])
    for stage, settings in STAGES.items():
        settings = COMMON | {"model_name_or_path": str(tiny_model_folder), "output_dir": f"out/{stage}"} | settings
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
        command = [str(ROOT / "tests/support/distributed/stages.py"), stage, "--config", f"{stage}.yaml"]
        if stage == "ppo":
            launcher = [
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                str(ROOT / "recipes/accelerate/cpu2.yaml"),
            ]
            command = [*launcher, "--main_process_port", "0", *command]
            found = [warm.run(command, folder, env={"ACCELERATE_USE_CPU": "true"})]
        else:
            found = warm.ranks(2, command, folder)
        for done in found:
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        said[stage] = "".join(done.stdout for done in found)
    return folder, said


@pytest.mark.parametrize("stage", STAGES)
def test_both_ranks_end_with_equal_weights(runs, stage):
    digests = {path.suffix: path.read_text() for path in runs[0].glob(f"{stage}.rank*")}
    assert set(digests) == {".rank0of2", ".rank1of2"}
    assert len(set(digests.values())) == 1


def test_the_adapter_goes_back_on_both_and_is_told_once(runs):
    for stage, times in (("sft", 1), ("reward", 0), ("ppo", 1), ("grpo", 0)):
        assert runs[1][stage].count("The adapter goes back to 0.5 of its way") == times, stage


def test_ppo_leaves_what_the_next_person_needs(runs):
    folder, said = runs[0] / "out/ppo", runs[1]["ppo"]
    summary = json.loads((folder / "summary.json").read_text())
    for side in (summary["before"], summary["after"], summary["greedy"]["before"], summary["greedy"]["after"]):
        assert set(side) == {"keyword", "learned", "length", "finished"}
    # 2 optimizer steps are one update of 2 epochs; a rollout is 2 completions on each of the 2 processes
    assert summary["episodes"] == 4 and summary["heldout"] == 4
    files = {path.name for path in folder.iterdir()}
    assert files >= {"adapter_model.safetensors", "critic", "config.yaml", "metrics.jsonl", "samples.jsonl"}
    assert files >= {"tokenizer.json", "report.html"} and not list(folder.rglob("*.bin"))
    assert said.count("The result lies in out/ppo") == 1 and "out/ppo/report.html" in said.replace("\n", "")


def test_grpo_counts_and_examines_once_for_both_processes(runs):
    rows = [json.loads(line) for line in (runs[0] / "out/grpo/heldout.jsonl").read_text().splitlines()]
    # 2 updates of one optimizer step; a rollout is 2 completions on each of the 2 processes
    assert [(row["step"], row["episodes"]) for row in rows] == [(0, 0), (1, 4), (2, 8)]
    assert 8 <= rows[-1]["tokens"] <= 8 * 8
    summary = json.loads((runs[0] / "out/grpo/summary.json").read_text())
    assert (summary["algorithm"], summary["episodes"], summary["tokens"]) == ("grpo", 8, rows[-1]["tokens"])


def test_a_finished_folder_is_never_overwritten(warm, runs):
    before = (runs[0] / "out/ppo/summary.json").read_bytes()
    again = warm.run([str(ROOT / "recipes/ppo.py"), "--config", "ppo.yaml"], runs[0])
    assert again.returncode == 2 and again.stderr.startswith("error: output_dir out/ppo already holds results")
    assert (runs[0] / "out/ppo/summary.json").read_bytes() == before
