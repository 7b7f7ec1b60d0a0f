"""Annotation files of all datasets, read into one normal form (`Annotation`)."""

from pathlib import Path

from data.annotations import (  # noqa: F401 (they register themselves)
    activitynet_captions,
    activitynet_cd,
    activitynet_cg,
    charades_cd,
    charades_cg,
    charades_sta,
    custom,
    qvhighlights,
    synthetic,
    tacos,
    tvsum,
    youtube_highlights,
)
from data.annotations.formats import DATASETS, Dataset, PostProcessing, Ratings, Record, dataset_of
from data.annotations.guess import guess_dataset
from data.annotations.jsonl import read_jsonl, save_jsonl
from data.annotations.rows import checked
from data.annotations.types import Annotation

__all__ = [
    "DATASETS",
    "Annotation",
    "Dataset",
    "PostProcessing",
    "Ratings",
    "Record",
    "dataset_of",
    "guess_dataset",
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
