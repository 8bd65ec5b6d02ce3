"""Settings that name something outside the run: trackers, a vLLM server."""

import importlib.util
import os
from urllib.parse import urlsplit

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from pipeline.config.checks import (
    TRACKERS,
)
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


def use_vllm_server(config) -> None:
    """Sets what TRL calls it: use_vllm, vllm_mode, vllm_server_base_url.

    Raises:
        UserError: what was given is no address, or contradicts other settings of vLLM.
    """
    address = config.vllm_server
    if address is None:
        return
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        good = good and not (parts.query or parts.fragment or parts.username)
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise UserError(f"vllm_server is {address!r}; give an address such as http://10.0.0.2:8000")
    url = address.rstrip("/")
    if config.vllm_server_base_url not in (None, url):
        raise UserError(
            f"vllm_server is {address}, but vllm_server_base_url is {config.vllm_server_base_url}: give one of them"
        )
    if config.use_transformers_continuous_batching:
        raise UserError(
            "vllm_server and use_transformers_continuous_batching are two ways to sample: give one of them"
        )
    # "colocate" is TRL's default: only together with use_vllm does it say what somebody wanted
    if config.use_vllm and config.vllm_mode != "server":
        raise UserError(
            f"vllm_server is {address}, but vllm_mode is {config.vllm_mode}: set it to server, or leave it out"
        )
    config.use_vllm, config.vllm_mode, config.vllm_server_base_url = True, "server", url
