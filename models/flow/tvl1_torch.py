"""TV-L1 optical flow in PyTorch: many pairs at once, on a GPU as well as on a CPU.

Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM 2007, in
the scheme of Sánchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation", IPOL 2013,
https://doi.org/10.5201/ipol.2013.26, with the parameters, the median filter and the stopping rule
that OpenCV's DualTVL1OpticalFlow has by default: the flow that DeepMind trained I3D on is of this
kind. It follows OpenCV's steps but not its roundings: for frames with structure the two agree to
some hundredths of a pixel (tests/models/flow/README.md).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from data.errors import UsageError
from models.flow.base import CHUNK, FLOWS, Flow

__all__ = ["TVL1Settings", "TorchTVL1"]

_LUMA = (0.299, 0.587, 0.114)
_SMALLEST = 16
"""Pixels; the pyramid ends before a picture gets smaller."""
_FLAT = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class TVL1Settings:
    """Parameters of the method; defaults and names as in OpenCV's DualTVL1OpticalFlow.

    Args:
        tau: time step of the dual scheme.
        lambda_: weight of the brightness term: smaller is smoother.
        theta: coupling of the two parts of the energy.
        scales: pictures of the pyramid.
        scale_step: size of each picture of the pyramid, as a share of the one before.
        warps: times that the second picture is warped at each scale.
        epsilon: change of the flow in pixels, root mean square, at which a warp is left.
        outer: at most so many median filterings per warp.
        inner: at most so many steps between two of them.
        median: edge of the median filter in pixels, 1 or an odd number up to 5; 1 is none.
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    scales: int = 5
    scale_step: float = 0.8
    warps: int = 5
    epsilon: float = 0.01
    outer: int = 10
    inner: int = 30
    median: int = 5

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("scales", "warps", "outer", "inner")}
        for name, count in counts.items():
            if count < 1:
                raise UsageError(f"flow tvl1: {name} {count}; give 1 or more")
        for name in ("tau", "lambda_", "theta", "epsilon"):
            if not getattr(self, name) > 0:
                raise UsageError(f"flow tvl1: {name} {getattr(self, name)}; give more than 0")
        if not 0 < self.scale_step < 1:
            raise UsageError(f"flow tvl1: scale_step {self.scale_step}; give one between 0 and 1")
        if self.median not in {1, 3, 5}:
            raise UsageError(f"flow tvl1: median {self.median}; allowed: 1 (none), 3, 5")


