"""What every backbone must keep, on its tiny preset."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.errors import UsageError
from models.backbones import BACKBONES, Backbone, create

every = pytest.mark.parametrize("name", BACKBONES.names())


@cache
def built(name: str, seed: int = 0) -> Backbone:
    return create(name, preset="tiny", seed=seed)


def clips(backbone: Backbone, count: int = 3) -> NDArray[Any]:
    """Noise of the kind that the backbone takes."""
    size = backbone.short_side
    random = np.random.Generator(np.random.PCG64(7))
    if backbone.takes == "sound":
        return random.uniform(-1, 1, (count, 16_000)).astype(np.float32)
    noise = random.integers(0, 256, (count, backbone.frames, size, size, 3))
    return noise.astype(np.uint8)


@every
def test_the_declared_dimension_is_produced(name: str) -> None:
    backbone = built(name)
    out = backbone.encode(clips(backbone))
    assert out.shape == (3, backbone.dim)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


@every
def test_a_batch_gives_what_its_clips_give_alone(name: str) -> None:
    backbone = built(name)
    frames = clips(backbone)
    alone = np.concatenate([backbone.encode(frames[i : i + 1]) for i in range(len(frames))])
    # Sums run in another order for another batch size: float32 rounding, times the output scale.
    np.testing.assert_allclose(backbone.encode(frames), alone, rtol=1e-3, atol=1e-3)


@every
def test_encoding_twice_gives_the_same_bits_and_training_mode_is_off(name: str) -> None:
    backbone = built(name)
    frames = clips(backbone)
    assert np.array_equal(backbone.encode(frames), backbone.encode(frames))
    assert not any(module.training for module in backbone.modules())
    assert not any(each.requires_grad for each in backbone.parameters())


@every
def test_forward_takes_what_preprocess_gives(name: str) -> None:
    backbone = built(name)
    frames = clips(backbone)
    with torch.inference_mode():
        out = backbone(backbone.preprocess(torch.from_numpy(frames)))
    assert np.array_equal(out.numpy(), backbone.encode(frames))


@every
def test_frames_are_asked_for_in_time_order_for_every_clip(name: str) -> None:
    backbone = built(name)
    times = backbone.clip_times(np.arange(5) * 2.0, 2.0, native_fps=25.0, duration_s=10.0)
    assert times.dtype == np.float64
    assert times.shape[0] == 5
    assert times.shape[1] >= backbone.frames
    assert (np.diff(times, axis=1) >= 0).all()
    assert (times > 0).all()
    assert abs(times[2].mean() - 5.0) < 0.1


@every
def test_building_leaves_the_random_state_of_torch_alone(name: str) -> None:
    state = torch.get_rng_state()
    create(name, preset="tiny", calibrated=False)
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_the_recipe_is_plain_json_and_says_that_weights_are_random(name: str) -> None:
    params = json.loads(json.dumps(built(name).params()))
    assert params["backbone"] == name
    assert params["weights"] == {"kind": "random", "sha256": built(name).weights.sha256}


@every
def test_another_seed_is_another_network(name: str) -> None:
    one, other = built(name), built(name, seed=1)
    assert one.weights.sha256 != other.weights.sha256
    assert not np.allclose(one.encode(clips(one)), other.encode(clips(other)), atol=0.1)


def test_another_process_builds_the_same_networks() -> None:
    # Without calibration, which costs time: its hash follows from the network's and from a rule.
    code = (
        "from models.backbones import BACKBONES, create\n"
        "for name in BACKBONES:\n"
        "    print(name, create(name, preset='tiny', calibrated=False).weights.sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    raw = {name: create(name, preset="tiny", calibrated=False) for name in BACKBONES}
    here = [f"{name} {raw[name].weights.sha256}" for name in BACKBONES]
    assert done.stdout.split("\n")[:-1] == here


@every
def test_calibrated_and_raw_outputs_have_different_hashes(name: str) -> None:
    raw = create(name, preset="tiny", calibrated=False)
    assert raw.weights.sha256 != built(name).weights.sha256
    assert raw.params()["calibrated"] is False


@every
def test_its_own_state_loads_and_is_called_a_file(name: str) -> None:
    raw = create(name, preset="tiny", calibrated=False)
    state = full_state(name, raw)
    loaded = create(name, state, preset="tiny")
    assert loaded.weights.kind == "file"
    assert loaded.weights.sha256 == raw.weights.sha256
    assert loaded.params()["calibrated"] is False
    np.testing.assert_array_equal(loaded.encode(clips(raw)), raw.encode(clips(raw)))


@every
def test_a_wrong_checkpoint_names_missing_and_unexpected_tensors(name: str) -> None:
    state = full_state(name, create(name, preset="tiny", calibrated=False))
    lost = next(key for key in state if key.endswith(".bias"))
    with pytest.raises(UsageError, match=f"missing 1 tensors: {lost}"):
        create(name, {k: v for k, v in state.items() if k != lost}, preset="tiny")
    with pytest.raises(UsageError, match="unexpected 1 tensors: stranger"):
        create(name, state | {"stranger": torch.zeros(1)}, preset="tiny")
    with pytest.raises(UsageError, match="is no checkpoint of"):
        create(name, {"stranger": torch.zeros(1)}, preset="tiny")


def full_state(name: str, backbone: Backbone) -> dict[str, torch.Tensor]:
    """The state dict that a checkpoint of this backbone holds (CLIP's has a text side, too)."""
    if name == "clip":
        from models.clip import TINY_MODEL, build_clip

        return build_clip(TINY_MODEL).net.state_dict()
    return backbone.net.state_dict()


@every
def test_wrong_options_are_sentences(name: str) -> None:
    with pytest.raises(UsageError, match="unknown option 'sede'; did you mean 'seed'"):
        create(name, sede=1)
    with pytest.raises(UsageError, match="unknown preset 'tny'; did you mean 'tiny'"):
        create(name, preset="tny")


def test_an_unknown_backbone_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'slowfast'"):
        create("slowfst")
