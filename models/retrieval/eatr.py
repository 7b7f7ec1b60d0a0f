"""EaTR: Knowing Where to Focus: Event-aware Transformer for Video Grounding.

Jang et al., ICCV 2023, https://arxiv.org/abs/2308.06947; public code
https://github.com/jinhyunj/EaTR (commit 384f093).

Clips and words are one sequence that an encoder reads. Slots share out the clips among
themselves and say which events there are; the decoder takes them as its queries and their events
as anchors, and its first layer lets the whole text gate them.

What differs from the public code, as options; `fixed` is the default:

events: `stored` takes the pseudo-events of the batch, found once before training. `online` finds
    them in the features in every step (`parts.pseudo_events`), as the paper. `released` does so
    with two defects: padding counts, and in an odd batch one sample gets a span that joins two
    videos. release: released; paper: online.
text_max: `words` takes the greatest value of every feature over the real words. `released` takes
    padded ones too, so that a query depends on the longest one beside it. release: released.
slot_padding: `masked` gives slots real clips only. `released` lets padded clips belong to all
    slots alike (`SlotPadding`). release: released.
width_floor: smallest anchor width that the decoder divides by; 0 divides by a closed anchor.
    release: 0.
align: a contrast of the last layer's queries with the words, which the public code has and the
    paper does not use (`query_words`); off everywhere.
align_words: as in `moment_detr`. release: released.
decoding: `grid` reads spans in the unit in which they are trained. `released` reads them in units
    of the duration and rounds to whole clips (`Decoding.released`). release: released.

The gate's attentions have `dropout` too; the public code has 0.1 built in there, which is the
same at the published options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.criterion import MarginTerm
from models.retrieval.flow import Decoded, Memory, Queries
from models.retrieval.lineage import (
    PUBLIC_OPTIONS,
    blueprint_of,
    encoders_of,
    moment_terms,
    public_options,
    unused_text_position,
)
from models.retrieval.official import (
    LINEAGE_NAMES,
    OfficialLayout,
    Weights,
    dab_names,
    encoder_names,
)
from models.retrieval.parts.attention import Attention, xavier
from models.retrieval.parts.concat import ConcatFuser
from models.retrieval.parts.dab import DABLayer
from models.retrieval.parts.heads import AnchorMomentHead, LinearSaliency
from models.retrieval.parts.projection import MLP, AnchorSine
from models.retrieval.parts.pseudo_events import EventMatcher, EventSource, EventTerm
from models.retrieval.parts.slots import SlotAttention, SlotPadding
from models.retrieval.parts.spans import inverse_sigmoid
from models.retrieval.query_words import (
    ALIGN_NAMES,
    ALIGN_OPTIONS,
    AlignOptions,
    align_terms,
    unread_align_weight,
    unused_align,
)
from models.retrieval.stages import Decoder, Head, Parts

__all__ = ["EaTROptions", "EventHead", "SlotDecoder", "TextGate"]

TextMax = Literal["words", "released"]


class EaTROptions(AlignOptions):
    """Options of EaTR beside those of the lineage and of the contrast of queries and words.

    Args:
        slot_iterations: rounds of the slot attention.
        event_weight: of the event losses, on top of `span_weight` and `giou_weight`.
        events: see the module.
        text_max: see the module.
        slot_padding: see the module.
        width_floor: see the module.
    """

    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(3, ge=1)
    slot_iterations: int = Field(3, ge=1)
    event_weight: float = Field(3.0, ge=0)
    events: EventSource = "stored"
    text_max: TextMax = "words"
    slot_padding: SlotPadding = "masked"
    width_floor: float = Field(1e-3, ge=0)


class TextGate(nn.Module):
    """Lets through what of a query the whole text asks for (paper §3.3, gated fusion).

    Args:
        width: features.
        dropout: on the attention weights and on the branch.
        text_max: see the module.
    """

    def __init__(self, width: int, dropout: float, text_max: TextMax) -> None:
        super().__init__()
        self.read_text, self.read_queries = (
            Attention(width, 1, dropout),
            Attention(width, 1, dropout),
        )
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.text_max = text_max

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, d) queries that have met the text.

        Args:
            x: (B, Q, d).
            words: (B, T, d), as they were before the fusion.
            mask: (B, T) bool.
        """
        text = self.summary(words, mask).unsqueeze(1)
        asked = self.read_text(x, text, text, torch.ones_like(text[..., 0], dtype=torch.bool))
        gate = (x * asked).sigmoid()
        joint, everyone = x + asked, torch.ones_like(x[..., 0], dtype=torch.bool)
        joint = self.read_queries(joint, joint, joint, everyone)
        return self.norm(x + self.dropout(self.linear(gate * joint).relu()))  # type: ignore[no-any-return]

    def summary(self, words: Tensor, mask: Tensor) -> Tensor:
        """(B, d) greatest value of every feature; zero for a query without words.

        Of equal values one has the gradient, as released: padded words are all equal.
        """
        if self.text_max == "released":
            return words.max(1).values
        shown = mask.unsqueeze(-1)
        least = torch.finfo(words.dtype).min
        return torch.where(shown.any(1), words.masked_fill(~shown, least).amax(1), 0)


