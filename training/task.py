"""The one seam between the loop and everything that knows about moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from data.grid import Grid
from models.retrieval.types import Batch, StepContext
from training.labelled_clips import on_labelled_clips
from training.predictions import Prediction

__all__ = ["MomentBatch", "MomentTask", "QueryInfo"]


@dataclass(frozen=True)
class QueryInfo:
    """What a prediction must know about its query and video.

    Args:
        qid: id of the query.
        query: the sentence.
        video_id: the video.
        grid: its clips.
        clip_spans_s: `(start, end)` of the clips that the dataset scores, where those are not
            the grid's.
    """

    qid: int | str
    query: str
    video_id: str
    grid: Grid
    clip_spans_s: tuple[tuple[float, float], ...] | None = None

    def saliency(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Scores of the grid's clips as they are written: for the clips that the dataset scores."""
        if self.clip_spans_s is None:
            return tuple(scores)
        return tuple(on_labelled_clips(scores, self.clip_spans_s, self.grid.clip_len_s))


@dataclass(frozen=True)
class MomentBatch:
    """Tensors for the model and, in the same order, facts for the predictions."""

    tensors: Batch
    queries: tuple[QueryInfo, ...]

    def to(self, device: torch.device | str) -> MomentBatch:
        """The same batch with its tensors on `device`."""
        return MomentBatch(self.tensors.to(device, non_blocking=True), self.queries)


class MomentTask(Protocol):
    """What the loop sees of a model. It never names a model, a loss or a dataset."""

    @property
    def model(self) -> nn.Module:
        """What is optimised and saved."""
        ...

    def losses(self, batch: MomentBatch, context: StepContext) -> Mapping[str, Tensor]:
        """Weighted scalar loss terms; their sum is minimised. Keys are the names in the log."""
        ...

    def after_step(self, context: StepContext) -> None:
        """Called once after every optimiser step: where queues and moving averages change."""
        ...

    def predict(self, batch: MomentBatch) -> Sequence[Prediction]:
        """One prediction per query of the batch, in order."""
        ...
