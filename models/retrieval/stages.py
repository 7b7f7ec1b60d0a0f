"""The path that every retrieval model is a preset of, and the words its parts speak.

    Batch → encoders → merges → fuser → refiners → decoder → heads → Predictions → criterion
            Tokens     Tokens   Memory  Memory     Decoded   dict                 terms

and in training beside it:

    views     another Batch, which takes the whole path again; the losses are averaged
    passes    other Tokens → fuser → refiners → those heads that read no decoder
    aligners  Memory, Batch → what several terms compare

Passes join the right tokens as one larger batch where samples do not see each other. Whatever
heads, passes and aligners find by another name than those of `Predictions` are its `extras`.

B samples, L clips, T words, S memory rows, Q queries, ℓ decoder layers, d features. Batch first
everywhere. Masks are True where something is.

What flows between the parts is in `flow`. Each part says what it `requires` of the parts before it
and what it `provides` to those after it, as names of those fields or of tensors in `extras`;
`path.check_path` compares them when a model is built, so that a combination that does not fit is
explained before the first step. A pass runs only if a head or a term that counts reads what it
provides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.retrieval.flow import Decoded, Memory, Outcome, Queries, Tokens
from models.retrieval.types import Batch, StepContext

__all__ = [
    "Aligner",
    "Constant",
    "Decoder",
    "Encoders",
    "Fuser",
    "Head",
    "LossTerm",
    "Merge",
    "Part",
    "Parts",
    "Pass",
    "Refiner",
    "View",
]


class Constant(nn.Module):
    """Has buffers that no step changes: every process has them, and none sends them to another."""


class Part(nn.Module, ABC):
    """One replaceable part of the path; subclasses set what they need and give."""

    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    #: what it reads of the extra passes where they run, and does without elsewhere.
    uses: frozenset[str] = frozenset()

    def after_step(self, context: StepContext) -> None:
        """Take an optimiser step: where a queue or a moving average changes, never in `forward`."""


class Encoders(Part):
    """Batch → Tokens."""

    provides = frozenset({"video", "text"})

    @abstractmethod
    def forward(self, batch: Batch) -> Tokens:
        """Tokens of a batch."""

    @abstractmethod
    def encode_text(self, x: Tensor) -> Tensor:
        """(…, Dt) text features as (…, d) in the space of `Tokens.text`, for parts to share."""

    def text_places(self, text: Tensor) -> Tensor:
        """Position code (B, T, d) of encoded words (B, T, d); zero if the encoders have none."""
        return torch.zeros_like(text)

    def other_texts(self, batch: Batch) -> dict[str, Tensor]:
        """`Tokens.texts` of the query of a batch; none if the encoders have none."""
        return {}


class Merge(Part):
    """Tokens, Batch → Tokens: brings a side stream into the tokens."""

    requires = frozenset({"video"})

    @abstractmethod
    def forward(self, tokens: Tokens, batch: Batch, encoders: Encoders) -> Tokens:
        """Tokens with the side stream in them."""


class Fuser(Part):
    """Tokens → Memory."""

    requires = frozenset({"video", "text"})
    provides = frozenset({"clip", "kv"})
    #: True if one sample's memory depends on the others (batch statistics, released defects):
    #: extra passes then run by themselves instead of in one larger batch.
    mixes_samples: bool = False

    @abstractmethod
    def forward(self, tokens: Tokens) -> Memory:
        """Memory of the tokens."""


class Refiner(Part):
    """Memory → Memory of the same length."""

    requires = frozenset({"clip", "kv"})
    #: as `Fuser.mixes_samples`.
    mixes_samples: bool = False

    @abstractmethod
    def forward(self, memory: Memory) -> Memory:
        """The memory, refined."""


class Decoder(Part):
    """Memory → Decoded: where the queries start, and what the layers make of them."""

    requires = frozenset({"kv"})
    provides = frozenset({"states"})
    #: how often it runs, each time from the start's anchors and places, with the last states of
    #: the time before as content (LD-DETR's Loop Decoder). Only the last time is given on.
    loops: int = 1

    @abstractmethod
    def start(self, memory: Memory) -> Queries:
        """The queries before the first layer."""

    @abstractmethod
    def run(self, memory: Memory, queries: Queries) -> Decoded:
        """States of the queries after every layer."""

    def prepare(self, memory: Memory) -> Memory:
        """The memory with what `run` makes of it alone among its extras, so that loops share it;
        a decoder that has nothing of the kind leaves it as it is."""
        return memory

    def forward(self, memory: Memory) -> Decoded:
        """`run` from the `start`, `loops` times."""
        memory = self.prepare(memory)
        queries = self.start(memory)
        decoded = self.run(memory, queries)
        for _ in range(1, self.loops):
            decoded = self.run(memory, replace(queries, content=decoded.states[-1]))
        return decoded


class Head(Part):
    """Memory, Decoded, what was found before → named outputs.

    The names are those of `Predictions` (`logits` (ℓ, B, Q, 2) and `spans` (ℓ, B, Q, 2) of all
    layers, `saliency` (B, L), `query_mask` (B, Q)); every other name becomes an entry of its
    `extras`.
    """

    @abstractmethod
    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            memory: of the fuser and refiners.
            decoded: of the decoder; None without one, and in an extra pass.
            found: outputs of the extra passes (if they ran) and of the heads before this one.
        """