class SlotDecoder(Decoder):
    """Slots find events, and start as queries from them; then DAB layers, the first one gated.

    Unlike in `DABDecoder`, only the centre of an anchor is a query's sine code, layer 0 scales it
    too, and the network that refines anchors is also that of the moment head.

    Args:
        width: features, a multiple of 4.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        layers: decoder layers.
        queries: slots.
        iterations: rounds of the slot attention.
        dropout: everywhere.
        width_floor: smallest anchor width that the modulation divides by, as `DABDecoder`.
        text_max: see the module.
        slot_padding: see the module.
    """

    requires = frozenset({"kv", "video", "text"})
    provides = frozenset({"states", "references", "event_states"})

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        queries: int,
        iterations: int,
        dropout: float,
        width_floor: float,
        text_max: TextMax,
        slot_padding: SlotPadding,
    ) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(queries, width))
        self.slot_attention = SlotAttention(
            width, hidden=width, depth=2, iterations=iterations, padding=slot_padding
        )
        self.gate = TextGate(width, dropout, text_max)
        self.layers = nn.ModuleList(
            DABLayer(width, heads, hidden, dropout, first=i == 0, activation="relu")
            for i in range(layers)
        )
        self.norm, self.event_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.sine = AnchorSine(2 * width)
        self.place = MLP(2 * width, width, width, 2)
        self.anchor_width = MLP(width, width, 1, 2)
        self.sine_scale = MLP(width, width, width, 2)
        xavier(self)
        self.event_span, self.moment_span = _span_network(width), _span_network(width)
        self.width_floor = width_floor

    def start(self, memory: Memory) -> Queries:
        """The slots, with their events as anchors; their normed states are for the event head."""
        tokens = memory.tokens
        slots = self.slots.expand(len(memory.kv), -1, -1)
        clips = tokens.video + tokens.video_pos
        slots = self.slot_attention(slots, clips, tokens.video_mask)
        anchors = self.event_span(slots).float().sigmoid()
        return Queries(slots, anchors, extras={"event_states": self.event_norm(slots)})

    def run(self, memory: Memory, queries: Queries) -> Decoded:
        """States (ℓ, B, Q, d) and the anchors (ℓ, B, Q, 2) that each layer started from.

        Layers see an anchor without its gradient; the heads see it with.
        """
        assert queries.anchors is not None
        x, references, states = queries.content, [queries.anchors], []
        for layer in cast("Iterable[DABLayer]", self.layers):
            x = self._layer(layer, x, references[-1].detach(), memory)
            states.append(self.norm(x))
            refined = self.moment_span(x) + inverse_sigmoid(references[-1].detach())
            references.append(refined.float().sigmoid())
        return Decoded(torch.stack(states), torch.stack(references[:-1]), queries.extras)

    def _layer(self, layer: DABLayer, x: Tensor, anchor: Tensor, memory: Memory) -> Tensor:
        """(B, Q, d) states after a layer; the first is the one whose anchors join the content."""
        code = self.sine(anchor)
        place = self.place(code)
        wanted = self.anchor_width(x).sigmoid() / anchor[..., 1:].clamp(min=self.width_floor)
        sine = code[..., : x.shape[-1]] * self.sine_scale(x) * wanted
        keys, values = layer.project_memory(memory.kv, memory.kv_pos)
        x = layer.read_queries(x, place)
        if layer.cross_query_pos is not None:
            x = self.gate(x, memory.tokens.text, memory.tokens.text_mask)
        return layer.read_memory(x, place, sine, keys, values, memory.kv_mask)


def _span_network(width: int) -> MLP:
    """A network of (centre, width) that starts at the middle half, as released."""
    network = MLP(width, width, 2, 3)
    last = cast("nn.Linear", network.layers[-1])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


