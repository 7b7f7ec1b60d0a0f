"""Annotation files of all datasets, read into one normal form (`Annotation`)."""

from pathlib import Path

from data.annotations import custom, qvhighlights, synthetic  # noqa: F401 (they register themselves)
from data.annotations.formats import DATASETS, Dataset, PostProcessing, Record, dataset_of
from data.annotations.jsonl import read_jsonl, save_jsonl
from data.annotations.rows import checked
from data.annotations.types import Annotation

__all__ = [
    "DATASETS",
    "Annotation",
    "Dataset",
    "PostProcessing",
    "Record",
    "dataset_of",
    "load_annotations",
    "read_jsonl",
    "save_jsonl",
]


def load_annotations(dataset: str, path: Path) -> list[Annotation]:
    """The rows of an annotation file in the format of a dataset, as the file has them.

    Raises:
        UsageError: unknown dataset; no such file; a row of wrong form, by file and line; a qid
            that came before; rows with ground truth among rows without.
    """
    return checked(DATASETS.get(dataset).records(Path(path)))
