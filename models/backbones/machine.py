"""The way of clips through a network on a machine: staged, copied, computed, left on the device.

`prepared` makes the copy of a backbone that computes; `Machine` feeds it. Windows arrive as arrays
of the decoder, one copy assembles the batch in a reused buffer, uint8 goes to the device and is
normalised there. On a GPU the buffer is pinned and the copy runs on a stream of its own, so that
`encode` returns while the GPU still works, with at most two batches in flight; features are brought
to the host at once, by `on_host`, when a video is finished. On a CPU the same calls simply compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.errors import UsageError
from models.backbones.base import Backbone
from models.backbones.fold import fold_norms

__all__ = ["Machine", "Precision", "on_host", "prepared"]

Precision = Literal["float32", "bfloat16"]
"""`float32` without TF32, `bfloat16` for weights and activations."""

_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

IN_FLIGHT = 2
"""Batches on their way: the GPU computes one while the host assembles the next."""


def prepared(backbone: Backbone, precision: str = "float32") -> Backbone:
    """A copy of `backbone` that computes the same features faster, to rounding.

    Batch norms are folded into their convolutions, channels are last in memory. In `bfloat16` the
    weights and activations of the body are; sums inside a layer, softmax and norms accumulate in
    float32 as torch does it, and pooling, the last projection (`Backbone.split`) and calibration
    run in float32. The copy does not have the public tensor names any more.

    Raises:
        UsageError: a precision that does not exist or that this backbone is not for.
    """
    if precision not in backbone.PRECISIONS:
        raise UsageError(
            f"backbone {backbone.name}: precision '{precision}'; "
            f"allowed: {', '.join(backbone.PRECISIONS)}"
        )
    ready = copy.deepcopy(backbone)
    body, tail = ready.split()
    fold_norms(body)
    dtype = _DTYPES[precision]
    for tensor in body.parameters():
        layout = _FORMATS.get(tensor.ndim, torch.contiguous_format)
        tensor.data = tensor.data.to(dtype, memory_format=layout)
    for buffer in body.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    ready.net = nn.Sequential(_Enter(dtype), body, _Leave(), tail).eval()
    return ready


class _Enter(nn.Module):
    """A preprocessed float batch in the type and layout of the layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, batch: Tensor) -> Tensor:
        layout = _FORMATS.get(batch.ndim, torch.preserve_format)
        return batch.to(self.dtype, memory_format=layout)


class _Leave(nn.Module):
    """What the body gives, in float32."""

    def forward(self, out: Tensor) -> Tensor:
        return out.float()