class EventHead(Head):
    """The events that the slots have found.

    Args:
        span: network of their spans, which is also the decoder's.
    """

    requires = frozenset({"event_states"})
    provides = frozenset({"event_spans"})

    def __init__(self, span: MLP) -> None:
        super().__init__()
        self.span = span

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`event_spans` (B, Q, 2) as (centre, width) in [0, 1]."""
        assert decoded is not None
        return {"event_spans": self.span(decoded.extras["event_states"]).float().sigmoid()}


def build(dims: Dims, options: EaTROptions) -> Blueprint:
    """The parts of EaTR."""
    o = options
    shape = (o.hidden, o.heads, o.feedforward)
    decoder = SlotDecoder(
        *shape,
        layers=o.decoder_layers,
        queries=o.queries,
        iterations=o.slot_iterations,
        dropout=o.dropout,
        width_floor=o.width_floor,
        text_max=o.text_max,
        slot_padding=o.slot_padding,
    )
    event = EventTerm(
        o.event_weight,
        span=o.span_weight,
        giou=o.giou_weight,
        matcher=EventMatcher(span=o.cost_span, giou=o.cost_giou),
        source=o.events,
    )
    parts = Parts(
        encoders=encoders_of(dims, o),
        fuser=ConcatFuser(*shape, layers=o.encoder_layers, dropout=o.dropout),
        decoder=decoder,
        heads=(
            AnchorMomentHead(o.hidden, span=decoder.moment_span),
            LinearSaliency(o.hidden),
            EventHead(decoder.event_span),
        ),
        terms=(
            *moment_terms(o),
            MarginTerm(o.saliency_weight, margin=o.margin),
            event,
            *align_terms(o, every_layer=False),
        ),
    )
    return blueprint_of(parts, o)


_DECODER = "transformer.decoder"
_NAMES = (
    *encoder_names("fuser.layers", "transformer.encoder.layers"),
    (r"decoder\.slots", f"{_DECODER}.slot_atten.slots"),
    (r"decoder\.slot_attention\.norm_clips\.(.*)", rf"{_DECODER}.slot_atten.norm_inputs.\1"),
    (
        r"decoder\.slot_attention\.(query|key|value)\.(.*)",
        lambda m: f"{_DECODER}.slot_atten.project_{m[1][0]}.{m[2]}",
    ),
    (r"decoder\.slot_attention\.(.*)", rf"{_DECODER}.slot_atten.\1"),
    (r"decoder\.gate\.read_text\.(.*)", rf"{_DECODER}.layers.0.gate_cross_attn.\1"),
    (r"decoder\.gate\.read_queries\.(.*)", rf"{_DECODER}.layers.0.gate_self_attn.\1"),
    (r"decoder\.gate\.(.*)", rf"{_DECODER}.layers.0.gate_\1"),
    (r"decoder\.(event_norm\..*)", rf"{_DECODER}.\1"),
    (r"decoder\.(event|moment)_span\.(.*)", rf"{_DECODER}.\1_span_embed.\2"),
    *dab_names("decoder", _DECODER),
    (r"heads\.0\.span\.(.*)", r"moment_span_embed.\1"),
    (r"heads\.1\.clip\.(.*)", r"saliency_proj.\1"),
    (r"heads\.2\.span\.(.*)", r"event_span_embed.\1"),
    *LINEAGE_NAMES,
    *ALIGN_NAMES,
)


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    own = {"num_slot_iter": "slot_iterations", "event_coef": "event_weight"}
    names = {**PUBLIC_OPTIONS, **ALIGN_OPTIONS, **own}
    options = public_options(public, weights, names=names, allowed={"query_dim": (2,)})
    return options | unread_align_weight(options)


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    return unused_text_position(recipe) | unused_align(recipe)


MODELS.register("eatr")(
    ModelFamily(
        options=EaTROptions,
        presets={
            "release": {
                "align_words": "released",
                "events": "released",
                "text_max": "released",
                "slot_padding": "released",
                "width_floor": 0.0,
                "decoding": "released",
            },
            "paper": {"events": "online"},
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        # What is added to all keys, or to all slots that share out a clip, cancels in the softmax,
        # and what is added to the saliency of all clips in the hinge.
        inert=(
            r"decoder\.layers\.\d+\.(self|cross)_key(_pos)?\.bias",
            r"decoder\.slot_attention\.(norm_slots|query)\.bias",
            r"heads\.1\.clip\.bias",
        ),
        requires=frozenset({"events"}),
    )
)
