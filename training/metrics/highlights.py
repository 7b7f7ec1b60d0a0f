"""Highlight detection: average precision and Hit@1 of saliency scores, for all queries at once.

The definitions are those of moment_detr's `standalone_eval` (specs/peers_formats_metrics.md §3.6);
quirks in mode "official" (specs/evaluator_reference.md §4):

- a list of scores that is shorter than the grid is filled with 0.0, which outranks negative
  scores. strict: filled with minus infinity.
- Hit@1 looks at the highest score of the list as given, and one outside of the grid is a miss.
  strict: at the highest score on the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.metrics.moments import Mode
from training.metrics.ragged import Ragged

__all__ = ["highlight_ap", "hit_at_one", "on_grid", "top_clip"]

Floats = NDArray[np.float64]


def on_grid(scores: Ragged, clips: NDArray[np.int64], mode: Mode) -> Floats:
    """(Q, N) scores cut and filled to the grid of each query, minus infinity after its end."""
    width = int(clips.max(initial=0))
    filled = scores.padded(width, 0.0 if mode == "official" else -np.inf)
    return np.where(np.arange(width) < clips[:, None], filled, -np.inf)


def highlight_ap(scores: Floats, clips: NDArray[np.int64], labels: NDArray[np.bool_]) -> Floats:
    """AP of the ranking of clips, against each column of labels.

    Precision is made non-increasing from the highest to the lowest score; AP is its mean over the
    distinct scores at which recall grows (equal scores count once). No positive clip gives 0, only
    positive clips give 1.

    Args:
        scores: (Q, N), minus infinity outside of the grid.
        clips: (Q,) clips of each grid.
        labels: (Q, N, C) positive clips by column; False outside of the grid.

    Returns:
        (Q, C) in [0, 1].
    """
    queries, width, columns = labels.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    inside = np.arange(width) < clips[:, None]
    # the end of a run of equal scores; the grid's last clip ends one even if padding follows
    last_of_run = np.ones((queries, width), bool)
    last_of_run[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    last_of_run |= np.arange(width) == clips[:, None] - 1
    last_of_run &= inside

    # ranks first: each step along them then works on one contiguous block of all queries
    hits = np.take_along_axis(labels, order[..., None], axis=1).transpose(1, 0, 2)
    found = hits.reshape(width, -1).cumsum(axis=0, dtype=np.float64)
    run = np.repeat(last_of_run.T, columns, axis=1)
    precision = np.where(run, found / np.arange(1.0, width + 1)[:, None], 0.0)
    best_after = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    at_runs = np.maximum.accumulate(np.where(run, found, 0.0), axis=0)
    grows = run & (np.diff(at_runs, axis=0, prepend=0.0) > 0)
    steps = grows.sum(axis=0)
    total = np.where(grows, best_after, 0.0).sum(axis=0)
    ap = np.divide(total, steps, where=steps > 0, out=np.zeros_like(total))
    return np.asarray(ap.reshape(queries, columns))


def hit_at_one(top: NDArray[np.int64], labels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(Q,) whether any annotator finds clip `top` positive; a clip outside of the grid is a miss.

    Args:
        top: (Q,) clip indices, -1 for none.
        labels: (Q, N, A) positive clips by annotator; False outside of the grid.
    """
    queries, width, _ = labels.shape
    hit = labels[np.arange(queries), np.clip(top, 0, width - 1)].any(axis=1)
    return np.asarray(hit & (top >= 0) & (top < width))


def top_clip(scores: Ragged, clips: NDArray[np.int64], mode: Mode) -> NDArray[np.int64]:
    """(Q,) the clip with the highest score, the first among equals; -1 where none has a score.

    Args:
        scores: as predicted.
        clips: (Q,) clips of each grid.
        mode: whether scores past the grid are looked at ("official").
    """
    if mode == "strict":
        scores = scores.where(scores.place < clips[scores.row])
    return scores.argmax()
