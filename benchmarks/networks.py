"""How fast do the full-size networks run with frames in memory, how near to the machine's limit?

uint8 windows of the decoder's shape in, float32 features on the host out, through the same
`Machine` as the stages; decoding plays no part. The limit is measured on the same machine: one
large matrix product gives the FLOP/s of a precision, one large copy the bytes/s, and the network's
own FLOP (2 x multiply-add, counted by torch) and activation bytes say which is reached first. The
bytes are those of convolutions and products only, as if everything between were fused; all bytes
that eager execution moves are shown beside. Weights are random: they cost the same.

Targets hold on a GPU of the H100 class or above, in bfloat16. On a CPU there are figures only.

    python benchmarks/networks.py [--compile] [--batch 32] [--seconds 5] [--network slowfast ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from harness import Benchmark
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import Backbone, create
from models.backbones.base import channels_first
from models.backbones.machine import Machine, on_host

FRAMES = {"slowfast": 32, "i3d": 50}
"""Of a window for clips of 2 s."""
AT_LEAST = {"slowfast": 1000, "clip": 15_000}
BATCHES = {"cuda": {"clip": 512, "slowfast": 32, "i3d": 32}, "cpu": {"clip": 16}}
FAST_GPUS = ("H100", "H200", "B200", "B300", "GH200", "GB200")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIP_STAND_IN = "ViT-B/32 (shape of CLIP's)"


class PlainViT(nn.Module):
    """The layers of CLIP's ViT-B/32 by torch's own encoder, for machines without open_clip."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 32, 32, bias=False)
        self.places = nn.Parameter(torch.zeros(50, 768))
        layer = nn.TransformerEncoderLayer(
            768, 12, 3072, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.proj = nn.Linear(768, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) to (B, 512)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_zeros(len(x), 1, 768), tokens], 1) + self.places
        out: Tensor = self.proj(self.blocks(tokens)[:, 0])
        return out


class StandIn(Backbone):
    """`PlainViT` with the preprocessing of CLIP; not a backbone that anyone can ask for."""

    name = "vit"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self) -> None:
        super().__init__(PlainViT, dim=512, frames=1, size=224)
        self._settle(self._fill(None, (), 0, lambda _, t: (0.0, t[0].numel() ** -0.5)), 0, False)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 1, H, W, 3) to float (B, 3, H, W)."""
        return (channels_first(frames).squeeze(2) / 255.0 - 0.45) / 0.27


class Traffic(TorchDispatchMode):
    """Counts bytes that the operations under it read and write, weights left out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._weights = {each.data_ptr() for each in net.parameters()}
        self.fused = self.eager = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            moved = sum(self._size(each) for each in (*tensors(args), *tensors(out)))
            self.eager += moved
            if any(word in str(func) for word in ("conv", "mm", "attention", "linear")):
                self.fused += moved
        return out

    def _size(self, tensor: Tensor) -> int:
        if tensor.data_ptr() in self._weights:
            return 0
        return tensor.numel() * tensor.element_size()


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from tensors(each)


@dataclass(frozen=True)
class Cost:
    """Of one clip."""

    flop: float
    fused_bytes: float
    eager_bytes: float


def cost(machine: Machine, window: NDArray[np.uint8]) -> Cost:
    """Measured by running one clip."""
    backbone = machine.backbone
    batch = backbone.preprocess(torch.from_numpy(backbone.seen(window)[None]).to(machine.device))
    traffic, counter = Traffic(backbone), FlopCounterMode(display=False)
    # Attention in one fused operation would not be counted.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), counter:
        backbone(batch)
    with torch.no_grad(), traffic:
        backbone(batch)
    torch.backends.mha.set_fastpath_enabled(fast)
    return Cost(counter.get_total_flops(), traffic.fused, traffic.eager)


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Least of five runs, after one to warm up."""
    taken = []
    for _ in range(6):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_per_s(device: torch.device, precision: str) -> float:
    """Of one large matrix product."""
    edge = 8192 if device.type == "cuda" else 1536
    one = torch.randn(edge, edge, device=device).to(DTYPES[precision])
    return 2 * edge**3 / best_seconds(lambda: one @ one, device)


def bytes_per_s(device: torch.device) -> float:
    """Read and written by one large copy."""
    source = torch.ones(1 << (30 if device.type == "cuda" else 25), device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source), device)


def rate(machine: Machine, window: NDArray[np.uint8], seconds: float) -> float:
    """Clips per second, features on the host included."""
    windows = [window] * machine.batch_size
    on_host(machine.encode(windows))
    on_host(machine.encode(windows))
    rows: list[Tensor] = []
    start = time.perf_counter()
    while not rows or time.perf_counter() - start < seconds:
        rows += machine.encode(windows).unbind()
    on_host(rows)
    return len(rows) / (time.perf_counter() - start)


def network(name: str) -> tuple[str, Backbone]:
    """A full-size network and what it is called in the table."""
    if name == "clip" and importlib.util.find_spec("open_clip") is None:
        return CLIP_STAND_IN, StandIn()
    return name, create(name)


def measure(
    bench: Benchmark, name: str, precision: str, device: torch.device, bandwidth: float
) -> None:
    """Rate, limit and share of one network in one precision."""
    args = bench.args
    label, backbone = network(name)
    size, frames = backbone.short_side, FRAMES.get(name, 1)
    window = np.random.default_rng(0).integers(0, 256, (frames, size, size, 3)).astype(np.uint8)
    batch = args.batch or BATCHES[device.type].get(name, 1)
    options = {"device": device, "batch_size": batch, "precision": precision}
    machine = Machine(backbone, compile=args.compile, **options)
    if args.compile:
        machine.warm(window.shape)
    needs = cost(Machine(backbone, **options) if args.compile else machine, window)
    got = rate(machine, window, args.seconds)
    by_flop = flop_per_s(device, precision) / needs.flop
    by_bytes = bandwidth / needs.fused_bytes
    target = AT_LEAST.get(name) if is_fast(device) and precision == "bfloat16" else None
    unit = "images/s" if frames == 1 else "clips/s"
    title = f"{label} {precision}"
    bench.figure(f"{title}, batch {batch}", got, unit, at_least=target)
    bench.figure(f"{title}, limit by FLOP ({needs.flop / 1e9:.1f} G)", by_flop, unit)
    moved = f"{needs.fused_bytes / 1e9:.2f} GB fused, {needs.eager_bytes / 1e9:.2f} eager"
    bench.figure(f"{title}, limit by memory ({moved})", by_bytes, unit)
    bench.figure(f"{title}, share of the lower limit", 100 * got / min(by_flop, by_bytes), "%")


def is_fast(device: torch.device) -> bool:
    """Whether the targets are meant for this device."""
    if device.type != "cuda":
        return False
    return any(each in torch.cuda.get_device_name(device) for each in FAST_GPUS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--batch", type=int, default=0, help="windows a batch; 0: as the device")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each rate")
    parser.add_argument("--network", nargs="+", default=["clip", "slowfast", "i3d"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, no targets"
    threads = torch.get_num_threads()
    bench = Benchmark(
        f"Full-size networks, frames in memory: {on}, {threads} threads, torch {torch.__version__}",
        parser,
    )
    bandwidth = bytes_per_s(device)
    bench.figure("memory of the device", bandwidth / 1e9, "GB/s")
    for precision in DTYPES:
        for name in bench.args.network:
            measure(bench, name, precision, device, bandwidth)
    bench.finish()


if __name__ == "__main__":
    main()
