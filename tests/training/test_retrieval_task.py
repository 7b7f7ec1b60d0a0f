"""How the spans of a model become windows, from the preset, the dataset and the configuration."""

from __future__ import annotations

import pytest

from data.annotations import DATASETS
from models.retrieval import Preset, create_model
from training.config import EvalGroup
from training.retrieval_task import decoding_of


@pytest.mark.parametrize(
    ("preset", "dataset", "clip_s", "rounds"),
    [
        # the public QVHighlights code cuts to [0, 150], also where a video is shorter
        ("release", "qvhighlights", (0.0, 150.0), True),
        ("fixed", "qvhighlights", None, True),
        ("release", "synthetic", None, False),
        ("fixed", "synthetic", None, False),
    ],
)
def test_the_dataset_says_how_windows_are_cut_and_rounded(
    preset: Preset, dataset: str, clip_s: tuple[float, float] | None, rounds: bool
) -> None:
    model = create_model("qd_detr", video_dim=4, text_dim=4, preset=preset, hidden=8, heads=2)
    decoding = decoding_of(model, EvalGroup(), DATASETS.get(dataset).post)
    assert (decoding.clip_s, decoding.round_to_clip) == (clip_s, rounds)


def test_the_configuration_wins_over_the_dataset() -> None:
    model = create_model("qd_detr", video_dim=4, text_dim=4, hidden=8, heads=2)
    asked = EvalGroup(round_to_clip=False, nms_iou=0.5)
    decoding = decoding_of(model, asked, DATASETS.get("qvhighlights").post)
    assert (decoding.round_to_clip, decoding.nms_iou) == (False, 0.5)
