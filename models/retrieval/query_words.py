"""The contrast of queries and words that public code of Moment-DETR and EaTR can train with.

No paper uses it: it is off everywhere, and without a weight of its own when on. The third
projection of the public code, of clips, nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.flow import Outcome
from models.retrieval.lineage import LineageOptions
from models.retrieval.official import Name
from models.retrieval.parts.losses import contrastive_align
from models.retrieval.stages import LossTerm

__all__ = [
    "ALIGN_NAMES",
    "ALIGN_OPTIONS",
    "AlignOptions",
    "AlignTerm",
    "align_terms",
    "unread_align_weight",
    "unused_align",
]

Words = Literal["words", "released"]


class AlignOptions(LineageOptions):
    """Options of that contrast.

    Args:
        align: whether the model can contrast queries with words.
        align_weight: of that loss; 0 leaves it out.
        align_width: features in which they are compared.
        align_temperature: τ.
        align_words: `words` contrasts with the real words. `released` adds the padded ones, so
            that the loss of a sample depends on the longest query beside it.
    """

    align: bool = False
    align_weight: float = Field(0.0, ge=0)
    align_width: int = Field(64, gt=0)
    align_temperature: float = Field(0.07, gt=0)
    align_words: Words = "words"

    @model_validator(mode="after")
    def _weight_counts(self) -> Self:
        if self.align_weight and not self.align:
            raise ValueError(f"align_weight {self.align_weight} has no effect without align: true")
        return self


class AlignTerm(LossTerm):
    """Matched queries are nearer to the text than the others (`losses.contrastive_align`).

    Args:
        weight: factor in the sum.
        width: features of queries and words.
        inner: features in which they are compared.
        temperature: τ.
        words: as `AlignOptions.align_words`.
        every_layer: whether the queries of earlier decoder layers are contrasted too.
    """

    name = "align"
    requires = frozenset({"states", "words", "logits"})

    def __init__(
        self,
        weight: float,
        *,
        width: int,
        inner: int,
        temperature: float,
        words: Words,
        every_layer: bool,
    ) -> None:
        super().__init__(weight)
        self.query, self.word = nn.Linear(width, inner), nn.Linear(width, inner)
        self.temperature, self.words, self.every_layer = temperature, words, every_layer

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,), or (1,) of the last layer alone."""
        decoded, mask = outcome.trace.decoded, outcome.batch.text_mask
        assert decoded is not None
        layers = len(outcome.logits) if self.every_layer else 1
        queries = self.query(decoded.states[-layers:]).float()
        words = self.word(outcome.trace.memory.extras["words"]).float()
        return contrastive_align(
            functional.normalize(queries, dim=-1),
            functional.normalize(words, dim=-1),
            mask if self.words == "words" else mask.new_ones(mask.shape),
            outcome.is_matched()[-layers:],
            temperature=self.temperature,
        )


def align_terms(o: AlignOptions, *, every_layer: bool) -> tuple[LossTerm, ...]:
    """The term of the options, if there is one."""
    if not o.align:
        return ()
    term = AlignTerm(
        o.align_weight,
        width=o.hidden,
        inner=o.align_width,
        temperature=o.align_temperature,
        words=o.align_words,
        every_layer=every_layer,
    )
    return (term,)


ALIGN_NAMES: tuple[Name, ...] = (
    (r"criterion\.terms\.align\.query\.(.*)", r"contrastive_align_projection_query.\1"),
    (r"criterion\.terms\.align\.word\.(.*)", r"contrastive_align_projection_txt.\1"),
)
"""Our names and the public ones."""

ALIGN_OPTIONS: Mapping[str, str] = {
    "contrastive_align_loss": "align",
    "contrastive_align_loss_coef": "align_weight",
    "contrastive_hdim": "align_width",
    "temperature": "align_temperature",
}
"""Our option of a public one."""


def unread_align_weight(options: Mapping[str, Any]) -> dict[str, float]:
    """What to change of options read from a checkpoint: the public code has a weight also where
    it does not contrast."""
    return {} if options.get("align") else {"align_weight": 0.0}


def unused_align(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Projections that the public code stores and never reads under this recipe."""
    if not recipe["align"]:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("vid",) if recipe["align_weight"] else ("vid", "txt", "query"):
        projection = f"contrastive_align_projection_{name}"
        shapes[f"{projection}.weight"] = (recipe["align_width"], recipe["hidden"])
        shapes[f"{projection}.bias"] = (recipe["align_width"],)
    return shapes
