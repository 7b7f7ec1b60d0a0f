"""The way of clips through a network on a machine: the same features, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import UsageError
from models.backbones import Backbone, create
from models.backbones.fold import fold_norms
from models.backbones.machine import Machine, Staging, _leave_out, on_host, prepared

BACKBONES = ["clip", "i3d", "slowfast"]
every = pytest.mark.parametrize("name", BACKBONES)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cache
def built(name: str) -> Backbone:
    return create(name, preset="tiny", calibrated=False)


def clips(backbone: Backbone, count: int, extra: int = 0) -> list[np.ndarray[Any, Any]]:
    """As a decoder gives them: read-only, here and there larger than the network looks at."""
    edge = backbone.short_side + extra
    noise = np.random.default_rng(7).integers(0, 256, (count, backbone.frames, edge, edge, 3))
    frames = noise.astype(np.uint8)
    frames.flags.writeable = False
    return list(frames)


def alike(got: Any, want: Any) -> float:
    """Cosine of two sets of features."""
    a, b = (np.asarray(each, np.float64).ravel() for each in (got, want))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@every
def test_the_machine_gives_the_features_of_the_plain_network(name: str) -> None:
    backbone = built(name)
    frames = clips(backbone, 3)
    got = Machine(backbone, batch_size=4).encode(frames)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(
        on_host(got), backbone.encode(np.stack(frames)), rtol=1e-4, atol=1e-4
    )


@every
def test_bfloat16_gives_nearly_the_same_features_in_float32(name: str) -> None:
    backbone = built(name)
    frames = clips(backbone, 3)
    machine = Machine(backbone, batch_size=4, precision="bfloat16")
    body = machine.backbone.net[1]  # type: ignore[index]  # enter, body, leave, tail
    assert {each.dtype for each in body.parameters()} == {torch.bfloat16}
    got, want = machine.encode(frames), backbone.encode(np.stack(frames))
    assert got.dtype == torch.float32
    assert 0.999 < alike(got, want) < 1  # above 1 - 1e-12 it would have been float32


@every
def test_a_batch_gives_what_its_clips_give_alone_also_at_the_tail(name: str) -> None:
    machine = Machine(built(name), batch_size=4)
    frames = clips(built(name), 5)
    batches = [on_host(machine.encode(frames[:4])), on_host(machine.encode(frames[4:]))]
    alone = [on_host(machine.encode([each])) for each in frames]
    np.testing.assert_allclose(np.concatenate(batches), np.concatenate(alone), rtol=1e-4, atol=1e-4)


def test_features_of_one_batch_are_not_touched_by_the_next() -> None:
    machine = Machine(built("clip"), batch_size=2)
    one, two = (clips(built("clip"), 4)[i : i + 2] for i in (0, 2))
    first = machine.encode(one)
    kept = on_host(first).copy()
    machine.encode(two)
    np.testing.assert_array_equal(on_host(first), kept)
    # As the stage keeps them: vectors of several batches, brought to the host at once.
    both = [*machine.encode(one), *machine.encode(two)]
    np.testing.assert_array_equal(on_host(both)[:2], kept)


def test_only_what_the_network_looks_at_is_staged() -> None:
    backbone = built("slowfast")
    large = clips(backbone, 2, extra=10)
    machine = Machine(backbone, batch_size=2)
    cut = [each[:, 5:-5, 5:-5] for each in large]
    np.testing.assert_array_equal(on_host(machine.encode(large)), on_host(machine.encode(cut)))
    with pytest.raises(ValueError, match="at least 64 pixels, got 60x64"):
        machine.encode([np.zeros((32, 60, 64, 3), np.uint8)])


def test_a_batch_of_nothing_of_too_much_or_of_different_windows_is_refused() -> None:
    backbone = built("i3d")
    machine = Machine(backbone, batch_size=2)
    frames = clips(backbone, 3)
    with pytest.raises(ValueError, match="1 to 2 windows go together, got 0"):
        machine.encode([])
    with pytest.raises(ValueError, match="1 to 2 windows go together, got 3"):
        machine.encode(frames)
    with pytest.raises(ValueError, match=r"differ in shape or type.*\(15, 64, 64, 3\)"):
        machine.encode([frames[0], frames[1][:15]])


def test_the_staging_buffer_is_kept_and_grows_and_repeats_the_last_row() -> None:
    staging = Staging()
    windows = [np.full((2, 3), value, np.uint8) for value in (1, 2)]
    first = staging.fill(windows, 4)
    assert first[:, 0, 0].tolist() == [1, 2, 2, 2]
    assert staging.fill(windows[:1], 1).data_ptr() == first.data_ptr()
    sound = staging.fill([np.arange(99, dtype=np.float32)], 1)
    assert (sound.dtype, sound.shape, float(sound[0, 98])) == (torch.float32, (1, 99), 98.0)


def test_a_precision_that_does_not_exist_or_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="precision 'float16'; allowed: float32, bfloat16"):
        Machine(built("i3d"), batch_size=1, precision="float16")
    sound = create("panns", preset="tiny", calibrated=False)
    with pytest.raises(UsageError, match="backbone panns: precision 'bfloat16'; allowed: float32"):
        prepared(sound, "bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="device 'cuda' is asked for, but torch finds no GPU"):
        Machine(built("i3d"), device="cuda", batch_size=1)


# --- folding


@pytest.mark.parametrize(("name", "norms"), [("slowfast", 110), ("i3d", 57), ("panns", 12)])
def test_every_norm_after_a_convolution_is_folded_in_a_copy(name: str, norms: int) -> None:
    backbone = create(name, preset="tiny", calibrated=False)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    net = prepared(backbone).net
    # The norm of PANNs' decibels comes before the first convolution.
    left = [each for each in net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    assert len(left) == (1 if name == "panns" else 0)
    assert sum(
        isinstance(each, nn.BatchNorm3d | nn.BatchNorm2d) for each in backbone.modules()
    ) == (norms + len(left))
    after = backbone.net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


class Pair(nn.Module):
    NORM_AFTER = {"conv": "bn"}  # noqa: RUF012 - as the networks write it, without the annotation

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=bias)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.bn(self.conv(x))
        return out


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_convolution_computes_what_the_two_did(bias: bool) -> None:
    torch.manual_seed(0)
    pair = Pair(bias).double().requires_grad_(False)
    for tensor in (pair.bn.weight, pair.bn.bias, pair.bn.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]  # statistics are there by default
    nn.init.uniform_(pair.bn.running_var, 0.1, 2)  # type: ignore[arg-type]  # as above
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    want = pair.eval()(x)
    assert fold_norms(pair) == 1
    torch.testing.assert_close(pair(x), want, rtol=1e-12, atol=1e-12)
    assert fold_norms(pair) == 0


def test_a_norm_in_training_mode_is_not_folded() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_norms(Pair(bias=False).train())


# --- torch.compile

compiler = pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("g++"), reason="needs g++ to compile"
)


# torch's own, while it imports its compiler
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@compiler
@pytest.mark.slow
def test_a_compiled_network_gives_the_same_features_for_every_length_of_batch() -> None:
    machine = Machine(built("clip"), batch_size=3, compile=True)
    frames = clips(built("clip"), 3)
    machine.warm(frames[0].shape)
    want = built("clip").encode(np.stack(frames))
    torch._dynamo.config.error_on_recompile = True
    try:
        for count in (3, 1, 2):
            got = on_host(machine.encode(frames[:count]))
            np.testing.assert_allclose(got, want[:count], rtol=1e-4, atol=1e-4)
    finally:
        torch._dynamo.config.error_on_recompile = False


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_so_and_what_to_set(tmp_path: Path) -> None:
    code = (
        "from models.backbones import create\n"
        "from models.backbones.machine import Machine\n"
        "from data.errors import UsageError\n"
        "backbone = create('clip', preset='tiny', calibrated=False)\n"
        "machine = Machine(backbone, batch_size=2, compile=True)\n"
        "try:\n"
        "    machine.warm((1, 64, 64, 3))\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    none = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | none,
    )
    assert done.returncode == 0, done.stderr
    assert "backbone clip cannot be compiled on this machine" in done.stdout
    assert "needs a C++ compiler (g++ or clang)" in done.stdout
    assert "set `compile: false`" in done.stdout


class Counting(torch.nn.Module):
    """Says whether it was traced."""

    def __init__(self, compiles: bool) -> None:
        super().__init__()
        self.compiles = compiles
        self.traced: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.traced.append(torch.compiler.is_compiling())
        return x + 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("compiles", [True, False])
def test_what_does_not_compile_runs_as_it_is_within_a_compiled_network(compiles: bool) -> None:
    part = Counting(compiles)
    network = torch.nn.Sequential(part, torch.nn.ReLU())
    _leave_out(network)
    assert torch.compile(network, backend="eager")(torch.zeros(2)).tolist() == [1.0, 1.0]
    assert part.traced == [compiles]


def test_a_flow_is_left_out_of_what_is_compiled() -> None:
    assert [
        part
        for part in create("i3d_flow", preset="tiny", calibrated=False).modules()
        if not getattr(part, "compiles", True)
    ]


# --- GPU


@needs_gpu
@pytest.mark.gpu
@every
def test_a_gpu_gives_the_features_of_the_cpu(name: str) -> None:
    backbone = built(name)
    machine = Machine(backbone, device="cuda", batch_size=2)
    frames = clips(backbone, 6)
    # More batches than buffers: the third waits until the first is computed.
    results = [row for i in (0, 2, 4) for row in machine.encode(frames[i : i + 2])]
    assert {row.device.type for row in results} == {"cuda"}
    want = backbone.encode(np.stack(frames))
    np.testing.assert_allclose(on_host(results), want, rtol=1e-3, atol=1e-3)
    low = Machine(backbone, device="cuda", batch_size=6, precision="bfloat16").encode(frames)
    assert alike(on_host(low), want) > 0.999
