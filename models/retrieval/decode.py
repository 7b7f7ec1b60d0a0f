"""From predictions to ranked windows in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.retrieval.parts.spans import overlap, start_end
from models.retrieval.types import Predictions

__all__ = ["Decoding", "Window", "clip_scores", "ranked", "suppressed", "windows"]

Window = tuple[float, float, float]
"""(start_s, end_s, score)"""

Numbers = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Decoding:
    """How spans become windows. The defaults mend the public code; `released()` repeats it.

    Args:
        unit: what 1.0 of a span is: the grid (`n * clip_len`, as the targets) or the video's
            duration. The public code trains with the first and predicts with the second, which
            moves a window by up to a clip where the two differ (not on QVHighlights).
        clip: whether windows are cut.
        clip_s: range in seconds that they are cut to; None cuts to [0, duration], again after
            rounding, so that no window leaves the video.
        round_to_clip: whether edges go to whole clips, halves to the even one.
        decimals: digits that are kept before cutting and rounding; None keeps all.
        nms_iou: a window is dropped if a better one overlaps it more than this; None drops none.
        keep: at most so many windows.
        score: of a window: its foreground probability, or that plus the saliency of the clip that
            it belongs to (for models with one query per clip).
        highlight: score of a clip: its saliency, or that plus the foreground probability of the
            clip's own window (for models with one query per clip).
    """

    unit: Literal["grid", "duration"] = "grid"
    clip: bool = True
    clip_s: tuple[float, float] | None = None
    round_to_clip: bool = False
    decimals: int | None = None
    nms_iou: float | None = None
    keep: int | None = None
    score: Literal["foreground", "foreground+saliency"] = "foreground"
    highlight: Literal["saliency", "foreground+saliency"] = "saliency"

    @classmethod
    def released(cls) -> Decoding:
        """What the public QVHighlights code does: `clip_ts`, then `round_multiple`.

        `clip_ts` cuts to a range of the dataset (0 to 150 s), whatever a video lasts: the window
        12 to 26 of a video of 24 s stays. That range is to be given as `clip_s`; without it windows
        are cut to the video.
        """
        return cls(unit="duration", round_to_clip=True, decimals=4)


def ranked(
    predictions: Predictions, score: Literal["foreground", "foreground+saliency"] = "foreground"
) -> Tensor:
    """All windows of each sample in units of the grid, best first.

    Args:
        predictions: output of a model.
        score: see `Decoding`.

    Returns:
        (B, Q, 3) of (start, end, score); start and end may leave [0, 1]. The score is the
        foreground probability, or with the saliency of the clip; −inf, and therefore last, for
        queries that do not exist. Equal scores keep the order of the queries, as the public
        code's sort does.
    """
    value = predictions.logits.float().softmax(-1)[..., 0]
    if score == "foreground+saliency":
        value = value + predictions.saliency.float()
    if predictions.query_mask is not None:
        value = value.masked_fill(~predictions.query_mask, -torch.inf)
    rows = torch.cat([start_end(predictions.spans.float()), value.unsqueeze(-1)], dim=-1)
    order = value.argsort(dim=-1, descending=True, stable=True)
    return rows.gather(1, order.unsqueeze(-1).expand_as(rows))


def clip_scores(predictions: Predictions, how: Decoding | None = None) -> Tensor:
    """How much of a highlight each clip is, (B, L) float32; padded clips are meaningless.

    Args:
        predictions: output of a model.
        how: which score; `Decoding()` if not given.
    """
    saliency = predictions.saliency.float()
    if (how or Decoding()).highlight == "saliency":
        return saliency
    return saliency + predictions.logits.float().softmax(-1)[..., 0]


def suppressed(edges: Tensor, iou: float) -> Tensor:
    """Greedy non-maximum suppression of ranked windows.

    Args:
        edges: (B, Q, 2) of (start, end), best first.
        iou: a window goes if a better, kept one overlaps it more than this.

    Returns:
        (B, Q) bool, True where a window goes.
    """
    close = overlap(edges.unsqueeze(2), edges.unsqueeze(1))[0] > iou
    gone = torch.zeros(edges.shape[:2], dtype=torch.bool, device=edges.device)
    for best in range(edges.shape[1] - 1):
        gone[:, best + 1 :] |= close[:, best, best + 1 :] & ~gone[:, best, None]
    return gone


def windows(
    predictions: Predictions,
    *,
    grid_s: Numbers,
    duration_s: Numbers | None = None,
    clip_len_s: Numbers | None = None,
    how: Decoding | None = None,
) -> list[tuple[Window, ...]]:
    """Ranked windows of each sample in seconds.

    Args:
        predictions: output of a model.
        grid_s: seconds of the whole grid (`n * clip_len`), one number or one per sample.
        duration_s: seconds of the video; the grid's if not given.
        clip_len_s: seconds of a clip; needed to round to clips.
        how: the steps; `Decoding()` if not given.

    Returns:
        For each sample its windows, best first.

    Raises:
        ValueError: rounding to clips without a clip length.
    """
    how = how or Decoding()
    rows = ranked(predictions, how.score).cpu()
    grid = _column(grid_s)
    duration = grid if duration_s is None else _column(duration_s)
    # The product in single precision, as the public code takes it: its fourth decimal is kept.
    edges = (rows[..., :2] * (grid if how.unit == "grid" else duration).float()).double()
    if how.decimals is not None:
        edges = edges.round(decimals=how.decimals)
    low, high = how.clip_s or (0.0, duration)
    if how.clip:
        edges = torch.minimum(torch.maximum(edges, _column(low)), _column(high))
    if how.round_to_clip:
        if clip_len_s is None:
            raise ValueError("rounding to whole clips needs clip_len_s")
        step = _column(clip_len_s)
        edges = (edges / step).round() * step
        if how.clip and how.clip_s is None:
            edges = torch.minimum(edges, _column(duration))
    triples = torch.cat([edges, rows[..., 2:].double()], dim=-1)
    return [
        tuple((start, end, score) for start, end, score in sample[keep].tolist())
        for sample, keep in zip(triples, _kept(edges, rows[..., 2] > -torch.inf, how), strict=True)
    ]


def _kept(edges: Tensor, exists: Tensor, how: Decoding) -> Tensor:
    """Which windows stay, (B, Q) bool."""
    kept = exists
    if how.nms_iou is not None:
        kept = kept & ~suppressed(edges, how.nms_iou)
    return kept if how.keep is None else kept & (kept.cumsum(1) <= how.keep)


def _column(value: Numbers) -> Tensor:
    """(B or 1, 1, 1) in double precision on the CPU."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1, 1, 1)
