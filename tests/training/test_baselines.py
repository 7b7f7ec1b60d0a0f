"""The blind baseline sees positions only."""

from __future__ import annotations

import numpy as np

from data.annotations.types import Annotation
from data.grid import Grid
from training.baselines import BlindBaseline
from training.batch import QueryTruth
from training.task import QueryInfo


def truth(*windows: tuple[float, float], clips: int = 32) -> QueryTruth:
    found = QueryTruth.of(Annotation(1, "q", "v", windows=windows), clips, 1.0)
    assert found is not None
    return found


def test_windows_cover_the_most_frequent_moments_first() -> None:
    # three moments in the first quarter, two in the last half, one in between
    truths = [truth((0, 8))] * 3 + [truth((16, 32))] * 2 + [truth((9, 12))]
    blind = BlindBaseline.fit(truths, count=4)
    covered = [(row[0] * 32, row[1] * 32) for row in blind.windows]

    def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
        overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
        return overlap / (a[1] - a[0] + b[1] - b[0] - overlap)

    for window, moment in zip(covered, [(0, 8), (16, 32), (9, 12)], strict=False):
        assert iou(window, moment) >= 0.5
    assert blind.windows[:, 2].tolist() == [0.5, 2 / 6, 1 / 6, 0.0]


def test_predictions_are_scaled_to_the_grid_of_each_video() -> None:
    blind = BlindBaseline.fit([truth((0, 16))], count=1)
    info = QueryInfo(5, "q", "v", Grid(20.0, 2.0))
    found = blind.predict(info)
    start, end, score = found.windows[0]
    assert 0 <= start < 5 < end <= 20
    assert (score, found.qid, len(found.saliency or ())) == (1.0, 5, 10)


def test_saliency_is_the_mean_label_by_relative_position() -> None:
    blind = BlindBaseline.fit([truth((0, 16)), truth((0, 32))], count=1)
    saliency = blind.predict(QueryInfo(1, "q", "v", Grid(4.0, 1.0))).saliency
    np.testing.assert_allclose(np.asarray(saliency), [1, 1, 0.5, 0.5])
