"""Rollouts by a vLLM server: the one setting, what is asked of the server first, and which weights it is sent.

vLLM and NCCL are not here. TRL's own client talks HTTP to a stand-in that answers as `vllm serve` does and samples
with transformers; only the way of the weights is another one (a call in place of NCCL).
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import toy
from toy import EOS
from transformers import LlamaForCausalLM
from trl.generation import vllm_client, vllm_generation

from pipeline.config import GRPOStage, RLOOStage
from pipeline.errors import UserError
from pipeline.models.adapters import POLICY
from pipeline.models.quantized import never_repack
from pipeline.ppo.config import PPOStage
from pipeline.rollouts import vllm_server

GOOD = {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}}
SMALL = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}


# ---------------------------------------------------------------- the setting
@pytest.mark.parametrize("stage", [PPOStage, GRPOStage, RLOOStage])
def test_one_setting_is_all_that_trl_wants(tmp_path, stage):
    more = {} if stage is PPOStage else {"num_generations": 2}
    config = stage(output_dir=str(tmp_path), vllm_server="http://10.0.0.2:8000/", **SMALL, **more)
    assert (config.use_vllm, config.vllm_mode) == (True, "server")
    assert config.vllm_server_base_url == "http://10.0.0.2:8000"
    plain = stage(output_dir=str(tmp_path), **SMALL, **more)
    assert (plain.use_vllm, plain.vllm_server_base_url) == (False, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vllm_server": "10.0.0.2:8000"}, "give an address such as"),
        ({"vllm_server": "http://host:port"}, "give an address such as"),
        ({"vllm_server": "http://"}, "give an address such as"),
        ({"vllm_server": "ftp://host:8000"}, "give an address such as"),
        ({"vllm_server": ""}, "give an address such as"),
        ({"vllm_server": "http://a:1", "vllm_server_base_url": "http://b:1"}, "give one of them"),
        ({"vllm_server": "http://a:1", "use_vllm": True, "vllm_mode": "colocate"}, "set it to server"),
        ({"vllm_server": "http://a:1", "use_transformers_continuous_batching": True}, "give one of them"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        PPOStage(output_dir=str(tmp_path), **SMALL, **settings)


def test_a_runs_own_settings_can_be_given_again(tmp_path):
    settings = {"vllm_server": "http://a:1", "use_vllm": True, "vllm_mode": "server"}
    PPOStage(output_dir=str(tmp_path), vllm_server_base_url="http://a:1", **SMALL, **settings)


def test_without_vllm_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    config = PPOStage(output_dir=str(tmp_path), vllm_server="http://a:1", **SMALL)
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed on this machine.*pip install 'trl\\[vllm\\]'"):
        vllm_server.check(config)
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="weights go to vLLM from a GPU"):
        vllm_server.check(config)


# ---------------------------------------------------------------- the server
class Server(ThreadingHTTPServer):
    """Answers as `vllm serve` does in what TRL's client asks. `base`: a model of transformers, or None."""

    def __init__(self, info=GOOD, base=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.info, self.base, self.asked, self.loads = info, base, [], 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        self.base.load_state_dict(weights, strict=True)
        self.loads += 1

    @torch.no_grad()
    def complete(self, prompt: list[int], settings: dict) -> dict:
        assert (settings["top_p"], settings["top_k"], settings["min_p"], settings["n"]) == (1.0, 0, 0.0, 1)
        ids, tokens, logprobs = list(prompt), [], []
        while len(tokens) < settings["max_tokens"] and EOS not in tokens:
            logits = self.base(input_ids=torch.tensor([ids])).logits[0, -1] / settings["temperature"]
            token = torch.multinomial(logits.softmax(-1), 1).item()
            logprobs.append(logits.log_softmax(-1)[token].item())
            ids.append(token)
            tokens.append(token)
        names = [f"token_id:{token}" for token in tokens]
        tops = [{name: logprob} for name, logprob in zip(names, logprobs, strict=True)]
        said = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops}
        return {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": said}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path == "/server_info" and self.server.info is None:
            self.send_error(404)
            return
        self.answer(
            {
                "/health": {},
                "/server_info": {"vllm_config": self.server.info},
                "/v1/models": {"data": [{"id": "toy"}]},
            }[path]
        )

    def do_POST(self):
        settings = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        self.server.asked.append(self.path)
        choices = [self.server.complete(prompt, settings) for prompt in settings.get("prompt", [])]
        self.answer({"choices": choices, "success": True})

    def answer(self, what: dict) -> None:
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@contextmanager
def serving(*args, **kwargs):
    with Server(*args, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (GOOD, None),
        (None, "does not take new weights"),
        (GOOD | {"weight_transfer_config": None}, "has no engine"),
        (GOOD | {"model_config": {"logprobs_mode": "raw_logprobs"}}, "gives raw_logprobs"),
        ({}, "says nothing of its settings"),
    ],
)
def test_what_the_server_was_started_without_is_said(info, words):
    with serving(info) as server:
        said = vllm_server.problem_of(server.url, timeout=0)
    if words is None:
        assert said is None
    else:
        assert words in said and "VLLM_SERVER_DEV_MODE=1 vllm serve" in said and "\n" not in said


