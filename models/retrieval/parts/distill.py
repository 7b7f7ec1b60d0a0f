"""Distill Align: video and text are aligned against a queue of earlier ones (LD-DETR §3.2).

Slow copies of the encoders (moving averages) give the keys. The target of the contrast is the
right pair, softened by what the slow copies themselves find alike, because other samples may fit as
well (ALBEF). Losses only: what the model predicts does not depend on it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.flow import Outcome
from models.retrieval.parts.alignment import Pooling, globals_of
from models.retrieval.parts.attention import xavier
from models.retrieval.parts.encoders import ProjectionEncoders
from models.retrieval.parts.losses import mean_known
from models.retrieval.parts.processes import rows_of_all
from models.retrieval.stages import Encoders, LossTerm
from models.retrieval.types import Batch, StepContext

__all__ = [
    "DistillAlignTerm",
    "FeatureQueue",
    "QueueFrom",
    "QueueMask",
    "SimilarityTerm",
    "distilled_contrast",
    "pair_similarity",
    "warmed_up",
]

QueueMask = Literal["none", "same_sample", "same_video"]
"""Whether keys of the same sample, or of the same video, that are not the right pair are left out
of the contrast. A queue longer than the training set holds older copies of every sample, which
`none` counts as wrong."""

QueueFrom = Literal["all_processes", "first_process"]
"""Whose keys the queue takes where several processes train. `all_processes`: of everyone, by rank,
as MoCo and ALBEF gather them, so that the queue is that of one process with all the batches.
`first_process`: of rank 0, whose buffers `DistributedDataParallel` gives to the others before the
next step; what code for one process does there."""

TEMPERATURE_RANGE = (0.001, 0.5)
Keys = tuple[Tensor, Tensor, Tensor]
"""Of B samples: video (B, d), text (B, d), ids (B,)."""

UNKNOWN = torch.iinfo(torch.int64).min
"""Id of a key that no sample gave."""

HIDDEN = -1e4
"""Score of a key that is left out: far below every cosine / temperature, and its product with a
target of 0 is 0."""


def warmed_up(alpha: float, context: StepContext) -> float:
    """The share of the soft target: rises from 0 during the first epoch."""
    return alpha if context.epoch > 0 else alpha * min(1.0, context.step / context.steps_per_epoch)


def distilled_contrast(
    query: Tensor,
    slow: Tensor,
    keys: Tensor,
    queue: Tensor,
    *,
    temperature: Tensor,
    alpha: float,
    hidden: Tensor | None = None,
) -> Tensor:
    """Cross entropy against `α · softmax(slow scores) + (1 − α) · right pair`, of each query.

    Args:
        query: (B, d), of length 1.
        slow: (B, d), the same by the slow encoder.
        keys: (B, d), of the other modality by the slow encoder, key i belongs to query i.
        queue: (d, N), earlier keys.
        temperature: scalar; the target does not move it.
        alpha: share of the soft target.
        hidden: (B, B + N) bool, keys that are left out.

    Returns:
        (B,).
    """

    def scores(x: Tensor, scale: Tensor) -> Tensor:
        found = torch.cat([x @ keys.T, x @ queue], dim=1) / scale
        return found if hidden is None else found.masked_fill(hidden, HIDDEN)

    with torch.no_grad():
        target = alpha * scores(slow, temperature).softmax(1)
        target.diagonal().add_(1 - alpha)
    return -(target * scores(query, temperature).log_softmax(1)).sum(1)


def pair_similarity(predictor: nn.Module, video: Tensor, text: Tensor, *, stop: bool) -> Tensor:
    """Mean of `cos(h(ReLU(v)), t)` and `cos(h(ReLU(t)), v)`.

    Args:
        predictor: h, (B, d) as (B, d).
        video: (B, d).
        text: (B, d).
        stop: whether what is compared with gets no gradient.

    Returns:
        (B,).
    """
    towards = (text.detach(), video.detach()) if stop else (text, video)
    pairs = zip((video, text), towards, strict=True)
    there, back = (functional.cosine_similarity(predictor(x.relu()), y) for x, y in pairs)
    return (there + back) / 2


class FeatureQueue(nn.Module):
    """A ring of the newest keys of both modalities.

    Args:
        width: features.
        length: keys; 0 keeps none.
        ids: whether it also remembers which sample or video a key is of.
    """

    pointer: Tensor
    video: Tensor
    text: Tensor
    ids: Tensor | None

    def __init__(self, width: int, length: int, *, ids: bool) -> None:
        super().__init__()
        self.length = length
        for name in ("video", "text"):
            self.register_buffer(name, functional.normalize(torch.randn(width, length), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("ids", torch.full((length,), UNKNOWN) if ids else None)

    @torch.no_grad()
    def push(self, video: Tensor, text: Tensor, ids: Tensor) -> None:
        """Let keys take the places of the oldest ones; nothing waits for the device.

        Args:
            video: (B, d), any B.
            text: (B, d).
            ids: (B,) int64.
        """
        count = min(len(video), self.length)
        if count == 0:
            return
        step = torch.arange(len(video) - count, len(video), device=video.device)
        place = (self.pointer + step) % self.length
        self.video.index_copy_(1, place, video[-count:].T.to(self.video.dtype))
        self.text.index_copy_(1, place, text[-count:].T.to(self.text.dtype))
        if self.ids is not None:
            self.ids.index_copy_(0, place, ids[-count:])
        self.pointer.add_(len(video)).remainder_(self.length)


class DistillAlignTerm(LossTerm):
    """The alignment loss with its slow encoders and its queue (LD-DETR, Eq. 1–6).

    The paper compares with the queue alone; its code puts the slow keys of the batch in front,
    without which Eq. 5 has no right pair, and so is done here.

    Args:
        weight: factor in the sum.
        encoders: that are followed; they stay where they are in the model.
        width: features.
        queue_length: keys of earlier batches.
        queue_mask: see `QueueMask`.
        alpha: share of the soft target.
        momentum: how much of the slow encoders stays in an update.
        momentum_dropout: whether the slow encoders drop out features in training, as released.
        pooling: rows of the global features.
        updates: `step` moves slow encoders and queue after every optimiser step. `forward`, as
            released, moves the encoders whenever the loss is computed, in evaluation too, and
            writes the queue then, if its length is a multiple of the batch.
        queue_from: see `QueueFrom`. The slow encoders need no exchange: they follow weights that
            are equal in all processes.
    """

    name = "distill_align"
    requires = frozenset({"video", "text"})

    def __init__(
        self,
        weight: float,
        encoders: Encoders,
        width: int,
        *,
        queue_length: int,
        queue_mask: QueueMask,
        alpha: float,
        momentum: float,
        momentum_dropout: bool,
        pooling: Pooling,
        updates: Literal["step", "forward"],
        queue_from: QueueFrom,
    ) -> None:
        super().__init__(weight)
        self.momentum = _slow_copy(encoders, dropout=momentum_dropout)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.queue = FeatureQueue(width, queue_length, ids=queue_mask != "none")
        self.queue_mask: QueueMask = queue_mask
        self.alpha, self.keep = alpha, momentum
        self.pooling: Pooling = pooling
        self.updates: Literal["step", "forward"] = updates
        self.queue_from: QueueFrom = queue_from
        # In a tuple, because these are the model's parameters and not this term's.
        self._followed = (encoders,)
        self._waiting: list[Keys] = []

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar; samples without moments take no part, as released."""
        batch, context = outcome.batch, outcome.context
        if self.updates == "forward":
            self._follow()
        video, text = globals_of(outcome.trace.encoded, self.pooling)
        with torch.no_grad():
            slow_video, slow_text = globals_of(self.momentum(batch), self.pooling)
        ids = self._ids(batch)
        alpha = warmed_up(self.alpha, context) if self.training else self.alpha
        with torch.autocast(video.device.type, enabled=False):
            loss = self._loss((video, text), (slow_video, slow_text), ids, alpha)
        if self.training and context.view == 0:
            self._remember(slow_video, slow_text, ids)
        return mean_known(loss, outcome.targets.has_moments)

    def _loss(
        self, fast: Sequence[Tensor], slow: Sequence[Tensor], ids: Tensor, alpha: float
    ) -> Tensor:
        """(B,), the mean of both directions."""
        hidden = self._hidden(ids)
        queues = (self.queue.text.clone(), self.queue.video.clone())
        # Also here, with the gradient: who computes losses without updates would leave the range.
        held = self.temperature.detach().clamp(*TEMPERATURE_RANGE)
        temperature = self.temperature + (held - self.temperature.detach())
        there, back = (
            distilled_contrast(
                fast[i],
                slow[i],
                slow[1 - i],
                queues[i],
                temperature=temperature,
                alpha=alpha,
                hidden=hidden,
            )
            for i in range(2)
        )
        return (there + back) / 2

    def after_step(self, context: StepContext) -> None:
        """Move the slow encoders, and let the keys of the step's batches into the queue."""
        if self.updates == "forward":
            return
        self._follow()
        keys = self._taken()
        if self.queue.length:
            self.queue.push(*self._shared(keys))

    @torch.no_grad()
    def _follow(self) -> None:
        """`θ_slow ← m θ_slow + (1 − m) θ`, in place, and hold the temperature in its range."""
        fast = dict(self._followed[0].named_parameters())
        slow = dict(self.momentum.named_parameters())
        torch._foreach_lerp_(list(slow.values()), [fast[name] for name in slow], 1 - self.keep)
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def _remember(self, video: Tensor, text: Tensor, ids: Tensor) -> None:
        if self.updates == "step":
            self._waiting.append((video, text, ids))
            # Someone who computes losses and takes no steps fills no memory.
            if sum(len(each[0]) for each in self._waiting[1:]) > self.queue.length:
                del self._waiting[0]
        elif self.queue.length:
            keys = self._shared((video, text, ids))
            if self.queue.length % len(keys[0]) == 0:
                self.queue.push(*keys)

    def _taken(self) -> Keys:
        """What waited, in order. Nothing is no reason to stay away: the others would wait."""
        blank = self.queue.video.new_zeros(0, len(self.queue.video))
        none = blank, blank, self.queue.pointer.new_zeros(0)
        taken = none, *self._waiting
        self._waiting.clear()
        video, text, ids = (torch.cat(some) for some in zip(*taken, strict=True))
        return video, text, ids

    def _shared(self, keys: Keys) -> Keys:
        """The keys that every process lets in."""
        if self.queue_from == "first_process":
            return keys
        video, text, ids = rows_of_all(keys)
        return video, text, ids

    def _ids(self, batch: Batch) -> Tensor:
        given = batch.video_ids if self.queue_mask == "same_video" else batch.sample_ids
        if given is None:
            return torch.full((len(batch),), UNKNOWN, device=batch.video.device)
        return given

    def _hidden(self, ids: Tensor) -> Tensor | None:
        """(B, B + N) bool, keys of the same sample or video that are not the right pair."""
        if self.queue.ids is None:
            return None
        same = ids.unsqueeze(1) == torch.cat([ids, self.queue.ids])
        right = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
        return same & (ids != UNKNOWN).unsqueeze(1) & ~right


