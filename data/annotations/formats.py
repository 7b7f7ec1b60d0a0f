"""Datasets by name: how their annotation files are read, and what their scoring expects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.annotations.types import Annotation
from data.registry import Registry

__all__ = ["DATASETS", "Dataset", "PostProcessing", "dataset_of"]


@dataclass(frozen=True)
class PostProcessing:
    """What the official scoring of a dataset does to predicted moments, in this order
    (specs/peers_formats_metrics.md §3.4).

    Args:
        clamp_s: starts and ends are clamped to this range in seconds; None leaves them.
        round_to_s: then rounded half-to-even to multiples of this many seconds; None leaves them.
    """

    clamp_s: tuple[float, float] | None = None
    round_to_s: float | None = None


class Dataset(Protocol):
    """One dataset: one file of this folder, registered in `DATASETS`.

    Attributes:
        name: what it is called in configurations.
        clip_len_s: clip length of its grid in seconds; None where each corpus says it.
        post: what its official scoring does to predictions.
    """

    name: str
    clip_len_s: float | None
    post: PostProcessing

    def load(self, path: Path) -> list[Annotation]:
        """The rows of an annotation file; UsageError naming file and line for a wrong one."""
        ...

    def clip_len_at(self, path: Path) -> float:
        """Clip length in seconds of the corpus whose annotation file or folder is `path`."""
        ...


DATASETS: Registry[Dataset] = Registry("dataset")
"""All datasets by name."""


def dataset_of(name: str) -> Dataset:
    """The dataset called `name`, or `custom` for the name of somebody's own; tell the user then."""
    return DATASETS.get(name if name in DATASETS else "custom")
