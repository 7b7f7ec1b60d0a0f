"""PANNs Cnn14: a clip's sound to one 2048-d vector.

Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition",
IEEE/ACM TASLP 2020, https://arxiv.org/abs/1912.10211. Tensor names are those of
qiuqiangkong/audioset_tagging_cnn, so `Cnn14_mAP=0.431.pth` loads strictly, its frozen constants of
the spectrogram included. The feature is the public `embedding`: `fc1` after its ReLU.

What differs from the public code: the spectrogram is a matrix product with the stored windowed
Fourier basis instead of a convolution with it (the same sums; a GPU may round convolutions to TF32,
which matters under a logarithm), and there is no mixup, SpecAugment or dropout, which only training
uses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.base import BACKBONES, Backbone, he_uniform
from models.backbones.classifier import fit_classes
from models.calibration import CALIBRATION_CLIPS, sounds
from models.weights import Checkpoint, Weights, own_layout, tensors_sha256

__all__ = ["Cnn14", "Panns", "fourier_basis", "mel_filters"]

RATE_HZ = 32_000
LEAST_SAMPLES = 9_920
"""Five poolings by two need 32 frames of the spectrogram: 31 hops of 320 samples."""

PUBLISHED_CLASSES = (527,)

_FFT, _HOP = 1024, 320
_MELS, _LOW_HZ, _HIGH_HZ = 64, 50.0, 14_000.0
_FLOOR = 1e-10
_WIDTHS = (64, 128, 256, 512, 1024, 2048)


def fourier_basis() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Real and imaginary part of the Hann-windowed Fourier basis, each (513, 1024)."""
    k, n = np.arange(_FFT // 2 + 1)[:, None], np.arange(_FFT)
    # The remainder keeps the angle small, so that cosine and sine are exact to the last bit.
    angle = 2 * np.pi * ((k * n) % _FFT) / _FFT
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / _FFT)
    return (np.cos(angle) * window).astype(np.float32), (-np.sin(angle) * window).astype(np.float32)


def mel_filters() -> NDArray[np.float32]:
    """Triangular filters of equal area on Slaney's mel scale, (513, 64), as librosa makes them."""
    low, high = _mel(np.array([_LOW_HZ, _HIGH_HZ]))
    edges_hz = _hertz(np.linspace(low, high, _MELS + 2))
    bins_hz = np.linspace(0, RATE_HZ / 2, _FFT // 2 + 1)
    distance, step = edges_hz[:, None] - bins_hz, np.diff(edges_hz)[:, None]
    rising, falling = -distance[:-2] / step[:-1], distance[2:] / step[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    area = 2 / (edges_hz[2:] - edges_hz[:-2])
    return (triangles * area[:, None]).T.astype(np.float32)


_LINEAR_HZ, _LINEAR_MELS = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27
"""Slaney's scale (Auditory Toolbox): 15 mels up to 1 kHz, then 27 for each factor of 6.4."""


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LINEAR_MELS + np.log(np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ) / _LOG_STEP
    return np.where(hertz < _LINEAR_HZ, hertz * _LINEAR_MELS / _LINEAR_HZ, above)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MELS))
    return np.where(mel < _LINEAR_MELS, mel * _LINEAR_HZ / _LINEAR_MELS, above)


