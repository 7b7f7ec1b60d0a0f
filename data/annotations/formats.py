"""Datasets by name: how their annotation files are read, and what their scoring expects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.annotations.types import Annotation
from data.registry import Registry

__all__ = ["DATASETS", "Dataset", "PostProcessing", "Record", "dataset_of"]


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


class Record(Protocol):
    """One query of an annotation file, not looked at yet: a wrong one spoils no other."""

    @property
    def where(self) -> str:
        """Its place for messages: "val.jsonl, line 3"."""
        ...

    def annotation(self) -> Annotation:
        """The query in normal form; UsageError that begins with `where` if its form is wrong.

        The form is: JSON, the fields that the dataset has, their types, finite numbers. What the
        numbers say (a window past the end of its video) is for `data.annotations.lint`.
        """
        ...


class Dataset(Protocol):
    """One dataset: one file of this folder, registered in `DATASETS`.

    Attributes:
        name: what it is called in configurations.
        clip_len_s: clip length of its grid in seconds; None where each corpus says it.
        post: what its official scoring does to predictions.
        metrics: names of the evaluators that its papers use (`training.metrics.METRICS`), the
            usual one first.
    """

    name: str
    clip_len_s: float | None
    post: PostProcessing
    metrics: tuple[str, ...]

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of an annotation file in file order.

        Raises:
            UsageError: what is wrong with the file as a whole: not there, not of this format.
        """
        ...

    def clip_len_at(self, path: Path) -> float:
        """Clip length in seconds of the corpus whose annotation file or folder is `path`."""
        ...

    def source_of(self, video_id: str) -> str:
        """The recording that a video was cut from; the video itself where nothing was cut."""
        ...


DATASETS: Registry[Dataset] = Registry("dataset")
"""All datasets by name."""


def dataset_of(name: str) -> Dataset:
    """The dataset called `name`, or `custom` for the name of somebody's own; tell the user then."""
    return DATASETS.get(name if name in DATASETS else "custom")
