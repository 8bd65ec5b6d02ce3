"""Where a result comes from, for strangers: the machine, base and data by name, and their licenses.

Nothing here asks the network, and no path of the machine at hand gets into it.
"""

import os
import platform
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from huggingface_hub import metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipeline.models.folders import is_hub_name

# Of the Hub's list of licenses the usual ones; another is given as license: other, with its name.
LICENSES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bsd bsd-2-clause "
    "bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 agpl-3.0 gpl gpl-2.0 gpl-3.0 lgpl "
    "lgpl-2.1 lgpl-3.0 mpl-2.0 epl-2.0 eupl-1.1 isc odc-by odbl pddl wtfpl unlicense zlib llama2 llama3 llama3.1 "
    "llama3.2 llama3.3 llama4 gemma unknown".split()
)
DATA_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt|arrow)(\.\w+)?$", re.IGNORECASE)
SECRET = re.compile(r"(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
# An absolute path, on this or another system: its folders, and what it names.
_PATH = re.compile(r"(?<![\w.:/\\~-])(?:~\w*|[A-Za-z]:|\\)?[/\\](?:[^\s/\\'\"]+[/\\])*([^\s/\\'\"]*)")


def hardware() -> str:
    """The machine of this process, in words: `1 x NVIDIA H100 80GB HBM3`, or `2 CPU cores (x86_64)`."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    if torch.accelerator.is_available():
        return f"{processes} x {torch.accelerator.current_accelerator().type}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    several = f", {processes} processes" if processes > 1 else ""
    return f"{cores} CPU core{'' if cores == 1 else 's'} ({platform.machine()}){several}"


def shareable(value: Any) -> Any:
    """A setting as others may see it: no absolute path but its last part, no password; lists and mappings as well."""
    if isinstance(value, dict):
        return {key: "(hidden)" if SECRET.search(str(key)) else shareable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"://[^/\s@]*@", "://", value)
    if value.startswith(("/", "~", "file:")) or PureWindowsPath(value).is_absolute():
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _PATH.sub(r"\1", value)


def hub_model(name: str | None, fingerprint: str | None = None) -> str | None:
    """The Hub name of a base, None when it was a local folder; `fingerprint`: a run has one of local weights only."""
    return name if fingerprint is None and _is_hub(name) else None


def hub_data(name: str | None) -> str | None:
    """The Hub name of a data set, None when it was a file or folder."""
    return name if _is_hub(name) and not DATA_FILE.search(name) else None


def license_of(name: str | None, kind: str = "model") -> str | None:
    """The license in the README.md of a local folder (for a data file: of the folder it lies in), or of a Hub
    repository as far as that is on this machine already. `kind` is model or dataset."""
    if not name:
        return None
    path = Path(name)
    if path.exists():
        card = (path if path.is_dir() else path.parent) / "README.md"
    elif _is_hub(name):
        card = try_to_load_from_cache(name, "README.md", repo_type=kind)
    else:
        return None
    try:
        data = metadata_load(card) if isinstance(card, str | Path) and Path(card).is_file() else None
    except Exception:  # somebody else's file, in any shape: see parse_yaml in pipeline/safety/reading.py
        return None
    found = (data or {}).get("license")
    if found == "other":
        found = data.get("license_name") or found
    return ", ".join(map(str, found)) if isinstance(found, list) else found and str(found)


def license_fields(license: str | None) -> dict[str, str]:
    """The card's metadata for a license by its usual name (SPDX, in any case)."""
    if not license:
        return {}
    name = re.sub(r"[^a-z0-9.-]+", "-", license.lower()).strip("-.")
    return {"license": name} if name in LICENSES else {"license": "other", "license_name": name or "custom"}


def _is_hub(name: str | None) -> bool:
    if not name or not is_hub_name(name) or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
