"""`queries`: token states and a pooled vector per sentence, encoded once whatever its qid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from data.identity import tokens_in
from data.store.types import Row, Schema, StreamSpec
from pipeline.stage import STAGES, Inputs, Item, RowStage
from pipeline.stages.common import Configured, WorkerOptions, built
from pipeline.stages.text import TextOptions, build_encoder, shares, text_dims

if TYPE_CHECKING:
    from models.text import TextEncoder, TextStates

__all__ = ["FurtherEncoder", "QueriesOptions", "QueriesStage"]


class FurtherEncoder(TextOptions):
    """An encoder beside the main one, in the same workers."""

    @model_validator(mode="after")
    def _has_no_workers(self) -> Self:
        given = sorted(self.model_fields_set & WorkerOptions.model_fields.keys())
        if given:
            raise ValueError(
                f"{', '.join(given)}: all encoders of the queries run in the same workers; say it "
                "of the stage: stages.queries"
            )
        return self


class QueriesOptions(TextOptions):
    """Section `queries` of pipeline.yaml."""

    others: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], FurtherEncoder] = Field(
        default_factory=dict,
        description="Further encoders of the same sentences, by a name of yours, e.g. `llama`: "
        "`data.other_texts` of the trainer takes it.",
    )
    group_size: int = Field(256, ge=1, description="Sentences that travel to a worker together.")


@STAGES.register("queries")
class QueriesStage(Configured, RowStage):
    """Token states (T, D) and pooled vector (1, P), un-normalised float16; of each further encoder
    its token states, whose number is their own.

    Facts of a row: one of the `sentences`, whether it is `truncated`, its `tokens`, markers
    included, and `unknown_words`; the same of the further encoders together, as `other_…`.
    """

    name = "queries"
    version = 2  # facts of words
    over = "queries"
    summed = ("sentences", "truncated", "tokens", "unknown_words")
    remarked = (*summed, *(f"other_{name}" for name in summed))
    Options: ClassVar[type[Any]] = QueriesOptions
    options: QueriesOptions
    _encoder: TextEncoder | None = None
    _others: Mapping[str, TextEncoder]

    @property
    def schema(self) -> Schema:
        """`tokens` (T, D) and `pooled` (1, P); `tokens_<name>` (T', D') of further encoders."""
        dim, pooled_dim = text_dims(self.options)
        widths = {"tokens": dim, "pooled": pooled_dim}
        for name, options in self.options.others.items():
            widths[tokens_in(name)] = text_dims(options)[0]
        specs = {key: StreamSpec((width,), "float16", "item") for key, width in widths.items()}
        return Schema(specs)

    def params(self) -> Mapping[str, Any]:
        """The encoders; without further ones what a recipe said before there could be any."""
        others = {name: options.params for name, options in self.options.others.items()}
        return {"encoder": self.options.params} | ({"others": others} if others else {})

    @classmethod
    def remarks(cls, sums: Mapping[str, int]) -> list[str]:
        """What the encoder lost of the sentences."""
        return shares(
            (sums["truncated"], sums["sentences"], "queries truncated"),
            (sums["unknown_words"], sums["tokens"] + sums["unknown_words"], "words unknown"),
            (
                sums["other_truncated"],
                sums["other_sentences"],
                "queries truncated by further encoders",
            ),
            (
                sums["other_unknown_words"],
                sums["other_tokens"] + sums["other_unknown_words"],
                "words unknown to further encoders",
            ),
        )

    @property
    def group_size(self) -> int:
        """Sentences are short: many travel together."""
        return self.options.group_size

    def setup(self) -> None:
        """Build the text encoders."""
        self._encoder = build_encoder(self.options, self.context.device)
        self._others = {
            name: build_encoder(options, self.context.device)
            for name, options in self.options.others.items()
        }

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Encode one sentence.

        Raises:
            InputError: `no-text`, a sentence without words; `words-not-looked-up`, one with words
                that the table of an encoder was not made for.
        """
        del inputs
        if item.text is None:
            raise ValueError(f"item {item.key.id} has no sentence")
        (states,) = built(self._encoder, self.name).encode([item.text])
        arrays = {
            "tokens": states.tokens.astype(np.float16),
            "pooled": states.pooled.reshape(1, -1).astype(np.float16),
        }
        others = {name: each.encode([item.text])[0] for name, each in self._others.items()}
        for name, found in others.items():
            arrays[tokens_in(name)] = found.tokens.astype(np.float16)
        facts = _facts([states])
        if others:
            facts |= {f"other_{name}": n for name, n in _facts(list(others.values())).items()}
        return Row(item.key, None, arrays, facts=facts)


def _facts(found: Sequence[TextStates]) -> dict[str, int]:
    """What encoders made of a sentence, summed over them."""
    return {
        "sentences": len(found),
        "truncated": sum(states.truncated for states in found),
        "tokens": sum(len(states.tokens) for states in found),
        "unknown_words": sum(len(states.unknown) for states in found),
    }
