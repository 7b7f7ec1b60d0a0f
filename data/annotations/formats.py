"""Datasets by name: how their annotation files are read, and what their scoring expects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from data.annotations.types import Annotation
from data.registry import Registry

__all__ = [
    "DATASETS",
    "Dataset",
    "PostProcessing",
    "Ratings",
    "Record",
    "Sample",
    "dataset_of",
    "stated_beside",
]


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


@dataclass(frozen=True)
class Ratings:
    """How the scores of a clip's annotators become its one label for training
    (specs/peers_formats_metrics.md §3.3, `saliency_all_labels`). Metrics read the scores as given.

    Args:
        lowest: the score that says "not salient at all"; it is subtracted from each.
        full: sum of what is left for a clip that all annotators rate highest; it becomes the
            highest label of the ranking losses, 12. None: the sum is the label as it is.
        highest: the highest score that an annotator can give; None where anybody may choose.
    """

    lowest: float = 0.0
    full: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class Sample:
    """What the first query of a file shows of its format.

    Args:
        path: the file.
        form: one query per line, one object by video, or lines of plain text.
        video_id: the first video; "" for plain text.
        first: the first row or entry; empty for plain text.
    """

    path: Path
    form: Literal["rows", "videos", "text"]
    video_id: str = ""
    first: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> set[str]:
        """Names of the fields of the first row or entry that hold something."""
        return {name for name, value in self.first.items() if value is not None}

    @property
    def is_captions(self) -> bool:
        """Whether it has the form of ActivityNet Captions."""
        return self.form == "videos" and {"duration", "timestamps", "sentences"} <= self.fields

    @property
    def novelty(self) -> bool:
        """Whether it says what is new in its sentences."""
        return bool({"news", "novels"} & self.fields)


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
        ratings: how its saliency scores become labels.
    """

    name: str
    clip_len_s: float | None
    post: PostProcessing
    metrics: tuple[str, ...]
    ratings: Ratings

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

    def claims(self, sample: Sample) -> bool:
        """Whether a file may be of this dataset, by its looks (`data.annotations.guess`)."""
        ...


DATASETS: Registry[Dataset] = Registry("dataset")
"""All datasets by name."""


def dataset_of(name: str) -> Dataset:
    """The dataset called `name`, or `custom` for the name of somebody's own; tell the user then."""
    return DATASETS.get(name if name in DATASETS else "custom")


def stated_beside(path: Path) -> Path:
    """Where the clip length of a corpus is stated: `dataset.json` in a folder or beside a file."""
    return (path if path.is_dir() else path.parent) / "dataset.json"
