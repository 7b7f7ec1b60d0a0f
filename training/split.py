"""A split of a store with the features that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.annotations.types import Annotation
from data.dataset import MomentDataset, missing_sentences
from data.errors import UsageError, nearest
from data.store import Store
from training.batch import query_info
from training.config import DataGroup
from training.task import QueryInfo

__all__ = ["Split", "Tell"]

Tell = Callable[[str], None]
"""Says a sentence to the user."""


@dataclass(frozen=True)
class Split:
    """One split of a store.

    Args:
        name: of the split.
        samples: the queries that have their features.
        annotations: of the same queries, untouched: what predictions are scored against.
    """

    name: str
    samples: MomentDataset
    annotations: Sequence[Annotation]

    @classmethod
    def open(
        cls, store: Store, config: DataGroup, name: str, rows: Sequence[Annotation], tell: Tell
    ) -> Split:
        """Open a split and say what was cut or left out.

        Args:
            store: the store.
            config: which features.
            name: of the split.
            rows: its queries.
            tell: says a sentence to the user.

        Raises:
            UsageError: no such split.
            StoreError: rows are missing and `data.require` is "all".
        """
        stages = store.stages()
        for stream in config.streams:
            if stream not in stages:
                raise UsageError(
                    f"data.streams: '{stream}' is not in {store.path}; {nearest(stream, stages)}"
                )
        for side, asked in (("narratives", config.narratives), ("events", config.events)):
            if asked and side not in stages:
                raise UsageError(
                    f"data.{side}=true, but {store.path} holds no {side}; make them with "
                    f"`pipeline run --stage {side}`"
                )
        samples = MomentDataset(
            store,
            name,
            rows=rows,
            streams=config.streams,
            narratives=config.narratives,
            events=config.events,
            require=config.require,
            max_clips=config.max_clips,
            max_tokens=config.max_tokens,
        )
        for sentence in [*samples.report.sentences(), *missing_sentences(samples.missing)]:
            tell(f"split '{name}': {sentence}")
        kept = {each.qid for each in samples.annotations}
        return cls(name, samples, [each for each in rows if each.qid in kept])

    def infos(self) -> list[QueryInfo]:
        """What a prediction must carry, for every query; reads no features."""
        rows = self.samples.annotations
        return [query_info(each, self.samples.grid(each.video_id)) for each in rows]
