"""A judge in a run of PPO: its figures in the log, its budget, and a resumed run that asks nothing twice."""

import json

import pytest
from judge_server import by_length, serving
from short_runs import prompts_file, run_ppo

from pipeline.errors import UserError
from pipeline.eval import sampling
from pipeline.runs.folder import read_metrics
from pipeline.watching.watch import read_warnings

SETTINGS = {"save_strategy": "no", "num_iterations": 1}


@pytest.fixture
def server():
    with serving(by_length) as running:
        yield running


def spec(server, cache, **options) -> dict:
    return {"name": "judge", "url": server.url, "model": "m", "cache": str(cache)} | options


def test_a_spent_budget_stops_with_a_checkpoint_and_a_resumed_run_asks_nothing_twice(
    server, tmp_path, tiny_model_folder
):
    data, cache = prompts_file(tmp_path), tmp_path / "judge.sqlite"
    # one question beforehand and an exam of 6 answers; a step of 4 and the exam after it would need 10 more
    budget = spec(server, cache, max_requests=16)
    with pytest.raises(UserError, match=r"stopped at step 1 with a checkpoint\. Reward 'judge': the budget \(max_req"):
        run_ppo(tmp_path / "run", tiny_model_folder, data, [budget], None, **SETTINGS)
    assert (tmp_path / "run/checkpoint-1/trainer_state.json").is_file() and 5 < len(server.bodies) <= 11
    state = json.loads((tmp_path / "run/checkpoint-1/ppo_state.json").read_text())["rewards"]["judge"]
    assert state == {"requests": len(server.bodies), "tokens": 10 * len(server.bodies)}

    more = budget | {"max_requests": 100, "at_once": 2, "timeout": 30}  # free to change; what decides is not
    with pytest.raises(UserError, match="rewards was .* and is"):
        run_ppo(tmp_path / "run", tiny_model_folder, data, [more | {"scale": [1, 5]}], None, resume=True, **SETTINGS)
    run_ppo(tmp_path / "run", tiny_model_folder, data, [more], None, resume=True, **SETTINGS)
    asked = [json.dumps(body, sort_keys=True) for body in server.asked]
    assert len(set(asked)) == len(asked)

    rows = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert [row["judge/unreadable"] for row in rows] == [0] * 3 and rows[0]["judge/tokens"] > 0
    assert all(row["judge/failed"] == 0 for row in rows)


def test_verdicts_that_cannot_be_read_are_watched_and_the_key_is_nowhere(
    server, tmp_path, tiny_model_folder, monkeypatch, capfd
):
    key = "canary-of-a-judge-0123456789"
    monkeypatch.setenv("JUDGE_API_KEY", key)
    server.reply = lambda body: by_length(body) if len(server.bodies) % 2 else "I like it."
    run_ppo(
        tmp_path / "run", tiny_model_folder, prompts_file(tmp_path), [spec(server, tmp_path / "c")], None, **SETTINGS
    )
    [text] = [row["text"] for row in read_warnings(tmp_path / "run") if row["watcher"] == "judge"]
    assert "of the verdicts of judge cannot be read" in text
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {key}"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert key not in "".join(capfd.readouterr())


def test_the_answers_of_the_start_become_a_column_to_compare_with(server, tmp_path, tiny_model_folder):
    settings = {"run": str(tiny_model_folder), "dataset": str(prompts_file(tmp_path)), "use_cpu": True}
    settings |= {"column": "sft_answer", "temperature": 0, "max_completion_length": 6, "dtype": "float32"}
    with pytest.raises(UserError, match="samples_per_prompt: 4 is not valid: 1 at temperature 0"):
        sampling.SampleArguments(**settings, output="x")
    with pytest.raises(UserError, match="column: .*prompts.* is not valid"):
        sampling.SampleArguments(**settings | {"column": "prompts", "samples_per_prompt": 1}, output="x")
    settings |= {"samples_per_prompt": 1}
    path = sampling.run(sampling.SampleArguments(**settings, output=str(tmp_path / "answered.jsonl")))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(row) == {"prompt", "facts", "sft_answer"} and isinstance(row["sft_answer"], str) for row in rows)
    with pytest.raises(UserError, match="column sft_answer is in .* already"):
        sampling.run(sampling.SampleArguments(**settings | {"dataset": str(path)}, output=str(tmp_path / "new")))

    rewards = [spec(server, tmp_path / "c", against="sft_answer")]
    summary = run_ppo(tmp_path / "run", tiny_model_folder, path, rewards, None, **SETTINGS)
    assert summary["greedy"]["before"]["judge"] == 0.5  # nothing else than itself
    asked = server.asked[-1]["messages"][1]["content"]
    assert "BEGIN ANSWER A" in asked and "BEGIN ANSWER B" in asked
