"""Questions to a vLLM server, and what vLLM 0.32 answered to them: `vllm_recorded.json`.

The stand-in (vllm_stand_in.py) answers in the words that are recorded; tests/rollouts/test_vllm_real.py asks the real
one again. Recorded by:

    python tests/support/vllm_exchanges.py http://127.0.0.1:8000 ADAPTER > tests/support/vllm_recorded.json

with a server on `vllm_base()` (tests/support/vllm_stand_in.py) and the folder of an adapter of rank 2 on it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx2

RECORDED = Path(__file__).with_name("vllm_recorded.json")
MISSING = "/nowhere/adapter"
_ASKED = {"prompt": [3, 4, 5], "n": 1, "seed": 3, "temperature": 1.0, "logprobs": 0, "return_token_ids": True}
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, "max_tokens": 6}


def questions(adapter: str) -> list[tuple[str, str, str, dict | None]]:
    """Name, method, path and body, in the order in which they are asked. `adapter`: its folder."""
    ask = _ASKED | _PLAIN | {"stop_token_ids": []}
    one = {"lora_name": "one", "lora_path": adapter}
    return [
        ("health", "GET", "/health", None),
        ("server_info", "GET", "/server_info?config_format=json", None),
        ("models", "GET", "/v1/models", None),
        ("load nothing", "POST", "/v1/load_lora_adapter", {}),
        ("load unseen", "POST", "/v1/load_lora_adapter", {"lora_name": "unseen", "lora_path": MISSING}),
        ("load", "POST", "/v1/load_lora_adapter", one),
        ("load again", "POST", "/v1/load_lora_adapter", one),
        ("models with one", "GET", "/v1/models", None),
        ("the base speaks", "POST", "/v1/completions", ask | {"model": "base"}),
        ("the adapter speaks", "POST", "/v1/completions", ask | {"model": "one"}),
        ("stopped", "POST", "/v1/completions", ask | {"model": "one", "stop_token_ids": list(range(9))}),
        ("unknown model", "POST", "/v1/completions", ask | {"model": "two"}),
        ("too long", "POST", "/v1/completions", ask | {"model": "one", "max_tokens": 600}),
        ("unload", "POST", "/v1/unload_lora_adapter", {"lora_name": "one"}),
        ("unload again", "POST", "/v1/unload_lora_adapter", {"lora_name": "one"}),
        ("no such page", "POST", "/v1/no_such_page", {}),
    ]


def ask_all(url: str, adapter: str) -> dict[str, dict]:
    """Name -> status and answer, with names of folders, numbers of requests and times taken out."""
    found = {}
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        for name, method, path, body in questions(adapter):
            reply = client.request(method, path, json=body)
            try:
                answer = reply.json()
            except ValueError:
                answer = reply.text
            found[name] = {"status": reply.status_code, "answer": _trimmed(name, answer, adapter)}
    return found


def shape(answer: Any) -> Any:
    """Keys and kinds; of a list its first element. Texts stay, but for the numbers and names in them."""
    if isinstance(answer, dict):
        return {key: shape(value) for key, value in sorted(answer.items())}
    if isinstance(answer, list):
        return [shape(answer[0])] if answer else []
    if isinstance(answer, str):
        return re.sub(r"\d+", "#", answer)
    return "number" if isinstance(answer, int | float) and not isinstance(answer, bool) else answer


def _trimmed(name: str, answer: Any, adapter: str) -> Any:
    if name == "server_info":  # thousands of lines
        config = answer["vllm_config"]
        kept = {"lora_config": ("max_lora_rank", "max_loras"), "model_config": ("logprobs_mode", "max_model_len")}
        return {"vllm_config": {part: {key: config[part][key] for key in keys} for part, keys in kept.items()}}
    if isinstance(answer, dict) and "choices" in answer:
        answer["choices"][0]["logprobs"] |= {"tokens": [], "top_logprobs": []}  # by the tokens' names
    text = json.dumps(answer).replace(adapter, "/adapter")
    text = re.sub(r'"(cmpl|modelperm)-[0-9a-f]+"', r'"\1-0"', text)
    text = re.sub(r'"created": \d+', '"created": 0', text)
    text = re.sub(r'"root": "[^"]*/base"', '"root": "/base"', text)
    return json.loads(re.sub(r'"(system_fingerprint|text)": "[^"]*"', r'"\1": ""', text))


if __name__ == "__main__":
    json.dump(ask_all(sys.argv[1], sys.argv[2]), sys.stdout, indent=1)
    print()
