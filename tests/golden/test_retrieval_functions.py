"""Single functions give what the public code's functions give (golden/retrieval/pure)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval.parts import losses
from models.retrieval.parts.matcher import Matcher
from models.retrieval.parts.projection import AnchorSine, clip_position
from models.retrieval.parts.spans import (
    centre_width,
    inverse_sigmoid,
    overlap,
    pairwise_giou,
    start_end,
)


@pytest.fixture(scope="module")
def pure(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "retrieval" / "pure" / "qd_detr.safetensors")


def close(ours: Tensor, public: Tensor) -> None:
    torch.testing.assert_close(ours, public, atol=2e-5, rtol=1e-5)


def test_spans_convert_and_overlap(pure: dict[str, Tensor]) -> None:
    a, b = pure["spans.a_xx"], pure["spans.b_xx"]
    close(start_end(pure["spans.a"]), a)
    close(centre_width(a), pure["spans.back"])
    close(overlap(a.unsqueeze(1), b.unsqueeze(0))[0], pure["spans.iou"])
    close(pairwise_giou(a, b), pure["spans.giou"])


@pytest.mark.parametrize("weights", [(10, 1, 4), (1, 8, 8)])
def test_matcher_gives_the_same_pairs(
    pure: dict[str, Tensor], weights: tuple[int, int, int]
) -> None:
    given = {
        key.split(".")[1]: x
        for key, x in pure.items()
        if key.startswith("matcher_{}_{}_{}".format(*weights))
    }
    counts = given["counts"].tolist()
    targets = torch.nn.utils.rnn.pad_sequence(given["targets"].split(counts), batch_first=True)
    mask = torch.arange(targets.shape[1]) < given["counts"][:, None]
    matcher = Matcher(span=weights[0], giou=weights[1], label=weights[2])
    found = matcher(given["pred_logits"], given["pred_spans"], targets, mask)
    pairs = [
        [sample, query, moment]
        for sample, row in enumerate(found.tolist())
        for moment, query in enumerate(row)
        if query >= 0
    ]
    public = [
        [sample, prediction, target] for sample, prediction, target in given["pairs"].tolist()
    ]
    assert sorted(pairs) == sorted(public)


def test_positions_are_the_same(pure: dict[str, Tensor]) -> None:
    mask = pure["clip_position.mask"].bool()
    for width in (32, 256):
        close(clip_position(mask, width), pure[f"clip_position.d{width}"])
    anchors = pure["anchor_sine_256.anchors"]
    close(AnchorSine(256)(anchors), pure["anchor_sine_256.out"])
    close(inverse_sigmoid(pure["inverse_sigmoid.x"]), pure["inverse_sigmoid.y"])


@pytest.mark.parametrize("log", ["softplus", "log"])
@pytest.mark.parametrize("kind", ["plain", "wide"])
def test_saliency_losses_and_their_gradients_are_the_same(
    pure: dict[str, Tensor], kind: str, log: str
) -> None:
    given = {
        key.rsplit(".", 1)[1]: x.clone()
        for key, x in pure.items()
        if key.startswith(f"saliency_rank_negpair_{kind}.")
    }
    mask, labels = given["mask"].bool(), given["labels"]
    scores, wrong = given["scores"].requires_grad_(), given["scores_neg"].requires_grad_()
    pairs = torch.ones_like(given["pos"], dtype=torch.bool)
    loss = (
        losses.margin_loss(scores, given["pos"], given["neg"], pairs, margin=0.2)
        + losses.rank_losses(
            torch.cat([scores, wrong], 1),
            torch.cat([labels, torch.zeros_like(labels)], 1),
            torch.cat([mask, mask], 1),
        ).mean()
        + losses.negative_pair_losses(
            wrong, mask, log="softplus" if log == "softplus" else "log"
        ).mean()
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), given["loss"], rtol=1e-4, atol=0)
    assert scores.grad is not None
    assert wrong.grad is not None
    close(scores.grad, given["grad_scores"])
    close(wrong.grad, given["grad_scores_neg"])


def test_label_loss_is_the_same(pure: dict[str, Tensor]) -> None:
    logits = pure["label_cross_entropy.logits"]
    matched = torch.zeros(2, 10, dtype=torch.bool)
    matched[0, [2, 5]] = True
    matched[1, 7] = True
    close(
        losses.label_cross_entropy(logits, matched, background=0.1),
        pure["label_cross_entropy.loss"],
    )
