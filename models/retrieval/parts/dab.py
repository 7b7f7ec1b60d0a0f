"""The DAB decoder with one-dimensional anchors (QD-DETR, CG-DETR, TR-DETR, LD-DETR)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from models.retrieval.flow import Decoded, Memory, Queries
from models.retrieval.parts.attention import Activation, DropPath, FeedForward, attend, xavier
from models.retrieval.parts.projection import MLP, AnchorSine
from models.retrieval.parts.spans import inverse_sigmoid
from models.retrieval.stages import Decoder, Part

__all__ = ["DABDecoder", "DABLayer", "LearnedAnchors", "QueryInit"]


class DABLayer(nn.Module):
    """Self-attention of the queries, cross-attention with anchors as position, feed-forward.

    Args:
        width: features.
        heads: attention heads; in cross-attention each is twice as wide for queries and keys.
        hidden: features inside the feed-forward.
        dropout: everywhere.
        first: whether anchors and clip positions also join the content, as in layer 0.
        drop_path: chance that a sample loses a branch, instead of dropout on the branches.
        activation: of the feed-forward.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        first: bool,
        drop_path: float | None = None,
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.self_query, self.self_query_pos = nn.Linear(width, width), nn.Linear(width, width)
        self.self_key, self.self_key_pos = nn.Linear(width, width), nn.Linear(width, width)
        self.self_value, self.self_out = nn.Linear(width, width), nn.Linear(width, width)
        self.cross_query, self.cross_query_sine = nn.Linear(width, width), nn.Linear(width, width)
        self.cross_key, self.cross_key_pos = nn.Linear(width, width), nn.Linear(width, width)
        self.cross_value, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
        self.cross_query_pos = nn.Linear(width, width) if first else None
        self.feedforward = FeedForward(width, hidden, dropout, activation)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout) if drop_path is None else DropPath(drop_path)

    def project_memory(self, kv: Tensor, kv_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, S, 2d) and values (B, S, d) of the memory; they do not depend on the queries.

        Args:
            kv: (B, S, d).
            kv_pos: (B, S, d).
        """
        place = self.cross_key_pos(kv_pos)
        content = self.cross_key(kv)
        if self.cross_query_pos is not None:
            content = content + place
        return self._side_by_side(content, place), self.cross_value(kv)

    def forward(
        self, x: Tensor, place: Tensor, sine: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """(B, Q, d) states after this layer.

        Args:
            x: (B, Q, d) states.
            place: (B, Q, d) embedded anchors.
            sine: (B, Q, d) modulated sine code of the anchors.
            keys: of `project_memory`.
            values: of `project_memory`.
            mask: (B, S) bool.
        """
        x = self.read_queries(x, place)
        return self.read_memory(x, place, sine, keys, values, mask)

    def read_queries(self, x: Tensor, place: Tensor) -> Tensor:
        """The first half of the layer: (B, Q, d) states after the self-attention."""
        return self.norm1(x + self.dropout(self._attend_queries(x, place)))  # type: ignore[no-any-return]

    def read_memory(
        self, x: Tensor, place: Tensor, sine: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """The second half of the layer, after the self-attention; arguments as `forward`."""
        query = self.cross_query(x)
        if self.cross_query_pos is not None:
            query = query + self.cross_query_pos(place)
        query = self._side_by_side(query, self.cross_query_sine(sine))
        found = self.cross_out(self._attend(query, keys, values, mask))
        x = self.norm2(x + self.dropout(found))
        return self.norm3(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]

    def _attend_queries(self, x: Tensor, place: Tensor) -> Tensor:
        query = self.self_query(x) + self.self_query_pos(place)
        key = self.self_key(x) + self.self_key_pos(place)
        everyone = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        out = self._attend(query, key, self.self_value(x), everyone)
        return self.self_out(out)  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        dropout = self.attention_dropout.p if self.training else 0.0
        return attend(query, key, value, heads=self.heads, allowed=allowed, dropout=dropout)

    def _side_by_side(self, content: Tensor, place: Tensor) -> Tensor:
        """Content and place concatenated within each head, (B, N, 2d)."""
        halves = (x.view(*x.shape[:2], self.heads, -1) for x in (content, place))
        return torch.cat(list(halves), dim=-1).flatten(-2)


class QueryInit(Part, ABC):
    """What the queries of a decoder are before its first layer."""

    @abstractmethod
    def forward(self, memory: Memory) -> Queries:
        """Content (B, Q, d) and anchors (B, Q, 2) in [0, 1]."""


class LearnedAnchors(QueryInit):
    """Learned anchors; the content is zero.

    Args:
        queries: Q.
        width: features of the content.
    """

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.anchors = nn.Embedding(queries, 2)
        self.width = width

    def forward(self, memory: Memory) -> Queries:
        """The same for every sample."""
        anchors = self.anchors.weight.sigmoid().expand(len(memory.kv), -1, -1)
        return Queries(anchors.new_zeros(*anchors.shape[:2], self.width), anchors)


class DABDecoder(Decoder):
    """Anchors that every layer refines.

    Where the first content is zero (`LearnedAnchors`), the self-attention of layer 0 averages equal
    values and its query and key projections have no effect (specs/retrieval_models.md §10.6); the
    public layout has them, so they are here.

    Args:
        width: features, a multiple of 4.
        heads: attention heads.
        hidden: features inside the feed-forward.
        layers: decoder layers.
        init: what the queries start from.
        dropout: everywhere.
        width_floor: smallest anchor width that the modulation divides by; 0 divides by anything,
            as released, and is infinite where an anchor closes.
        refine_zero: whether refinement starts at zero. The public code sets its last layer to
            zero and then overwrites it with the initialisation of all weights.
        refine_last: whether a layer's reference is the anchor after its own refinement, the last
            layer refines too, and the anchors that the queries start from are no reference
            (UVCOM).
        drop_path: as `DABLayer`.
        refine: whether anchors are refined at all; without, all layers see those of the start.
        width_first: as `AnchorSine`.
        width_outputs: outputs of the network of the wanted width, of which the first is read.
        activation: of the feed-forwards.
    """

    provides = frozenset({"states", "references"})

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        init: QueryInit,
        dropout: float,
        width_floor: float,
        refine_zero: bool,
        refine_last: bool = False,
        drop_path: float | None = None,
        refine: bool = True,
        width_first: bool = False,
        width_outputs: int = 1,
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        self.requires = self.requires | init.requires
        self.layers = nn.ModuleList(
            DABLayer(
                width,
                heads,
                hidden,
                dropout,
                first=i == 0,
                activation=activation,
                drop_path=drop_path,
            )
            for i in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.sine = AnchorSine(width, width_first=width_first)
        self.place = MLP(width, width, width, 2)
        self.anchor_width = MLP(width, width, width_outputs, 2)
        # One layer refines nothing and scales nothing: these would never be trained.
        self.sine_scale = MLP(width, width, width, 2) if layers > 1 else None
        self.refine = MLP(width, width, 2, 3) if refine and (layers > 1 or refine_last) else None
        xavier(self)
        if refine_zero and self.refine is not None:
            nn.init.zeros_(self.refine.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.refine.layers[-1].bias)  # type: ignore[arg-type]
        self.init = init
        self.width_floor = width_floor
        self.refine_last = refine_last

    def start(self, memory: Memory) -> Queries:
        """What `init` makes."""
        return self.init(memory)  # type: ignore[no-any-return]

    def prepare(self, memory: Memory) -> Memory:
        """The memory with every layer's `keys_<i>` (B, S, 2d) and `values_<i>` (B, S, d)."""
        if "keys_0" in memory.extras:
            return memory
        found = dict(memory.extras)
        for i, layer in enumerate(cast("Iterable[DABLayer]", self.layers)):
            projected = layer.project_memory(memory.kv, memory.kv_pos)
            found[f"keys_{i}"], found[f"values_{i}"] = projected
        return replace(memory, extras=found)

    def run(self, memory: Memory, queries: Queries) -> Decoded:
        """States (ℓ, B, Q, d) and the anchors (ℓ, B, Q, 2) that each layer started from, or with
        `refine_last` ended with.

        The next layer sees a refined anchor without its gradient; the heads see it with.
        """
        assert queries.anchors is not None
        memory = self.prepare(memory)
        x, anchor = queries.content, queries.anchors
        states, references = [], [anchor]
        for i, layer in enumerate(cast("Iterable[DABLayer]", self.layers)):
            sine = self.sine(anchor)
            place = self.place(sine)
            if i > 0 and self.sine_scale is not None:
                sine = sine * self.sine_scale(x)
            sine = sine * self._modulation(x, anchor)
            keys, values = memory.extras[f"keys_{i}"], memory.extras[f"values_{i}"]
            x = layer(x, place, sine, keys, values, memory.kv_mask)
            states.append(self.norm(x))
            if self.refine is not None and (self.refine_last or i + 1 < len(self.layers)):
                refined = (self.refine(x) + inverse_sigmoid(anchor)).sigmoid()
                references.append(refined)
                anchor = refined.detach()
        return Decoded(torch.stack(states), torch.stack(references[-len(states) :]))

    def _modulation(self, x: Tensor, anchor: Tensor) -> Tensor:
        """(B, Q, 1) wanted over present anchor width; it scales centre and width code alike."""
        wanted = self.anchor_width(x)[..., :1].sigmoid()
        return wanted / anchor[..., 1:].clamp(min=self.width_floor)  # type: ignore[no-any-return]