class Pass(Part):
    """A second way of changed tokens through fuser and refiners, for losses only.

    Heads whose outputs are all among `outputs` also run on the changed memory; what they find
    becomes an extra called `<name>_<suffix>`. The decoder does not run.
    """

    suffix: str
    outputs: frozenset[str]

    @abstractmethod
    def change(
        self, tokens: Tokens, batch: Batch, encoders: Encoders, context: StepContext
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Changed tokens of the same batch size, and further extras by name.

        Args:
            tokens: of the encoders and merges.
            batch: what the model was given.
            encoders: to encode another text with.
            context: where training stands.
        """

    def waits(self, context: StepContext) -> bool:
        """Whether the change depends on the memory of the right tokens; then `change_after` is
        asked instead of `change`, and the pass runs by itself."""
        return False

    def change_after(
        self,
        memory: Memory,
        tokens: Tokens,
        batch: Batch,
        encoders: Encoders,
        context: StepContext,
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """As `change`, knowing the memory of the right tokens.

        Args:
            memory: of the fuser and refiners.
            tokens: as `change`.
            batch: as `change`.
            encoders: as `change`.
            context: as `change`.
        """
        return self.change(tokens, batch, encoders, context)


class Aligner(Part):
    """Memory, Batch → what losses compare that align video and text; in training only.

    For parameters that several losses share. What it returns becomes `extras` of the
    predictions.
    """

    @abstractmethod
    def forward(self, memory: Memory, batch: Batch) -> dict[str, Tensor]:
        """Extras by name; none for a batch without targets."""


class View(Part):
    """Another batch made of this one, e.g. with the video shifted: in training the loss is the
    mean over the batch and its views."""

    @abstractmethod
    def change(self, batch: Batch) -> Batch:
        """The other batch, with its own targets."""


class LossTerm(Part):
    """One named loss. Losses that align video and text have parameters of their own, so it is a
    part like any other.

    Args:
        weight: factor in the sum; a term with weight 0 is left out of a criterion.
    """

    name: str
    #: False for a value that only shifts the sum, as public code logs some.
    differentiable: bool = True

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, outcome: Outcome) -> Tensor:
        """Unweighted loss: a scalar, or (ℓ,) with one value for every decoder layer."""


@dataclass(frozen=True)
class Parts:
    """The parts of one model in the order of the path. Plug-ins return a changed copy."""

    encoders: Encoders
    fuser: Fuser
    heads: tuple[Head, ...]
    decoder: Decoder | None = None
    merges: tuple[Merge, ...] = ()
    refiners: tuple[Refiner, ...] = ()
    passes: tuple[Pass, ...] = ()
    terms: tuple[LossTerm, ...] = ()
    views: tuple[View, ...] = ()
    aligners: tuple[Aligner, ...] = ()

    def in_order(self) -> Iterator[tuple[str, Part]]:
        """(stage, part) along the path."""
        stages: tuple[tuple[str, Sequence[Part]], ...] = (
            ("encoders", (self.encoders,)),
            ("merge", self.merges),
            ("fuser", (self.fuser,)),
            ("refiner", self.refiners),
            ("decoder", (self.decoder,) if self.decoder is not None else ()),
            ("head", self.heads),
            ("pass", self.passes),
            ("aligner", self.aligners),
            ("criterion", self.terms),
            ("view", self.views),
        )
        for stage, parts in stages:
            for part in parts:
                yield stage, part
