"""JSONL that UniVTG writes for TVSum and YouTube Highlights, one file per domain.

    {"vid": "…", "pred": [one number per clip, …], "gt": […], "duration": …, "domain": "…", …}

(`DatasetHL.evaluate` in `main/dataset.py` of https://github.com/showlab/UniVTG.) There is one query
per video and no qid. For moment retrieval UniVTG writes the format `submission`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import key_names
from training.predictions.base import FORMATS, Glance, json_rows, numbers
from training.predictions.scores import EXPECTED
from training.predictions.submission import text_field
from training.predictions.types import Prediction

__all__ = ["UniVTGHighlights"]


class UniVTGHighlights:
    """See the module."""

    name = "univtg_hl"

    def recognises(self, seen: Glance) -> bool:
        """Whether the first row has UniVTG's fields."""
        return seen.row is not None and {"vid", "pred"} <= seen.row.keys()

    def read(self, path: Path, annotations: Sequence[Annotation] | None) -> list[Prediction]:
        """See `PredictionFormat.read`; without annotations, the video's id is the query's too."""
        queries = _by_video(annotations or (), path)
        found: dict[str, Prediction] = {}
        for where, row in json_rows(path, '{"vid": "…", "pred": [0.1, …], …}'):
            video_id = text_field(row, "vid", where)
            if not video_id or "pred" not in row:
                raise UsageError(
                    f"{where} has no '{'pred' if video_id else 'vid'}'; its keys are "
                    f"{key_names(row)}"
                )
            if video_id in found:
                raise UsageError(f"{where}: video '{video_id}' came before; every video comes once")
            query = queries.get(video_id)
            qid = video_id if query is None else query.qid
            scores = numbers(row["pred"], None, f"{where}: 'pred'", EXPECTED)
            text = "" if query is None else query.query
            found[video_id] = Prediction(qid, text, video_id, (), tuple(scores))
        return list(found.values())


def _by_video(annotations: Sequence[Annotation], path: Path) -> Mapping[str, Annotation]:
    found = {each.video_id: each for each in annotations}
    if len(found) < len(annotations):
        raise UsageError(
            f"{path} has one answer per video (format 'univtg_hl'), but the annotations ask "
            f"{len(annotations)} queries about {len(found)} videos"
        )
    return found


FORMATS.register(UniVTGHighlights.name)(UniVTGHighlights())
