"""The line between two saved adapters, worked out from their files with a dense singular value decomposition."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def closest(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of that rank that is closest (Eckart and Young 1936), and the singular values that it lacks."""
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank], S[rank:]


def products(folder: Path) -> dict[str, np.ndarray]:
    """What the adapter in a folder adds to each module: alpha / r · B A."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")]
    assert names
    scale = config["lora_alpha"] / config["r"]
    return {
        name: scale
        * weights[f"{name}.lora_B.weight"].astype(np.float64)
        @ weights[f"{name}.lora_A.weight"].astype(np.float64)
        for name in names
    }


def assert_on_the_line(found: Path, start: Path, end: Path, weight: float) -> None:
    """The adapter in `found` is the closest of its rank to the point between the two others, and neither of them."""
    rank = json.loads((Path(found) / "adapter_config.json").read_text())["r"]
    saved, first, last = products(found), products(start), products(end)
    assert saved.keys() == first.keys() == last.keys()
    for name, product in saved.items():
        expected, _ = closest((1 - weight) * first[name] + weight * last[name], rank)
        np.testing.assert_allclose(product, expected, atol=2e-6, err_msg=name)
    for other in (first, last):
        assert max(np.abs(saved[name] - other[name]).max() for name in saved) > 1e-3
