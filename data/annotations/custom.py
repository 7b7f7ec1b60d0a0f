"""One's own videos and queries: rows as QVHighlights, nothing done to predictions."""

from __future__ import annotations

from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing
from data.annotations.qvhighlights import load_rows
from data.annotations.synthetic import Synthetic
from data.annotations.types import Annotation

__all__ = ["Custom"]


class Custom:
    """Any dataset without a file of its own here.

    Clip ids of saliency scores count clips of `clip_len_s` of a `dataset.json` beside the
    annotations, or of 2 s as in QVHighlights where there is none.
    """

    name = "custom"
    clip_len_s: float | None = None
    post = PostProcessing()

    def load(self, path: Path) -> list[Annotation]:
        """The rows of a file; UsageError naming file and line for a wrong one."""
        return load_rows(path)

    def clip_len_at(self, path: Path) -> float:
        """What `dataset.json` beside the file says, else 2 seconds."""
        stated = (path if path.is_dir() else path.parent) / "dataset.json"
        return Synthetic().clip_len_at(path) if stated.is_file() else 2.0


DATASETS.register(Custom.name)(Custom())
