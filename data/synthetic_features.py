"""Clip features of made-up films whose scene cuts are known, to measure boundary detectors with.

    for film in feature_films(SETS["noisy"], count=100, seed=0):
        film.features, film.cuts          # (L, D) float32, and the clips that start a scene

A clip is a mean that all films share, plus the mean of its scene, plus a slow drift (AR(1)), plus
noise that every clip draws anew; some scenes come again later in the film, as in edited video
(specs/llmepet_and_pseudo_events.md §6.3). A gradual cut is a linear cross-fade whose middle is the
true boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SETS", "FeatureFilm", "FilmKind", "feature_films"]

_COMMON = 1.0
"""Length of the mean of all clips, in lengths of a scene's own mean: cosines of clips of different
scenes are then about one half, as those of image encoders are."""


@dataclass(frozen=True)
class FilmKind:
    """What the films of one set are like; lengths are in clips.

    Args:
        clips: shortest and longest film, both included.
        scenes: fewest and most scenes of a film, both included.
        noise: length of the noise of one clip, in lengths of a scene's own mean.
        drift: length of the slow drift, the same unit; it is there from the first clip on.
        memory: correlation of the drift of neighbouring clips, in [0, 1).
        fade: clips on each side of a cut over which one scene fades into the next; 0 is a hard cut.
        recurring: probability that a scene is one that was shown before its predecessor.
        dim: width of the features.
    """

    clips: tuple[int, int] = (100, 100)
    scenes: tuple[int, int] = (4, 9)
    noise: float = 0.5
    drift: float = 0.4
    memory: float = 0.9
    fade: int = 0
    recurring: float = 0.3
    dim: int = 64

    @property
    def shortest_scene(self) -> int:
        """No scene has fewer clips: one in 33 of the shortest film, and room for its fades."""
        return max(3, self.clips[0] // 33, 2 * self.fade)


SETS: Mapping[str, FilmKind] = {
    "clean": FilmKind(),
    "noisy": FilmKind(noise=1.5),
    "drifting": FilmKind(drift=0.8),
    "gradual cuts": FilmKind(scenes=(4, 7), noise=1.0, fade=4),
    "recurring scenes": FilmKind(scenes=(6, 9), recurring=0.8),
    "40 clips": FilmKind(clips=(40, 40), scenes=(3, 7)),
    "600 clips": FilmKind(clips=(600, 600), noise=1.0),
    "40 to 600 clips": FilmKind(clips=(40, 600), noise=1.0),
}
"""The sets of benchmarks/events_accuracy.py, by name."""


@dataclass(frozen=True)
class FeatureFilm:
    """One film.

    Args:
        features: shape (L, D) float32.
        cuts: first clip of every scene but the first, ascending.
    """

    features: NDArray[np.float32]
    cuts: tuple[int, ...]


def feature_films(kind: FilmKind, count: int, seed: int) -> Iterator[FeatureFilm]:
    """Make films; film `i` of a seed is the same however many are asked for."""
    for number in range(count):
        yield _film(kind, np.random.default_rng([seed, number]))


def _film(kind: FilmKind, rng: np.random.Generator) -> FeatureFilm:
    length = int(rng.integers(kind.clips[0], kind.clips[1] + 1))
    most = min(kind.scenes[1], length // kind.shortest_scene)
    scenes = int(rng.integers(min(kind.scenes[0], most), most + 1))
    starts = _starts(length, scenes, kind.shortest_scene, rng)
    shown = _shown(scenes, kind.recurring, rng)
    means = _directions(max(shown) + 1, kind.dim, rng)
    features = _shares(starts, length, kind.fade) @ means[shown]
    features += _COMMON * _directions(1, kind.dim, rng)
    features += kind.drift * _drift(length, kind, rng)
    features += kind.noise * rng.normal(size=features.shape) / np.sqrt(kind.dim)
    return FeatureFilm(features.astype(np.float32), tuple(starts[1:].tolist()))


def _starts(length: int, scenes: int, shortest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """First clips of scenes that share `length` clips at random, each at least `shortest`."""
    spare: NDArray[np.int64] = np.sort(rng.integers(0, length - scenes * shortest + 1, scenes - 1))
    return np.concatenate([[0], spare + shortest * np.arange(1, scenes)])


def _shown(scenes: int, recurring: float, rng: np.random.Generator) -> list[int]:
    """Which place or topic each scene shows: neighbours differ, some come again."""
    shown: list[int] = []
    for _ in range(scenes):
        known = sorted(set(shown[:-1]) - set(shown[-1:]))
        again = bool(known) and rng.random() < recurring
        shown.append(int(rng.choice(known)) if again else max(shown, default=-1) + 1)
    return shown


def _directions(count: int, dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    rows = rng.normal(size=(count, dim))
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _shares(starts: NDArray[np.int64], length: int, fade: int) -> NDArray[np.float64]:
    """How much of each scene a clip shows, shape (length, scenes); every row sums to 1."""
    middle = np.arange(length)[:, None] + 0.5
    if fade:
        begun = np.clip((middle - starts) / (2 * fade) + 0.5, 0, 1)
    else:
        begun = (middle > starts).astype(np.float64)
    begun[:, 0] = 1.0
    ended = np.concatenate([begun[:, 1:], np.zeros((length, 1))], axis=1)
    shares: NDArray[np.float64] = begun - ended
    return shares


def _drift(length: int, kind: FilmKind, rng: np.random.Generator) -> NDArray[np.float64]:
    """An AR(1) walk whose rows are about as long as 1 everywhere."""
    steps: NDArray[np.float64] = rng.normal(size=(length, kind.dim)) / np.sqrt(kind.dim)
    steps[1:] *= np.sqrt(1 - kind.memory**2)
    for clip in range(1, length):
        steps[clip] += kind.memory * steps[clip - 1]
    return steps