class SimilarityTerm(LossTerm):
    """Video and text of a pair predict each other (LD-DETR's loss_sim).

    Eq. 7 of the paper averages over the whole queue, in which nothing belongs to the sample; its
    code compares the pairs of the batch, and so is done here.

    Args:
        weight: factor in the sum.
        width: features.
        pooling: rows of the global features.
        stop_gradient: whether what is predicted gets no gradient, as in SimSiam.
    """

    name = "distill_sim"
    requires = frozenset({"video", "text"})

    def __init__(self, weight: float, width: int, *, pooling: Pooling, stop_gradient: bool) -> None:
        super().__init__(weight)
        self.predictor = nn.Linear(width, width)
        xavier(self)
        self.pooling: Pooling = pooling
        self.stop_gradient = stop_gradient

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar; samples without moments take no part, as released."""
        video, text = globals_of(outcome.trace.encoded, self.pooling)
        with torch.autocast(video.device.type, enabled=False):
            found = pair_similarity(self.predictor, video, text, stop=self.stop_gradient)
        return mean_known(-found, outcome.targets.has_moments)


def _slow_copy(encoders: Encoders, *, dropout: bool) -> Encoders:
    """A copy that no gradient moves; places of words are no part of what is compared."""
    slow = copy.deepcopy(encoders).requires_grad_(False)
    if isinstance(slow, ProjectionEncoders):
        slow.text_position = None
    for part in slow.modules():
        if isinstance(part, nn.Dropout) and not dropout:
            part.p = 0.0
    return slow
