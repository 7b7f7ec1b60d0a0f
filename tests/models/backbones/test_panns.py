from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.errors import UsageError
from models.backbones import create
from models.backbones.panns import LEAST_SAMPLES, RATE_HZ, Cnn14, fourier_basis, mel_filters

SOUNDS = ("two_seconds", "odd", "shortest")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "tests/golden/panns"


@pytest.fixture(scope="module")
def public(folder: Path) -> Mapping[str, NDArray[Any]]:
    """Outputs of the public network; the README beside them says how they were made."""
    with np.load(folder / "cnn14.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def rule(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("panns_rule", folder / "rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state(rule: Any) -> dict[str, torch.Tensor]:
    """The public checkpoint on filled weights, with the constants that we compute."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Cnn14().state_dict().items()}
    made = {name: torch.from_numpy(value) for name, value in rule.weights(shapes).items()}
    real, imaginary = (torch.from_numpy(part)[:, None] for part in fourier_basis())
    constants = (real, imaginary, torch.from_numpy(mel_filters()))
    return made | dict(zip(rule.CONSTANTS, constants, strict=True))


@pytest.fixture(scope="module")
def filled(state: dict[str, torch.Tensor]) -> Any:
    return create("panns", {"model": state, "iteration": 600_000})


def test_the_constants_of_the_spectrogram_are_those_of_librosa(
    public: Mapping[str, NDArray[Any]],
) -> None:
    np.testing.assert_allclose(mel_filters(), public["melW"], rtol=1e-6, atol=1e-9)
    for part, name in zip(fourier_basis(), ("conv_real", "conv_imag"), strict=True):
        np.testing.assert_allclose(part[::73, ::37], public[name], rtol=0, atol=1e-7)


def test_names_are_the_public_ones(public: Mapping[str, NDArray[Any]]) -> None:
    with torch.device("meta"):
        assert sorted(Cnn14().state_dict()) == public["names"].tolist()


@pytest.mark.parametrize("name", SOUNDS)
def test_the_spectrogram_equals_the_public_one(
    name: str, filled: Any, rule: Any, public: Mapping[str, NDArray[Any]]
) -> None:
    got = filled.net.log_mel(torch.from_numpy(rule.sound(name)))[:, ::10].detach()
    # Decibels; below -60 is rounding noise of the transform on both sides.
    want = public[f"{name}/log_mel"].clip(min=-60)
    np.testing.assert_allclose(got.clamp(min=-60), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", SOUNDS)
def test_features_and_tags_equal_the_public_ones_on_filled_weights(
    name: str, filled: Any, rule: Any, public: Mapping[str, NDArray[Any]]
) -> None:
    feature = filled.encode(rule.sound(name))
    assert feature.shape == (2, 2048)
    want = public[f"{name}/embedding"]
    np.testing.assert_allclose(feature, want, rtol=1e-4, atol=1e-4 * float(want.max()))
    with torch.inference_mode():
        tags = filled.net.tags(torch.from_numpy(feature))
    np.testing.assert_allclose(tags, public[f"{name}/clipwise_output"], rtol=0, atol=1e-4)


def test_the_stored_constants_are_used_and_not_ours() -> None:
    name = "logmel_extractor.melW"
    ours: Any = create("panns", preset="tiny", calibrated=False)
    state = ours.net.state_dict()
    louder: Any = create("panns", state | {name: state[name] * 10}, preset="tiny")
    noise = torch.rand(1, LEAST_SAMPLES, generator=torch.Generator().manual_seed(1)) - 0.5
    rise = louder.net.log_mel(noise) - ours.net.log_mel(noise)
    np.testing.assert_allclose(rise.detach(), 10, atol=1e-3)  # ten times the power is 10 dB


def test_a_checkpoint_without_its_constants_is_refused(state: dict[str, torch.Tensor]) -> None:
    name = "logmel_extractor.melW"
    with pytest.raises(UsageError, match=f"missing 1 tensors: {name}"):
        create("panns", {key: value for key, value in state.items() if key != name})


def test_sound_that_is_too_short_for_the_poolings_is_refused_with_the_least_length() -> None:
    backbone = create("panns", preset="tiny", calibrated=False)
    assert backbone.encode(np.zeros((1, LEAST_SAMPLES), np.float32)).shape == (1, 128)
    with pytest.raises(ValueError, match=r"at least 9920 samples \(0.31 s.*got \(1, 9919\)"):
        backbone.encode(np.zeros((1, LEAST_SAMPLES - 1), np.float32))


def test_a_clip_asks_for_its_own_sound_and_a_short_one_for_more_around_it() -> None:
    backbone: Any = create("panns", preset="tiny", calibrated=False)
    starts, length_s = backbone.windows(np.arange(3) * 2.0, 2.0)
    assert (starts.tolist(), length_s) == ([0.0, 2.0, 4.0], 2.0)
    starts, length_s = backbone.windows(np.arange(2) * 0.25, 0.25)
    assert length_s == LEAST_SAMPLES / RATE_HZ
    np.testing.assert_allclose(starts + length_s / 2, [0.125, 0.375])


def test_random_features_tell_sounds_apart() -> None:
    """Nearest neighbours by cosine among sounds that the constants were not measured on."""
    random = np.random.Generator(np.random.PCG64(5))
    time_s = np.arange(RATE_HZ) / RATE_HZ
    labels = np.arange(48) % 4
    made = np.empty((48, RATE_HZ), np.float32)
    for sound, label in zip(made, labels, strict=True):
        pitch_hz = (220, 880, 3520, 0)[label] * random.uniform(0.9, 1.1)
        tone = np.sin(2 * np.pi * pitch_hz * time_s + random.uniform(0, 6))
        noise = random.uniform(-1, 1, RATE_HZ)
        sound[:] = random.uniform(0.05, 0.5) * (noise if label == 3 else tone) + 1e-3 * noise
    features = create("panns", preset="tiny").encode(made)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similar = features @ features.T
    np.fill_diagonal(similar, -1)
    assert (labels[similar.argmax(axis=1)] == labels).mean() >= 0.9  # chance is 0.25
