"""Annotation files of all datasets, read into one normal form (`Annotation`)."""

from pathlib import Path

from data.annotations import custom, qvhighlights, synthetic  # noqa: F401 (they register themselves)
from data.annotations.formats import DATASETS, Dataset, PostProcessing, dataset_of
from data.annotations.jsonl import read_jsonl, save_jsonl
from data.annotations.types import Annotation

__all__ = [
    "DATASETS",
    "Annotation",
    "Dataset",
    "PostProcessing",
    "dataset_of",
    "load_annotations",
    "read_jsonl",
    "save_jsonl",
]


def load_annotations(dataset: str, path: Path) -> list[Annotation]:
    """The rows of an annotation file in the format of a dataset.

    Raises:
        UsageError: unknown dataset; no such file; a wrong row, by file and line.
    """
    return DATASETS.get(dataset).load(Path(path))
