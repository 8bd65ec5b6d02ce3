"""Settings that name something outside the run: trackers, a vLLM server."""

import importlib.util
import os
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from pipeline.config.checks import TRACKERS, check, setting
from pipeline.errors import UserError


def trackers_of(report_to: None | str | list[str]) -> list[str]:
    """The trackers that a value of `report_to` names; none for None, "none" and an empty list.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in (*INTEGRATION_TO_CALLBACK, "all"):
            known = ", ".join(["none", *TRACKERS, *(k for k in INTEGRATION_TO_CALLBACK if k not in TRACKERS)])
            raise UserError(f"report_to: there is no tracker {name!r}; take one of {known}")
        packages = TRACKERS.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(f"report_to: {name} needs a package that is not installed: pip install {packages[0]}")
    if "mlflow" in names:  # it reads this when it is imported, which Trainer does
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return names


@dataclass(kw_only=True)
class ServerSettings:
    """How completions are sampled by vLLM servers, for whatever samples."""

    vllm_server: None | str | list[str] = setting(
        None, "Address of a vLLM server that samples, such as http://10.0.0.2:8000, or several (docs/scale.md)."
    )
    vllm_adapters: str | None = setting(
        None,
        "Folder through which adapters go to the servers, /here:/there where they see it by another name; none: in "
        "the folder of the result.",
    )
    vllm_copy: str | None = setting(
        None, "Command that copies vllm_adapters to the servers' machine, e.g. rsync -a --delete /here/ host:/there"
    )
    vllm_at_once: int = setting(64, "Completions that one server is asked for at the same time.")
    vllm_request_timeout: float = setting(600.0, "Seconds that one completion may take a server.")


# What TRL has of vLLM and is meant for its own client or for vLLM inside of the trainer; with what is kept of it
_OF_TRL, _KEPT = "vllm_", ("vllm_server_timeout", "vllm_importance_sampling_")


def check_vllm_server(config) -> None:
    """Raises `UserError` when the settings of `ServerSettings` make no sense, alone or beside the others."""
    config.vllm_server = addresses(config.vllm_server) or None
    ours = [each.name for each in fields(ServerSettings)]
    for each in fields(config):
        value, name = getattr(config, each.name), each.name
        foreign = name == "use_vllm" or (name.startswith(_OF_TRL) and name not in ours and not name.startswith(_KEPT))
        if foreign and value != each.default:
            raise UserError(
                f"{name} is {value!r}, which is of TRL's own way to vLLM: it wants vLLM in the trainer's environment, "
                "whose transformers is too new for that. Leave it out, and name a running server in vllm_server"
            )
    check(config.vllm_at_once >= 1, "vllm_at_once", config.vllm_at_once, "a whole number from 1 up")
    seconds = config.vllm_request_timeout
    check(seconds > 0, "vllm_request_timeout", seconds, "a number of seconds above 0")
    if not config.vllm_server:
        for name in ("vllm_adapters", "vllm_copy"):
            check(not getattr(config, name), name, getattr(config, name), "it is for vllm_server, which is not set")
        return
    check(not config.vllm_copy or config.vllm_adapters, "vllm_copy", config.vllm_copy, "set vllm_adapters as well")
    if getattr(config, "use_transformers_continuous_batching", False):
        raise UserError(
            "vllm_server and use_transformers_continuous_batching are two ways to sample: give one of them"
        )
    if getattr(config, "generation_kwargs", None):
        raise UserError(
            f"generation_kwargs is {config.generation_kwargs}, which is for transformers' generation: leave it out "
            "beside vllm_server; temperature, top_p, top_k, min_p and repetition_penalty are settings of their own"
        )


def addresses(given: None | str | list[str]) -> list[str]:
    """The addresses that `vllm_server` names, without a slash at the end; none for None.

    Raises:
        UserError: one of them is no address, or is there twice.
    """
    urls = [given] if isinstance(given, str) else list(given or [])
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
            good = good and not (parts.query or parts.fragment or parts.username)
        except (ValueError, AttributeError, TypeError):  # a port that is none; no text
            good = False
        if not good:
            raise UserError(f"vllm_server is {url!r}; give an address such as http://10.0.0.2:8000")
    urls = [url.rstrip("/") for url in urls]
    if len(set(urls)) < len(urls):
        raise UserError(f"vllm_server names one address twice: {', '.join(urls)}")
    return urls
