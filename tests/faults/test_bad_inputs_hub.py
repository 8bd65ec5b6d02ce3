"""A Hub that refuses or fails, through the front door, against the real client and a small server (hub_server.py)."""

import json

import pytest
import yaml
from catalogue import Case, check, prepare
from conftest import build_tokenizer
from hub_server import READER, TOKEN, serving

pytest_plugins = ["places", "hub_server"]

PUSH = {"run": "sft", "repo": "me/a", "yes": True, "what": ["policy"]}


def a_run(place):
    """The adapter's folder as a stage leaves it."""
    build_tokenizer().save_pretrained(place / "sft")
    files = {"summary.json": json.dumps({"stage": "sft", "base": "base", "seed": 0}), "metrics.jsonl": '{"step": 1}\n'}
    files |= {"README.md": "---\nlibrary_name: peft\n---\n# t\n", "config.yaml": yaml.safe_dump({"output_dir": "sft"})}
    for name, text in files.items():
        (place / "sft" / name).write_text(text)


def client(url: str, place) -> dict:
    """What a fresh process would have read from its environment; and no waiting between two tries."""
    constants = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "ENDPOINT": url}
    constants |= {"HF_TOKEN_PATH": str(place / "no-login"), "HF_HUB_CACHE": str(place.with_name("cache"))}
    constants |= {"HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}
    presets = {f"huggingface_hub.constants:{name}": value for name, value in constants.items()}
    presets |= {"datasets.config:HF_HUB_OFFLINE": False, "datasets.config:HF_ENDPOINT": url}
    return presets | {"pipeline.hub.upload:WAITS": [0.01, 0.01]}


def push(name: str, *says: str, **settings) -> Case:
    return Case(name, says, "push", PUSH | settings, a_run)


WRITER = {"HF_TOKEN": TOKEN}
CASES = {
    "offline": (push("offline", "offline mode", "unset HF_HUB_OFFLINE"), WRITER),
    "no-token": (push("no token", "cannot be pushed without a token", "hf auth login"), {"HF_TOKEN": ""}),
    "wrong-token": (push("wrong token", "does not accept the token (401)", "hf auth login"), {"HF_TOKEN": "hf_wrong"}),
    "token-that-reads": (push("reads", "may not write to me/a (403)", "write access"), {"HF_TOKEN": READER}),
    "account-of-somebody-else": (push("else", "may not write to other/a (403)", repo="other/a"), WRITER),
    "name-without-an-account": (push("name", "repo: 'a' is not valid", "account/name", repo="a"), WRITER),
    "no-run": (push("no run", "runs/none", run="runs/none"), WRITER),
    "no-such-repository-for-the-model": (
        Case("model", ("me/none", "the Hub does not give it"), settings={"model_name_or_path": "me/none"}),
        WRITER,
    ),
    "no-such-repository-for-the-data": (
        Case("data", ("dataset me/none", "the Hub does not give it"), settings={"dataset": "me/none"}),
        WRITER,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_hubs(door, place, server, name):
    case, env = CASES[name]
    presets = {} if name == "offline" else client(server.url, place)
    message = check(door, place, case, env=env, presets=presets)
    assert server.repos == {} and not any(token in message for token in (TOKEN, READER, "hf_wrong"))


def test_no_network(door, place):
    with serving() as gone:
        pass
    case = push("no network", f"{gone.url} cannot be reached", "check the network", "run the same command again")
    check(door, place, case, env=WRITER, presets=client(gone.url, place))


def test_push_interrupted_half_way(door, place, server):
    """The weights have arrived, the commit has not been made: nothing shows, and the next push sends nothing twice."""
    server.fail("POST", "/commit/", 500, times=3)  # a try and two more
    presets = client(server.url, place)
    case = push("half-way", "the Hub is in trouble (500)", "run the same command again later")
    check(door, place, case, env=WRITER, presets=presets)
    sent = server.asked("PUT", "/lfs/")
    assert server.files("me/a") == {} and len(sent) == 1
    prepare(place, case)
    again = door("push", ["--config", "run.yaml"], place, env=WRITER, presets=presets)
    assert again.code == 0 and server.asked("PUT", "/lfs/") == sent
    assert {"adapter_model.safetensors", "README.md"} <= set(server.files("me/a"))
