"""TR-DETR in the `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from models.retrieval.parts.alignment import clip_text_loss, video_text_loss
from tests.golden.public_golden import (
    Golden,
    check_predictions,
    check_step,
    check_trace,
    close,
    golden_of,
    public_shapes,
    published,
    read,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_matched_indices_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]

LOSSES = {"margin + rank": "saliency", "video_text": "vtc", "clip_text": "ctc"}

golden = golden_of("tr_detr")
step = step_of("tr_detr")


@pytest.fixture(scope="module")
def pure(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "retrieval" / "pure" / "tr_detr.safetensors")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_trace(trace, golden)
    close(trace.tokens.video, gold["eval.src_vid_ed"])
    close(trace.tokens.text, gold["eval.src_txt_ed"])
    close(trace.memory.extras["saliency_first"], gold["eval.saliency_first"], batch.video_mask)


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    check_predictions(model(step.batch), step, "train")
    check_step(model, step, LOSSES)


def test_names_and_shapes_are_those_of_the_published_model(
    request: pytest.FixtureRequest, shared: Path
) -> None:
    model = read("tr_detr", "q", request).load()
    assert public_shapes(model) == published(shared, "tr_keys.txt")


def test_whole_videos_and_sentences_are_aligned_as_in_the_public_code(
    pure: dict[str, Tensor],
) -> None:
    video, text = normalize(pure["vtc.video"], dim=1), normalize(pure["vtc.text"], dim=1)
    close(video_text_loss(video, text), pure["vtc.loss"])


def test_clips_and_sentences_are_aligned_as_in_the_public_code(pure: dict[str, Tensor]) -> None:
    given = {key.removeprefix("ctc."): x for key, x in pure.items() if key.startswith("ctc.")}
    found = clip_text_loss(
        given["video"] * given["video_mask"].unsqueeze(-1),
        given["text"],
        given["text_mask"].bool(),
        given["positive"].bool(),
        torch.ones_like(given["video_mask"], dtype=torch.bool),
    )
    close(found, given["loss"])