def test_a_server_that_is_not_there():
    with serving() as server:
        url = server.url
    assert "is not up after 0 seconds (nothing answers there)" in vllm_server.problem_of(url, timeout=0)


# ---------------------------------------------------------------- the weights
def test_the_server_gets_the_base_with_the_adapter_added(tmp_path):
    """Under the names of the base's own files, without the critic's head; by pencil on one weight; the base stays."""
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter())
    model, base = trainer.model, toy.build_model()
    before = toy.snapshot(model)
    sent = dict(vllm_server.named_weights(model))
    assert set(sent) == {name for name, _ in base.named_parameters()}
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    A, B = (x[POLICY].weight for x in (layer.lora_A, layer.lora_B))  # lora_alpha 4 over rank 2: scale 2
    expected = base.model.layers[1].self_attn.q_proj.weight + 2.0 * B @ A
    torch.testing.assert_close(sent["model.layers.1.self_attn.q_proj.weight"], expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_16_bit_base_keeps_no_rounding(tmp_path):
    """TRL adds the adapter in and takes it off again, which moves weights of 16 bits a little at each rollout."""
    model = toy.with_sft_adapter(toy.build_model().to(torch.bfloat16))
    before = toy.snapshot(model)
    sent = dict(vllm_server.named_weights(model))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert sent["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    model.merge_adapter()
    model.unmerge_adapter()
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())  # so it matters


def test_a_4_bit_base_is_sent_as_what_it_stands_for(tmp_path):
    from quantizable import build

    model = build(torch.float32, bits=4, folder=tmp_path)
    never_repack(model)
    plain = LlamaForCausalLM(model.get_base_model().config)
    plain.load_state_dict(dict(vllm_server.named_weights(model)))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_more_than_plain_lora_cannot_be_sent():
    with pytest.raises(UserError, match="by more than plain LoRA"):
        dict(vllm_server.named_weights(toy.with_sft_adapter(use_dora=True)))


# ---------------------------------------------------------------- all of it
@pytest.fixture
def without_nccl(monkeypatch):
    """TRL's client, to which vLLM seems to be there and weights go by a call."""

    def update(client, metadata, named_params):
        weights = {name: weight.clone() for name, weight in named_params}
        assert [(n, str(w.dtype).removeprefix("torch."), list(w.shape)) for n, w in weights.items()] == metadata
        client.server.load(weights)

    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args: True)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda client, device: None)
    monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", update)
    return monkeypatch


@pytest.mark.parametrize(
    "parts", [{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, {"replay": 1}]
)
def test_ppo_samples_at_the_server_from_the_newest_policy(tmp_path, without_nccl, parts):
    with serving(base=toy.build_model(seed=9)) as server:  # other weights than the policy's, until it is sent those
        without_nccl.setattr(vllm_client.VLLMClient, "server", server, raising=False)
        trainer = toy.make_trainer(
            tmp_path,
            toy.with_sft_adapter(),
            prompts=toy.PROMPTS * 2,
            total_episodes=24,
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=server.url,
            **parts,
        )
        start = toy.learned(trainer)
        trainer.train()
    assert server.loads == 3 and server.asked.count("/v1/completions") == 3  # a rollout each
    # what the server said of its tokens is what the policy says: the weights arrived, those of every update
    differences = toy.logged(trainer, "sampling/sampling_logp_difference/max")
    assert len(differences) == 3 and max(differences) < 1e-4
    assert all(not torch.equal(p, start[n]) for n, p in toy.learned(trainer).items())
