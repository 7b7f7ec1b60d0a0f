"""A split of a store with the features that a configuration asks for.

Scores are over the queries as the annotation file has them; what is trained on is mended first
(`data.annotations.mend`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.annotations import Ratings
from data.annotations.mend import mended
from data.annotations.types import Annotation
from data.dataset import MomentDataset, missing_sentences
from data.errors import UsageError, nearest
from data.store import Store
from training.batch import QueryTruth, query_info
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
        annotations: of the same queries, as given to `open`: what predictions are scored against.
        mending: how often moments were swapped, cut or dropped and queries left out to train on
            them (`MendReport.counts`); None where they are as in the file.
    """

    name: str
    samples: MomentDataset
    annotations: Sequence[Annotation]
    mending: Mapping[str, int] | None = None

    @classmethod
    def to_train(
        cls, store: Store, config: DataGroup, name: str, rows: Sequence[Annotation], tell: Tell
    ) -> Split:
        """Open a split to train on it: its moments are mended, and the user is told.

        Args, Raises: as `open`. UsageError, too, if no query has a moment that can be used.
        """
        usable, report = mended(rows)
        told = [f"split '{name}', mended for training: {each}" for each in report.sentences()]
        if not usable:
            raise UsageError(f"nothing can be trained on: {'; '.join(told)}; see `trainer lint`")
        for sentence in told:
            tell(sentence)
        opened = cls.open(store, config, name, usable, tell, targets=True)
        return replace(opened, mending=report.counts)

    @classmethod
    def open(
        cls,
        store: Store,
        config: DataGroup,
        name: str,
        rows: Sequence[Annotation],
        tell: Tell,
        *,
        targets: bool = False,
    ) -> Split:
        """Open a split and say what was cut or left out.

        Args:
            store: the store.
            config: which features.
            name: of the split.
            rows: its queries.
            tell: says a sentence to the user.
            targets: whether to tell what does not fit of moments and scored clips, too.

        Raises:
            UsageError: a stream, an embedding of the queries, narratives or events that the store
                does not have.
            StoreError: rows are missing and `data.require` is "all".
        """
        _check_features(store, config)
        samples = MomentDataset(
            store,
            name,
            rows=rows,
            streams=config.streams,
            other_texts=config.other_texts,
            narratives=config.narratives,
            events=config.events,
            event_depth=config.event_depth,
            require=config.require,
            max_clips=config.max_clips,
            max_tokens=config.max_tokens,
            normalised=config.normalise,
        )
        cut = samples.report.sentences(targets=targets)
        for sentence in [*cut, *missing_sentences(samples.missing)]:
            tell(f"split '{name}': {sentence}")
        kept = {each.qid for each in samples.annotations}
        return cls(name, samples, [each for each in rows if each.qid in kept])

    def truths(self, ratings: Ratings) -> Iterator[QueryTruth | None]:
        """Ground truth of every query on its grid; None where there is none.

        Args:
            ratings: how the scores of annotators become labels.
        """
        for row in self.samples.annotations:
            grid = self.samples.grid(row.video_id)
            yield QueryTruth.of(row, grid.n, grid.clip_len_s, ratings)

    def infos(self) -> list[QueryInfo]:
        """What a prediction must carry, for every query; reads no features."""
        rows = self.samples.annotations
        return [query_info(each, self.samples.grid(each.video_id)) for each in rows]


def _check_features(store: Store, config: DataGroup) -> None:
    """UsageError where the store lacks what the configuration asks for."""
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
