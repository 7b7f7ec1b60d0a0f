"""Slots that compete for clips (Locatello et al., NeurIPS 2020; EaTR and UVCOM)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from models.retrieval.flow import Memory, Queries
from models.retrieval.parts.attention import xavier
from models.retrieval.parts.dab import LearnedAnchors
from models.retrieval.parts.projection import MLP

__all__ = ["SentenceSlots", "SlotAttention", "SlotPadding"]

SlotPadding = Literal["masked", "released"]
"""`masked` gives slots real clips only. `released` blocks padded clips before a softmax over the
slots, where they then belong to all slots alike instead of to none."""


class SlotAttention(nn.Module):
    """Slots share the clips out among themselves, each takes the mean of its share, repeatedly.

    Args:
        width: features.
        hidden: features inside the MLP that follows each round.
        depth: layers of that MLP.
        iterations: rounds; all have the same weights.
        padding: see `SlotPadding`.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int,
        depth: int,
        iterations: int,
        padding: SlotPadding = "masked",
    ) -> None:
        super().__init__()
        self.norm_clips, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_mlp, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = MLP(width, hidden, width, depth)
        self.iterations = iterations
        self.padding = padding

    def forward(self, slots: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
        """(B, N, d) slots after the last round, normalised.

        Args:
            slots: (B, N, d) to start from.
            clips: (B, L, d).
            mask: (B, L) bool.
        """
        clips = self.norm_clips(clips)
        key, value = self.key(clips), self.value(clips)
        for _ in range(self.iterations):
            slots = slots + self._shares(self.norm_slots(slots), key, mask) @ value
            slots = slots + self.mlp(self.norm_mlp(slots))
        return self.norm_out(slots)  # type: ignore[no-any-return]

    def _shares(self, slots: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """(B, N, L) share of every clip in a slot's mean; 0 everywhere if there are no clips."""
        score = self.query(slots) @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        if self.padding == "released":
            share = score.float().masked_fill(~mask.unsqueeze(1), 0).softmax(1)
        else:
            share = score.float().softmax(1) * mask.unsqueeze(1)
        shared: Tensor = share / (share.sum(-1, keepdim=True) + 1e-8)
        return shared


class SentenceSlots(LearnedAnchors):
    """Learned anchors, and as content slots that start from the sentence and read the memory.

    Args:
        queries: Q, one slot each.
        width: features.
        hidden: features inside the MLP of the slots.
        rounds: of slot attention.
        apart: whether the slots' own vectors join the sentence before the first round too, or
            after the last alone. Slots that start equal share every clip equally: all take the
            mean of the clips, and the attention learns nothing.
        padding: see `SlotPadding`.
    """

    requires = frozenset({"kv", "sentence"})

    def __init__(
        self,
        queries: int,
        width: int,
        hidden: int,
        *,
        rounds: int,
        apart: bool,
        padding: SlotPadding,
    ) -> None:
        super().__init__(queries, width)
        self.slots = SlotAttention(
            width, hidden=hidden, depth=3, iterations=rounds, padding=padding
        )
        self.place = nn.Embedding(queries, width)
        xavier(self.slots)
        xavier(self.place)
        self.apart = apart

    def forward(self, memory: Memory) -> Queries:
        """Content (B, Q, d) of the memory, anchors (B, Q, 2) alike for every sample."""
        anchors = super().forward(memory).anchors
        start = memory.extras["sentence"].unsqueeze(1) + self.place.weight * self.apart
        return Queries(self.slots(start, memory.kv, memory.kv_mask) + self.place.weight, anchors)
