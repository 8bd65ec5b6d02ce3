"""Adapter averaging: what a stage saves is a point on the straight line from the weights that it began with to those
that training ended with,

    W(w) = (1 - w) W_start + w W_end

(WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903; for policies trained on rewards "linear interpolation towards
initialization", the third step of WARP, Ramé et al. 2024, arXiv 2406.16768). Most of the reward is there at a part of
the KL, since the KL grows with the square of a small step.

The line is one of weights, that is of products B A, so that between two adapters of rank r it has rank 2 r. PEFT's
`add_weighted_adapter(..., combination_type="cat")` saves that; but a vLLM server that was started for rank r refuses
it, it costs twice as much wherever it is used, and the next stage would double it again. Here the rank stays: each
module gets the closest matrix of rank r, which its largest r singular values make (Eckart and Young 1936). From a new
adapter, which starts at 0, the line has rank r itself, and nothing is lost.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.adapters import POLICY
from pipeline.models.sharding import ON_A_SHARED_BASE, launcher_of
from pipeline.safety.weights import read_adapter_config
from rewards.foreign import beside_lora

SETTING = "adapter_averaging"
_OTHERS = ("use_dora", "lora_bias", "target_parameters")  # more of an adapter than products B A


def weight_of(config) -> float:
    """The setting `adapter_averaging`; 1 for stages that have none."""
    return getattr(config, SETTING, 1.0)


def check(who: str, config, use_peft: bool, adapter: str | None) -> None:
    """Raises `UserError` where the setting asks for what there is not.

    Args: who: the stage. config: its settings. adapter: folder of the one to start from; None: a new one is made.
    """
    weight = weight_of(config)
    if weight == 1:
        return
    if not use_peft:
        raise UserError(f"{SETTING} is {weight}, but use_peft is false: there is no adapter to average; leave it out")
    launcher = launcher_of(config)
    if launcher not in ("one process", "DDP") and not (launcher == "FSDP" and who in ON_A_SHARED_BASE):
        raise UserError(
            f"{SETTING} is {weight}, but under {launcher} no process of {who} has the whole adapter: use one process "
            "or DDP, or leave it out"
        )
    settings = {} if adapter is None else read_adapter_config(adapter)
    if found := beside_lora(settings) or next((name for name in _OTHERS if settings.get(name)), None):
        raise UserError(
            f"{SETTING} is {weight}, but {adapter} has {found}, of which there is no such line: leave it out"
        )


class Averaging:
    """The line that begins where the policy's adapter on `model` stands now.

    Args: weight: w above.
    """

    def __init__(self, model: PeftModel, weight: float):
        self._model, self._weight = model, weight
        self._start = {name: (A.detach().cpu().clone(), B.detach().cpu().clone()) for name, A, B, _ in _modules(model)}

    @torch.no_grad()
    def apply(self) -> float:
        """Puts the adapter, wherever training has brought it, on its point of the line.

        Returns: what the rank could not hold, as a share of the way from the start to the point; root of the sum of
            squares over all weights.
        """
        lost = way = 0.0
        for name, A, B, scaling in _modules(self._model):
            start, end = self._start[name], (A.detach().cpu(), B.detach().cpu())
            new_A, new_B, rest = point(start, end, self._weight)
            lost += (scaling * rest).square().sum().item()
            way += (scaling * self._weight * _distance(start, end)) ** 2
            A.copy_(new_A)  # only now: on a CPU `end` is the adapter itself
            B.copy_(new_B)
        return (lost / way) ** 0.5 if way else 0.0


def point(start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of rank r closest to (1 - w) B_start A_start + w B_end A_end.

    Args: start, end: A (r, in) and B (out, r).

    Returns: A, B in float64, and the singular values that were left out (their root mean square is the error).
    """
    (A0, B0), (A1, B1) = ((A.double(), B.double()) for A, B in (start, end))
    if not (A0.any() and B0.any()):  # the line has rank r
        return A1, weight * B1, A1.new_zeros(0)
    left, core_left = torch.linalg.qr(torch.cat([(1 - weight) * B0, weight * B1], dim=1))
    right, core_right = torch.linalg.qr(torch.cat([A0, A1]).T)
    U, S, Vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    rank, root = len(A1), S.sqrt()
    A, B = torch.zeros_like(A1), torch.zeros_like(B1)  # a module may be narrower than the rank
    A[: len(S)] = (root[:, None] * Vh @ right.T)[:rank]
    B[:, : len(S)] = (left @ U * root)[:, :rank]
    return A, B, S[rank:]


def _distance(start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> float:
    """‖B_end A_end - B_start A_start‖, Frobenius: ‖X Y‖² = tr(XᵀX YYᵀ)."""
    (A0, B0), (A1, B1) = ((A.double(), B.double()) for A, B in (start, end))
    X, Y = torch.cat([-B0, B1], dim=1), torch.cat([A0, A1])
    return ((X.T @ X) * (Y @ Y.T)).sum().clamp(min=0).sqrt().item()


def _modules(model: PeftModel) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Name, A (r, in), B (out, r) and scale of each module of the policy's adapter."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if POLICY in layer.lora_A:
            found = layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
        elif POLICY in layer.lora_embedding_A:
            found = layer.lora_embedding_A[POLICY], layer.lora_embedding_B[POLICY]
        else:
            continue
        if any(matrix.dim() != 2 for matrix in found):
            raise UserError(f"{SETTING} is for adapters on linear layers and embeddings, and {name} is neither")
        yield name, *found, layer.scaling[POLICY]