class _Stft(nn.Module):
    """Holds the windowed Fourier basis as the public code does: in convolutions (513, 1, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_real = nn.Conv1d(1, _FFT // 2 + 1, _FFT, bias=False)
        self.conv_imag = nn.Conv1d(1, _FFT // 2 + 1, _FFT, bias=False)


class _Spectrogram(nn.Module):
    """|STFT|^2 under the public names."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = _Stft()

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) to (B, frames, 513)."""
        padded = functional.pad(waveform[:, None], (_FFT // 2, _FFT // 2), mode="reflect")
        frames = padded.squeeze(1).unfold(1, _FFT, _HOP)
        real = frames @ self.stft.conv_real.weight.squeeze(1).T
        imaginary = frames @ self.stft.conv_imag.weight.squeeze(1).T
        return real.square() + imaginary.square()


class _LogMel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.melW = nn.Parameter(torch.empty(_FFT // 2 + 1, _MELS))

    def forward(self, power: Tensor) -> Tensor:
        """(B, frames, 513) to decibels (B, frames, 64)."""
        return 10 * torch.log10((power @ self.melW).clamp(min=_FLOOR))


class _Block(nn.Module):
    NORM_AFTER: ClassVar[dict[str, str]] = {"conv1": "bn1", "conv2": "bn2"}

    def __init__(self, width_in: int, width: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self._pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.avg_pool2d(x, self._pool)


class Cnn14(nn.Module):
    """The network under its public names.

    Args:
        divisor: divides all channel counts.
        classes: of the classifier, 527 in AudioSet; 0 for none.
    """

    def __init__(self, divisor: int = 1, classes: int = 527) -> None:
        super().__init__()
        widths = [1, *(width // divisor for width in _WIDTHS)]
        self.dim = widths[-1]
        self.spectrogram_extractor = _Spectrogram()
        self.logmel_extractor = _LogMel()
        self.bn0 = nn.BatchNorm2d(_MELS)
        self._blocks = [f"conv_block{index}" for index in range(1, len(widths))]
        for name, width_in, width in zip(self._blocks, widths, widths[1:], strict=False):
            setattr(self, name, _Block(width_in, width, 1 if name == self._blocks[-1] else 2))
        self.fc1 = nn.Linear(self.dim, self.dim)
        if classes:
            self.fc_audioset = nn.Linear(self.dim, classes)

    @torch.no_grad()
    def set_constants(self) -> None:
        """Write the spectrogram's constants, which a checkpoint brings and a seed does not."""
        stft = self.spectrogram_extractor.stft
        for conv, part in zip((stft.conv_real, stft.conv_imag), fourier_basis(), strict=True):
            conv.weight.copy_(torch.from_numpy(part)[:, None])
        self.logmel_extractor.melW.copy_(torch.from_numpy(mel_filters()))

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, samples) at 32 kHz to decibels (B, samples // 320 + 1, 64)."""
        if waveform.ndim != 2 or waveform.shape[1] < LEAST_SAMPLES:
            raise ValueError(
                f"panns takes sound (B, samples) of at least {LEAST_SAMPLES} samples "
                f"({LEAST_SAMPLES / RATE_HZ:g} s at {RATE_HZ} Hz: fewer do not survive its five "
                f"poolings), got {tuple(waveform.shape)}"
            )
        decibels: Tensor = self.logmel_extractor(self.spectrogram_extractor(waveform))
        return decibels

    def forward(self, waveform: Tensor) -> Tensor:
        """Sound (B, samples) in [-1, 1] at 32 kHz to features (B, dim), all >= 0."""
        x = self.bn0(self.log_mel(waveform)[:, None].transpose(1, 3)).transpose(1, 3)
        for name in self._blocks:
            x = getattr(self, name)(x)
        x = x.mean(dim=3)
        return functional.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))

    def tags(self, feature: Tensor) -> Tensor:
        """Features (B, dim) to probabilities of AudioSet's classes (B, classes)."""
        return torch.sigmoid(self.fc_audioset(feature))


_LAYOUTS = (own_layout("audioset_tagging_cnn", "spectrogram_extractor.stft.conv_real.weight"),)


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    """As `he_uniform`; the norm over decibels expects those of sound, about -35 give or take 20."""
    if name == "bn0.running_mean":
        return -35.0, 0.0
    if name == "bn0.running_var":
        return 400.0, 0.0
    return he_uniform(name, tensor)


@BACKBONES.register("panns")
class Panns(Backbone):
    """Cnn14 features of the sound of each clip.

    `forward` and `encode` take mono sound (B, samples), float32 in [-1, 1] at 32 kHz, of at least
    9,920 samples (0.31 s); shorter sound is a ValueError. `windows` says which sound a clip needs.

    Args:
        checkpoint: weights of `Cnn14`; None for seeded random ones.
        divisor: divides all channel counts.
        classes: of the checkpoint's classifier; 0 for none, None for the 527 of AudioSet.
        seed: of the random weights.
        calibrated: standardise the outputs of random weights (`Backbone`), on seeded sounds.
    """

    name = "panns"
    takes: ClassVar[Literal["frames", "sound"]] = "sound"
    PRECISIONS: ClassVar[tuple[str, ...]] = ("float32",)
    """The logarithm of quiet bins needs all digits of the spectrogram, which the net computes."""
    rate_hz: ClassVar[int] = RATE_HZ
    """Samples per second that the network was trained at."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {"divisor": 16, "classes": 0, "calibrated": True},
    }

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        divisor: int = 1,
        classes: int | None = None,
        seed: int = 0,
        calibrated: bool = False,
    ) -> None:
        built = PUBLISHED_CLASSES[0] if classes is None else classes
        super().__init__(
            lambda: Cnn14(divisor, built), dim=_WIDTHS[-1] // divisor, frames=1, size=1
        )
        self._architecture = {"divisor": divisor}
        adapt = fit_classes(self.name, "fc_audioset.weight", classes, PUBLISHED_CLASSES)
        weights = self._fill(checkpoint, _LAYOUTS, seed, _scale, adapt)
        if weights.kind == "random":
            weights = self._with_constants(weights)
        self._settle(weights, seed, calibrated)

    def _with_constants(self, weights: Weights) -> Weights:
        net: Any = self.net
        net.set_constants()
        return replace(weights, sha256=tensors_sha256(self.net))

    def examples(self, seed: int) -> Tensor:
        """Seeded sounds of a second (`Backbone.examples`)."""
        return torch.from_numpy(sounds(seed, CALIBRATION_CLIPS, RATE_HZ, RATE_HZ))

    def windows(
        self, starts_s: NDArray[np.float64], clip_len_s: float
    ) -> tuple[NDArray[np.float64], float]:
        """Which sound the clips need: starts (N,) and one length, in seconds.

        The clip itself; around a clip shorter than 0.31 s, so much as the network needs.
        """
        length_s = max(clip_len_s, LEAST_SAMPLES / RATE_HZ)
        return np.asarray(starts_s, dtype=np.float64) + (clip_len_s - length_s) / 2, length_s

    def preprocess(self, frames: Tensor) -> Tensor:
        """Sound (B, samples) as float32; the spectrogram is part of the network."""
        return frames.float()