@FLOWS.register("tvl1-torch")
class TorchTVL1(Flow):
    """TV-L1 on the device of the frames.

    Args:
        settings: of the method, as keywords (`TVL1Settings`).
        chunk: pairs of frames that are worked on together.
    """

    name = "tvl1-torch"
    min_side = _SMALLEST

    def __init__(
        self,
        *,
        tau: float = TVL1Settings.tau,
        lambda_: float = TVL1Settings.lambda_,
        theta: float = TVL1Settings.theta,
        scales: int = TVL1Settings.scales,
        scale_step: float = TVL1Settings.scale_step,
        warps: int = TVL1Settings.warps,
        epsilon: float = TVL1Settings.epsilon,
        outer: int = TVL1Settings.outer,
        inner: int = TVL1Settings.inner,
        median: int = TVL1Settings.median,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(chunk)
        self.settings = TVL1Settings(
            tau, lambda_, theta, scales, scale_step, warps, epsilon, outer, inner, median
        )

    def params(self) -> dict[str, Any]:
        """See `Flow.params`."""
        return {"flow": self.name} | asdict(self.settings)

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """See `Flow.between`."""
        step, scales = self.settings.scale_step, self.settings.scales
        ones, others = (_pyramid(_grey(each), step, scales) for each in (first, second))
        coarsest = ones[-1]
        flow = coarsest.new_zeros((len(coarsest), 2, *coarsest.shape[-2:]))
        for one, other in zip(reversed(ones), reversed(others), strict=True):
            if flow.shape[-2:] != one.shape[-2:]:
                height, width = one.shape[-2:]
                flow = _resized(flow, height, width) / step
            flow = _at_one_scale(one, other, flow, self.settings)
        return flow


def _grey(frames: Tensor) -> Tensor:
    """uint8 (P, H, W, 3) to whole grey levels 0..255, float32 (P, 1, H, W), as 8-bit grey has."""
    weights = torch.tensor(_LUMA, device=frames.device)
    return torch.floor(frames.float() @ weights + 0.5)[:, None]


def _pyramid(picture: Tensor, step: float, scales: int) -> list[Tensor]:
    """The picture and smaller ones, from large to small."""
    pyramid = [picture]
    while len(pyramid) < scales:
        height, width = (round(side * step) for side in pyramid[-1].shape[-2:])
        if min(height, width) < _SMALLEST:
            break
        pyramid.append(_resized(pyramid[-1], height, width, 1 / step))
    return pyramid


def _resized(x: Tensor, height: int, width: int, ratio: float | None = None) -> Tensor:
    """(P, C, H, W) resized bilinearly, pixel centres at halves, without smoothing, as OpenCV does.

    `ratio` is the step between samples where it is not old size / new size.
    """
    rows = _linear(x.shape[-2], height, ratio, x)
    columns = _linear(x.shape[-1], width, ratio, x)
    return rows @ x @ columns.T


def _linear(old: int, new: int, ratio: float | None, like: Tensor) -> Tensor:
    """The matrix (new, old) of linear interpolation along one axis."""
    at = (torch.arange(new, dtype=torch.float64) + 0.5) * (ratio or old / new) - 0.5
    at = at.clamp(0, old - 1)
    left = at.floor().long()
    share = (at - left)[:, None]
    matrix = torch.zeros(new, old, dtype=torch.float64)
    matrix.scatter_add_(1, left[:, None], 1 - share)
    matrix.scatter_add_(1, (left + 1).clamp(max=old - 1)[:, None], share)
    return matrix.to(like)


def _at_one_scale(first: Tensor, second: Tensor, flow: Tensor, settings: TVL1Settings) -> Tensor:
    """The flow (P, 2, H, W) of pictures (P, 1, H, W), from a first guess."""
    stack = torch.cat([second, *_central_differences(second)], dim=1)
    # Of each of the two components of the flow, the dual variable: (P, component, axis, H, W).
    dual = flow.new_zeros((len(flow), 2, 2, *flow.shape[-2:]))
    for _ in range(settings.warps):
        warped = _warped(stack, flow)
        gradient = warped[:, 1:]
        residual = warped[:, :1] - first - (gradient * flow).sum(1, keepdim=True)
        flow, dual = _solved(flow, dual, gradient, residual, settings)
    return flow


def _solved(
    flow: Tensor, dual: Tensor, gradient: Tensor, residual: Tensor, settings: TVL1Settings
) -> tuple[Tensor, Tensor]:
    """Flow and dual variable after the steps of one warp.

    A pair that has come to rest leaves the batch: it keeps its values, whatever company it had, and
    costs nothing while the others go on.
    """
    square = (gradient**2).sum(1, keepdim=True)
    # Where a picture is flat there is nothing to follow: a bound of 0 makes the step there 0.
    limit = settings.lambda_ * settings.theta
    bound = torch.where(square > _FLAT, limit * square, torch.zeros_like(square))
    fixed: tuple[Tensor, ...] = (gradient, residual, square.clamp(min=_FLAT), bound)
    rest = settings.epsilon**2 * flow.shape[-1] * flow.shape[-2]
    solved, solved_dual = flow.clone(), dual.clone()
    going = torch.arange(len(flow), device=flow.device)
    for _ in range(settings.outer):
        flow = _median(flow, settings.median)
        for _ in range(settings.inner):
            new, dual = _step(flow, dual, fixed, settings)
            moves = ((new - flow) ** 2).sum((1, 2, 3)) > rest
            flow = new
            if bool(moves.all()):
                continue
            solved[going], solved_dual[going] = flow, dual
            going, flow, dual = going[moves], flow[moves], dual[moves]
            if not len(going):
                return solved, solved_dual
            fixed = tuple(each[moves] for each in fixed)
    solved[going], solved_dual[going] = flow, dual
    return solved, solved_dual


def _step(
    flow: Tensor, dual: Tensor, fixed: tuple[Tensor, ...], settings: TVL1Settings
) -> tuple[Tensor, Tensor]:
    """One step of both variables."""
    gradient, residual, square, bound = fixed
    value = residual + (gradient * flow).sum(1, keepdim=True)
    # -rho / |grad|^2, held within lambda * theta: the three cases of the paper's Eq. 12.
    size = torch.clamp(value, -bound, bound) / square
    new = flow - size * gradient + settings.theta * _divergence(dual)
    return new, _dual_step(dual, new, settings.tau / settings.theta)


def _dual_step(dual: Tensor, flow: Tensor, step: float) -> Tensor:
    slope = _forward_differences(flow)
    # A norm along an axis of two takes ten times as long.
    steepness = torch.hypot(slope[:, :, :1], slope[:, :, 1:])
    return (dual + step * slope) / (1 + step * steepness)


def _central_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return across, down


def _forward_differences(x: Tensor) -> Tensor:
    """(P, 2, H, W) to (P, 2, axis, H, W); nothing flows over the edge."""
    across = functional.pad(x[..., 1:] - x[..., :-1], (0, 1))
    down = functional.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    return torch.stack([across, down], dim=2)


def _divergence(dual: Tensor) -> Tensor:
    """(P, 2, axis, H, W) to (P, 2, H, W): minus the transpose of `_forward_differences`."""
    across, down = dual[:, :, 0], dual[:, :, 1]
    across = across - functional.pad(across[..., :-1], (1, 0))
    return across + down - functional.pad(down[..., :-1, :], (0, 0, 1, 0))


def _warped(stack: Tensor, flow: Tensor) -> Tensor:
    """(P, C, H, W) looked up at the ends of the flow, bicubic, zero outside.

    In float64: a pixel is looked up by coordinates in [-1, 1], and in float32 the rounding of those
    grows into flow at the edges of a picture that stands still.
    """
    height, width = stack.shape[-2:]
    across, down = flow.double().unbind(1)
    x = torch.arange(width, device=flow.device) + across
    y = torch.arange(height, device=flow.device)[:, None] + down
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return functional.grid_sample(stack.double(), grid, mode="bicubic", align_corners=True).float()


def _median(x: Tensor, edge: int) -> Tensor:
    """The median of the `edge` x `edge` pixels around each pixel, the border repeated."""
    if edge == 1:
        return x
    reach = edge // 2
    padded = functional.pad(x, (reach,) * 4, mode="replicate")
    height, width = x.shape[-2:]
    near = [
        padded[..., row : row + height, column : column + width]
        for row in range(edge)
        for column in range(edge)
    ]
    return _middle(near)


def _middle(values: list[Tensor]) -> Tensor:
    """The median of an odd number of equal tensors, element by element.

    By forgetting: of any (n + 3) / 2 values neither the smallest nor the largest is the median of
    n. Elementwise minima and maxima are many times faster than sorting along an axis.
    """
    rest = list(values)
    held = [rest.pop() for _ in range(math.ceil(len(values) / 2) + 1)]
    while len(held) > 3:
        held = _without_extremes(held)
        held.append(rest.pop())
    low, high = torch.minimum(held[0], held[1]), torch.maximum(held[0], held[1])
    return torch.maximum(low, torch.minimum(high, held[2]))


def _without_extremes(values: list[Tensor]) -> list[Tensor]:
    """All but the smallest and the largest, element by element."""
    kept = list(values)
    for index in range(len(kept) - 1, 0, -1):
        low, high = torch.minimum(kept[0], kept[index]), torch.maximum(kept[0], kept[index])
        kept[0], kept[index] = low, high
    for index in range(1, len(kept) - 1):
        low, high = torch.minimum(kept[index], kept[-1]), torch.maximum(kept[index], kept[-1])
        kept[index], kept[-1] = low, high
    return kept[1:-1]
