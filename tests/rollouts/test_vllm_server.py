"""vLLM servers as they are asked: settings, what a server says of itself, adapters, completions, faults.

vLLM is not here: a stand-in answers in its recorded words and samples with transformers (tests/support/
vllm_stand_in.py). test_vllm_real.py holds it against the real one.
"""

import json
from pathlib import Path

import pytest
import torch
import toy
from peft import LoraConfig, PromptEncoderConfig, get_peft_model
from toy import EOS
from vllm_exchanges import ask_all, shape
from vllm_stand_in import RECORD, serving, vllm_base

from pipeline.config import GRPOStage, RLOOStage
from pipeline.config.services import addresses
from pipeline.errors import UserError
from pipeline.eval.settings import EvalArguments
from pipeline.ppo import PPOConfig
from pipeline.ppo.config import PPOStage
from pipeline.rollouts.vllm_engine import Engine
from pipeline.rollouts.vllm_server import VllmServer, body_of, completion_of

SMALL = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
ROWS = [[3, 4, 5], [5], [3, 4, 5], [7, 6, 5, 4]]
ASKED = {"max_tokens": 8, "stop_token_ids": [EOS]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Tries follow each other at once."""
    monkeypatch.setattr(VllmServer, "first_pause", 0.001)
    monkeypatch.setattr(VllmServer, "pause", 0.01)


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as running:
        yield running


def engine(tmp_path, *servers, **settings) -> Engine:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    given = {"vllm_server": urls, "vllm_server_timeout": 0.0} | SMALL | settings
    return Engine(PPOStage(output_dir=str(tmp_path / "run"), **given), tmp_path / "run")


def policy(**changes):
    return toy.with_sft_adapter(vllm_base(), **changes)


def ours(model, prompt: list[int], ids: list[int], temperature: float = 1.0) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


# ---------------------------------------------------------------- the settings
@pytest.mark.parametrize("stage", [PPOStage, GRPOStage, RLOOStage])
def test_one_address_or_several(tmp_path, stage):
    more = {} if stage is PPOStage else {"num_generations": 2}
    config = stage(output_dir=str(tmp_path), vllm_server="http://10.0.0.2:8000/", **SMALL, **more)
    assert config.vllm_server == ["http://10.0.0.2:8000"] and config.use_vllm is False
    assert stage(output_dir=str(tmp_path), **SMALL, **more).vllm_server is None
    assert addresses(["http://a:1", "https://b/"]) == ["http://a:1", "https://b"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vllm_server": "10.0.0.2:8000"}, "give an address such as"),
        ({"vllm_server": "http://host:port"}, "give an address such as"),
        ({"vllm_server": "http://"}, "give an address such as"),
        ({"vllm_server": "ftp://host:8000"}, "give an address such as"),
        ({"vllm_server": ["http://a:1", ""]}, "give an address such as"),
        ({"vllm_server": ["http://a:1", "http://a:1/"]}, "one address twice"),
        ({"vllm_server": [3]}, "give an address such as"),
        ({"vllm_adapters": "/tmp/x"}, "it is for vllm_server, which is not set"),
        ({"vllm_server": "http://a:1", "vllm_copy": "rsync"}, "set vllm_adapters as well"),
        ({"vllm_server": "http://a:1", "vllm_at_once": 0}, "vllm_at_once: 0 is not"),
        ({"vllm_server": "http://a:1", "vllm_request_timeout": 0.0}, "vllm_request_timeout: 0.0 is not"),
        ({"vllm_server": "http://a:1", "use_transformers_continuous_batching": True}, "give one of them"),
        ({"vllm_server": "http://a:1", "generation_kwargs": {"use_cache": True}}, "is for transformers' generation"),
        ({"use_vllm": True}, "use_vllm is True.*name a running server in vllm_server"),
        ({"vllm_server": "http://a:1", "vllm_mode": "server"}, "vllm_mode is 'server'"),
        ({"vllm_server_base_url": "http://a:1"}, "vllm_server_base_url is"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        PPOStage(output_dir=str(tmp_path), **SMALL, **settings)


def test_in_python_and_for_eval_too(tmp_path):
    with pytest.raises(UserError, match="use_vllm is True.*vllm_server"):
        PPOConfig(str(tmp_path), use_vllm=True, **SMALL)
    with pytest.raises(UserError, match="give an address such as"):
        EvalArguments(candidates=[{"model": "x"}], dataset="y", vllm_server="z")


# ---------------------------------------------------------------- what a server says of itself
def test_the_stand_in_speaks_as_the_real_one_did(tmp_path, server):
    policy().save_pretrained(tmp_path / "adapter")
    found = ask_all(server.url, str(tmp_path / "adapter"))
    assert {name: (each["status"], shape(each["answer"])) for name, each in found.items()} == {
        name: (each["status"], shape(each["answer"])) for name, each in RECORD.items()
    }


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({}, None),
        ({"info": None}, "says nothing of its settings \\(VLLM_SERVER_DEV_MODE=1 is missing"),
        ({"model_config": {}}, "nothing of its settings that is known of vLLM"),
        ({"lora_config": None}, "takes no adapters \\(--enable-lora is missing"),
        ({"model_config": {"logprobs_mode": "raw_logprobs"}}, "gives raw_logprobs"),
        ({"takes_adapters": False}, "no adapter while it runs \\(VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is missing"),
    ],
)
def test_what_the_server_was_started_without_is_said(tmp_path, says, words):
    with serving(tmp_path, **says) as running:
        if words is None:
            facts = VllmServer(running.url).facts()
            assert facts == ("base", str(tmp_path / "base"), 64, 16)
            return
        with pytest.raises(UserError, match=words) as found:
            VllmServer(running.url).facts()
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in str(found.value) and "\n" not in str(found.value)


def test_a_server_that_is_not_there(tmp_path):
    with serving(tmp_path) as running:
        url = running.url
    with pytest.raises(UserError, match="is not up after 0 seconds \\(nothing answers there\\): start it with VLLM_"):
        VllmServer(url, patience=0).facts()


def test_it_has_to_have_room_and_to_stay_what_it_was(tmp_path, server):
    asking = engine(tmp_path, server)
    asking.check_room(64)
    with pytest.raises(UserError, match="has room for 64 tokens, but prompt and completion may have 65.*-len 65"):
        asking.check_room(65)
    server.folder = Path("/another")
    with pytest.raises(UserError, match="came back as another one"):
        asking.servers[0].facts()


def test_a_key_comes_from_the_environment_and_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with serving(tmp_path, key="s3cret") as guarded:
        with pytest.raises(UserError, match="asks for a key: put its --api-key into the .* VLLM_API_KEY"):
            engine(tmp_path, guarded)
        monkeypatch.setenv("VLLM_API_KEY", "wr0ng")
        with pytest.raises(UserError, match="does not take the key in VLLM_API_KEY") as found:
            engine(tmp_path, guarded)
        assert "wr0ng" not in str(found.value)
        monkeypatch.setenv("VLLM_API_KEY", " s3cret\n")
        asking = engine(tmp_path, guarded)
        adapter = asking.load(policy(), "default")
        assert len(asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED)) == 4
        guarded.complete = lambda body: (403, {"error": "no s3cret here"})
        with pytest.raises(UserError, match="answers with status 403: no \\*\\*\\* here"):
            asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED)
    monkeypatch.setenv("VLLM_API_KEY", "schlüssel")
    with pytest.raises(UserError, match="characters that no key has"):
        VllmServer("http://127.0.0.1:9")


# ---------------------------------------------------------------- adapters
def test_the_adapter_travels_whole_and_its_words_come_back(tmp_path, server):
    """Two versions under two names: the log-probabilities are those of each version by our own pass."""
    asking, found = engine(tmp_path, server), []
    for seed in (1, 2):
        model = toy.with_sft_adapter(vllm_base(), seed=seed)
        adapter = asking.load(model, "default")
        assert {path.name for path in Path(adapter.folder).iterdir()} >= {"adapter_model.safetensors"}
        completions = asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED | {"temperature": 0.7})
        for row, (ids, logprobs) in zip(ROWS, completions, strict=True):
            assert logprobs == pytest.approx(ours(model, row, ids, 0.7), abs=1e-5)
        assert completions[0].ids != completions[2].ids  # equal prompts, seeds of their own
        found.append((adapter, [completion.ids for completion in completions]))
    assert found[0][0].name != found[1][0].name and found[0][1] != found[1][1]
    assert sorted(body["prompt"] for body in server.bodies) == sorted(ROWS * 2)  # ids as they are, nothing tokenised
    for adapter, _ in found:
        asking.unload(adapter)
    assert not server.adapters and not asking.folder.exists()


def test_what_an_earlier_process_left_is_taken_away(tmp_path, server):
    asking = engine(tmp_path, server)
    asking.load(policy(), "default")
    elsewhere = Engine(PPOStage(str(tmp_path / "b"), vllm_server=server.url, **SMALL), tmp_path / "b")
    other = elsewhere.load(policy(), "default")
    engine(tmp_path, server).forget_earlier()
    assert set(server.adapters) == {other.name} and not list(asking.folder.iterdir())


CANNOT = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "lora_only"}, "bias: lora_only"),
    "LoRA's own biases": ({"lora_bias": True}, "lora_bias"),
    "whole modules": ({"modules_to_save": ["norm"]}, "modules_to_save: norm"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "a base that moves": ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "embeddings or the output layer"),
    "the head": ({"target_modules": ["lm_head", "q_proj"]}, "embeddings or the output layer"),
    "a high rank": ({"r": 17}, "for adapters up to rank 16, and this one has 17.*--max-lora-rank 32 "),
    "a high rank in one place": ({"rank_pattern": {"q_proj": 64}}, "this one has 64.*--max-lora-rank 64 "),
}


@pytest.mark.parametrize(("settings", "words"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_sent_is_refused_by_name(tmp_path, server, settings, words):
    model = get_peft_model(vllm_base(), toy.lora(**settings))
    with pytest.raises(UserError, match=words):
        engine(tmp_path, server).load(model, "default")
    assert not server.loaded


def test_only_lora_is_sent(tmp_path, server):
    model = get_peft_model(vllm_base(), PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="takes LoRA adapters, and this one is P_TUNING"):
        engine(tmp_path, server).load(model, "default")


def test_patterns_of_rank_and_alpha_are_sent_as_they_are(tmp_path, server):
    config = LoraConfig(r=2, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 9}, target_modules="all-linear")
    model = get_peft_model(vllm_base(), config)
    toy.randomize(model, "default", 1)
    with engine(tmp_path, server).speaking(model, "default", toy.tokenizer()):
        pass  # what the server says of the adapter is what the model says


def test_a_folder_that_the_server_does_not_see(tmp_path, server):
    asking = engine(tmp_path, server, vllm_adapters=f"{tmp_path}/here:/there")
    with pytest.raises(UserError, match="does not see /there/.*vllm_adapters: /shared/adapters.*vllm_copy: rsync"):
        asking.load(policy(), "default")


def test_a_folder_that_is_copied_to_another_name(tmp_path, server):
    here, there = tmp_path / "here", tmp_path / "there"
    copy = f"cp -r {here} {there}"
    asking = engine(tmp_path, server, vllm_adapters=f"{here}:{there}", vllm_copy=copy)
    adapter = asking.load(policy(), "default")
    assert adapter.folder == f"{there}/{adapter.name}" and server.adapters[adapter.name][0] == adapter.folder
    asking = engine(tmp_path, server, vllm_adapters=f"{here}:{there}", vllm_copy="cp /nowhere/at/all /nowhere")
    with pytest.raises(UserError, match="vllm_copy ended with status 1 .*No such file.*: cp /nowhere"):
        asking.load(policy(), "default")


def test_another_base_is_found_out(tmp_path):
    with serving(tmp_path, vllm_base(seed=9, initializer_range=0.4)) as other:
        with pytest.raises(UserError, match="says something else than the base of this run.*Start it with"):
            with engine(tmp_path, other).speaking(policy(), "default", toy.tokenizer()):
                pass
        assert not other.adapters
    with serving(tmp_path) as running, engine(tmp_path, running).speaking(policy(), None, toy.tokenizer()) as speak:
        greedy = speak(ROWS, max_new_tokens=4, eos_token_ids=[EOS], temperature=0, seed=0)
    with torch.no_grad():
        assert greedy[1][0] == vllm_base()(input_ids=torch.tensor([ROWS[1]])).logits[0, -1].argmax()
    assert {body["model"] for body in running.bodies} == {"base"}


# ---------------------------------------------------------------- faults
FAULTS = {
    "too many requests": (429, {"Retry-After": "0"}),
    "broken": (500, {}),
    "hangs up": ("drop", {}),
    "half an answer": ("cut", {}),
    "no JSON": ("nonsense", {}),
    "an answer to another question": ("other", {}),
    "log-probabilities missing": ("short", {}),
    "goes on behind the limit": ("unended", {}),
    "two answers": ("two", {}),
    "restarted without adapters": ("forget", {}),
}


@pytest.mark.parametrize(("fault", "headers"), FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_changes_no_rollout(tmp_path, server, fault, headers):
    asking, model = engine(tmp_path, server, vllm_server_timeout=20.0), policy()
    adapter = asking.load(model, "default")
    expected = asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED)
    server.fail(fault, headers, times=1 if fault == "forget" else 3)
    assert asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED) == expected
    assert server.loaded == [adapter.name] * (2 if fault == "forget" else 1)


def test_what_was_answered_is_not_asked_again(tmp_path, server):
    asking = engine(tmp_path, server, vllm_server_timeout=20.0, vllm_at_once=1)
    adapter = asking.load(policy(), "default")
    expected = asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED)
    server.bodies.clear()
    server.fail(None)  # the first is answered
    server.fail("forget")
    assert asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED) == expected
    assert [body["seed"] for body in server.bodies] == [5, 6, 6, 7, 8]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "answers with status 500: as ordered; the run goes on"),
        (429, "answers with status 429"),
        ("drop", "cannot be reached"),
        ("short", "no completion: it has not one log-probability for each token"),
        ("forget", "answers with status 404: The model `.*` does not exist"),
    ],
)
def test_a_fault_that_stays_ends_the_run_in_one_sentence(tmp_path, server, fault, words):
    asking = engine(tmp_path, server, vllm_server_timeout=20.0)
    adapter = asking.load(policy(), "default")
    server.fail(fault, times=1000)
    with pytest.raises(UserError, match=f"{words}.*--resume") as found:
        asking.sample(ROWS, adapter, [5, 6, 7, 8], ASKED)
    assert "\n" not in str(found.value) and found.value.__cause__ is None


def test_a_slow_server_is_not_waited_for_for_ever(tmp_path, server):
    asking = engine(tmp_path, server, vllm_request_timeout=0.2, vllm_server_timeout=20.0)
    server.fail("slow", times=1000)
    with pytest.raises(UserError, match="did not answer within 0.2 seconds; the run goes on"):
        asking.sample(ROWS[:1], None, [5], ASKED)


def test_what_the_server_refuses_is_not_asked_again(tmp_path, server):
    with pytest.raises(UserError, match="answers with status 400: max_tokens=600 cannot be greater"):
        engine(tmp_path, server).sample(ROWS[:1], None, [5], ASKED | {"max_tokens": 600})
    assert len(server.bodies) == 1


def test_prompts_are_shared_out(tmp_path):
    with serving(tmp_path) as one, serving(tmp_path) as two:
        asking, alone = engine(tmp_path, one, two), engine(tmp_path, one)
        adapter = asking.load(policy(), "default")
        seeds = list(range(4))
        assert asking.sample(ROWS, adapter, seeds, ASKED) == alone.sample(ROWS, adapter, seeds, ASKED)
        assert sorted(body["prompt"] for body in two.bodies) == sorted(ROWS[1::2])
        two.fail(500, times=1000)
        with pytest.raises(UserError, match=f"vllm_server {two.url} answers with status 500"):
            asking.sample(ROWS, adapter, seeds, ASKED)


@pytest.mark.parametrize("name", ["the base speaks", "the adapter speaks", "stopped"])
def test_real_answers_are_read(name):
    answer = RECORD[name]["answer"]
    stops = list(range(9)) if name == "stopped" else []
    asked = {"max_tokens": 6, "stop_token_ids": stops}
    ids, logprobs = completion_of(answer, body_of(answer["model"], [3, 4, 5], asked, 3))
    assert len(ids) == len(logprobs) == (1 if stops else 6) and max(logprobs) < 0
    assert json.dumps(answer)  # nothing of it was changed
