"""QVHighlights (Lei et al., NeurIPS 2021, https://arxiv.org/abs/2107.09609).

`highlight_{train,val,test}_release.jsonl` of jayleicn/moment_detr: 7,218 / 1,550 / 1,542 queries.
The test file has no ground truth, `highlight_test_with_gt.jsonl` has. Videos are cut to 150 s at
most, clips have 2 s, three annotators scored each clip of a moment from 0 to 4.
"""

from __future__ import annotations

from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing
from data.annotations.jsonl import Fields, read_fields
from data.annotations.types import Annotation

__all__ = ["QVHighlights", "load_rows"]

_QUERY = ("qid", "query", "duration", "vid")
_TRUTH = ("relevant_windows", "relevant_clip_ids", "saliency_scores")


class QVHighlights:
    """Files in the QVHighlights format, of the dataset itself or of anybody's videos."""

    name = "qvhighlights"
    clip_len_s: float | None = 2.0
    post = PostProcessing(clamp_s=(0.0, 150.0), round_to_s=2.0)

    def load(self, path: Path) -> list[Annotation]:
        """The rows of a file; UsageError naming file and line for a wrong one."""
        return load_rows(path)

    def clip_len_at(self, path: Path) -> float:
        """2 s, wherever the file lies."""
        del path
        return 2.0


def load_rows(path: Path) -> list[Annotation]:
    """Strict reading: all rows with ground truth, or all without.

    Moments alone, without saliency, are allowed: many files in this format have no more.

    Raises:
        UsageError: naming file and line.
    """
    rows: list[Annotation] = []
    form: set[str] = set()
    for fields in read_fields(path):
        fields.demand(_QUERY)
        row = fields.annotation()
        given = {name for name in _TRUTH if fields.row.get(name) is not None}
        _check_form(fields, row, given, given if not rows else form)
        form = given
        rows.append(row)
    return rows


def _check_form(fields: Fields, row: Annotation, given: set[str], form: set[str]) -> None:
    if given != form:
        fields.refuse(
            f"has {sorted(given) or 'no ground truth'}, the rows before have "
            f"{sorted(form) or 'none'}; a file is with ground truth or without"
        )
    if given and row.windows is None:
        fields.refuse("has saliency but lacks 'relevant_windows'")
    if row.windows == ():
        fields.refuse("'relevant_windows' is empty; a query has at least one moment")


DATASETS.register(QVHighlights.name)(QVHighlights())