class Machine:
    """A backbone on a device, fed with the windows of a decoder.

    Args:
        backbone: is copied (`prepared`) and may be dropped.
        device: torch device.
        batch_size: most windows of a call.
        precision: see `prepared`; it changes features, so it belongs into a recipe.
        compile: by torch.compile, for the first window's shape; needs a C++ compiler on a CPU and
            Triton on a GPU. Batches are then filled up to `batch_size`, so that one shape is
            compiled.

    Raises:
        UsageError: a precision that the backbone is not for, a device that is not there.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: str | torch.device = "cpu",
        batch_size: int,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        self.device = _present(torch.device(device))
        self.batch_size = batch_size
        self.backbone = prepared(backbone, precision).to(self.device)
        self._work: Callable[[Tensor], Tensor] = self._features
        self._compiled = compile
        if compile:
            _leave_out(self.backbone)
            self._work = torch.compile(self._features, dynamic=False)
        self._lane: _Lane = _LANES.get(self.device.type, _HostLane)(self.device)

    @torch.inference_mode()
    def encode(self, windows: Sequence[NDArray[Any]]) -> Tensor:
        """One vector per window: float32 (B, dim) on the device, perhaps still being computed.

        Args:
            windows: arrays (k, H, W, 3) of uint8 (or samples (n,) of float32, for a backbone that
                takes sound), all of one shape; read before the call returns, never written.

        Raises:
            ValueError: no windows, more than `batch_size`, or of different shapes.
        """
        if not 0 < len(windows) <= self.batch_size:
            raise ValueError(f"1 to {self.batch_size} windows go together, got {len(windows)}")
        seen = [self.backbone.seen(each) for each in windows]
        rows = self.batch_size if self._compiled else len(seen)
        return self._lane.run(seen, rows, self._work)[: len(seen)]

    def warm(self, shape: Sequence[int], dtype: str = "uint8") -> None:
        """Compute one batch of zero windows of this shape: compiles now what is to be compiled.

        Raises:
            UsageError: it cannot be compiled on this machine.
        """
        windows = [np.zeros(tuple(shape), dtype)] * self.batch_size
        try:
            on_host(self.encode(windows))
        except Exception as error:  # compilers fail in ways of their own
            if not self._compiled:
                raise
            reason = (str(error).splitlines() or ["no reason given"])[0][:200]
            needs = "a C++ compiler (g++ or clang)" if self.device.type == "cpu" else "Triton"
            raise UsageError(
                f"backbone {self.backbone.name} cannot be compiled on this machine "
                f"({type(error).__name__}: {reason}); `compile: true` needs {needs}: install it, "
                "or set `compile: false`, which gives the same features"
            ) from error

    def _features(self, windows: Tensor) -> Tensor:
        out: Tensor = self.backbone(self.backbone.preprocess(windows))
        return out


def on_host(features: Tensor | Sequence[Any]) -> NDArray[np.float32]:
    """Features of any device, a batch or a list of vectors, as one float32 array (n, dim).

    Brings everything to the host in one copy and waits for what is still being computed.
    """
    with torch.inference_mode():
        if not isinstance(features, Tensor):
            features = torch.stack([torch.as_tensor(each) for each in features])
        out: NDArray[np.float32] = features.float().cpu().numpy()
        return out


class Staging:
    """A host buffer, kept between batches, in which windows are put side by side.

    Args:
        pinned: locked in memory, so that a GPU reads it while the host goes on.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    def fill(self, windows: Sequence[NDArray[Any]], rows: int) -> Tensor:
        """A view (rows, ...) of the buffer; rows beyond the windows repeat the last one.

        Raises:
            ValueError: windows of different shapes or types.
        """
        first = windows[0]
        kinds = {(each.shape, each.dtype) for each in windows}
        if len(kinds) > 1:
            raise ValueError(
                f"windows of one batch differ in shape or type: {sorted(map(str, kinds))}"
            )
        size = rows * first.size * first.itemsize
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        batch = self._memory[:size].view(dtype).view(rows, *first.shape)
        for index, row in enumerate(batch.numpy()):
            np.copyto(row, windows[min(index, len(windows) - 1)])
        return batch


class _Lane(Protocol):
    """How a batch gets to the device and its features are asked for."""

    def run(
        self, windows: Sequence[NDArray[Any]], rows: int, work: Callable[[Tensor], Tensor]
    ) -> Tensor: ...


class _HostLane:
    """Computes at once; also for devices that have no streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._staging = Staging()

    def run(
        self, windows: Sequence[NDArray[Any]], rows: int, work: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return work(self._staging.fill(windows, rows).to(self._device))


class _CudaLane:
    """Copies on a stream of its own; computes on the current one; waits only for a free buffer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda: Any = torch.cuda  # its constructors have no types
        self._copies = cuda.Stream(device)
        slots = [(Staging(pinned=True), cuda.Event(blocking=True)) for _ in range(IN_FLIGHT)]
        self._slots = cycle(slots)

    def run(
        self, windows: Sequence[NDArray[Any]], rows: int, work: Callable[[Tensor], Tensor]
    ) -> Tensor:
        staging, done = next(self._slots)
        done.synchronize()  # the batch that lay here is computed; at once if there was none
        host = staging.fill(windows, rows)
        with torch.cuda.device(self._device), _full_float32():
            computes = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                batch = host.to(self._device, non_blocking=True)
            computes.wait_stream(self._copies)
            batch.record_stream(computes)
            features = work(batch)
            done.record(computes)
        return features


_LANES: dict[str, Callable[[torch.device], _Lane]] = {"cuda": _CudaLane}


@contextmanager
def _full_float32() -> Iterator[None]:
    """Convolutions of float32 in float32: torch's own setting rounds their inputs to TF32.

    bfloat16 is not touched by it. Algorithms are not chosen by timing them, which would give other
    bits on another day.
    """
    deterministic = torch.backends.cudnn.deterministic
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=deterministic, allow_tf32=False
    ):
        yield


def _leave_out(network: nn.Module) -> None:
    """Run parts that say `compiles = False` as they are.

    Not by a decorator on them: `torch.compiler.disable` imports all of torch's compiler, 1.3 s of
    the start of every worker.
    """
    disable: Any = torch.compiler.disable  # has no types
    for part in network.modules():
        if not getattr(part, "compiles", True):
            part.forward = disable(part.forward)


def _present(device: torch.device) -> torch.device:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device '{device}' is asked for, but torch finds no GPU here; use device: cpu, or a "
            "machine with a GPU and a torch that is built for it"
        )
    return device
