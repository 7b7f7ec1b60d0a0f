"""What a model is trained on: one sample per query, joined from the streams of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.buffers import Buffers
from data.coarser import coarser
from data.errors import StoreError, UsageError
from data.grid import Grid
from data.identity import query_id, tokens_in
from data.store import StageReader, Store

__all__ = ["MomentDataset", "Report", "Sample", "Together", "missing_sentences", "normalise"]

QUERIES, NARRATIVES, EVENTS = "queries", "narratives", "events"

_SHOWN = 10
"""How many of the missing ids an error names."""

_SLACK_S = 1e-6
"""A moment that ends less than this after the grid does is not counted as clipped."""


def normalise(rows: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """`x / (‖x‖₂ + 1e-5)` for each row: the only place where stored features are normalised.

    As the public loaders do it (specs/peers_formats_metrics.md §3.3). By torch, which converts
    float16 five times faster than numpy (1.7 against 10 ms for 32 × 75 × 2304, one core).

    Args:
        rows: (..., D), any float type.
        out: (..., D), where the result goes, e.g. columns of a wider array; None makes a new one.

    Returns:
        (..., D): `out`, if it was given.
    """
    out = np.empty(rows.shape, np.float32) if out is None else out
    x = torch.from_numpy(np.require(rows, requirements="W")).float()
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).add_(1e-5)
    torch.div(x, norms, out=torch.from_numpy(out))
    return out


def _as_stored(rows: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Rows as float32, where `normalise` would put them."""
    if out is None:
        return rows.astype(np.float32)
    out[...] = rows
    return out


@dataclass(frozen=True)
class Sample:
    """One query on one video. L clips, T tokens, E pseudo-events.

    Args:
        annotation: the query; its moments and clip ids end where the grid does.
        grid: the clips, after a cut to `max_clips`.
        video: (L, ΣD + 2), streams in the order asked for, then `[i/L, (i+1)/L]`. They, texts and
            narrative are normalised, or as stored, as the data set was asked.
        text: (T, Dt) token states.
        texts: (T', Dt') of further encoders, by the names asked for; T' is of each its own.
        narrative: (L, Ds); None if not asked for.
        narrative_mask: (L,), False where the narrative has nothing to say.
        events: (E, 3) as (start, end, depth), start and end in [0, 1] of the grid; None if not
            asked for.
    """

    annotation: Annotation
    grid: Grid
    video: NDArray[np.float32]
    text: NDArray[np.float32]
    texts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    narrative: NDArray[np.float32] | None = None
    narrative_mask: NDArray[np.bool_] | None = None
    events: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Together:
    """Samples of one batch, their videos and texts in two arrays, zeros after the end of each.

    Args:
        samples: in the order asked for; `video` and `text` are views of the arrays.
        video: (B, L, ΣD + 2), L that of the longest.
        text: (B, T, Dt), T that of the longest.
    """

    samples: Sequence[Sample]
    video: NDArray[np.float32]
    text: NDArray[np.float32]


@dataclass(frozen=True)
class Report:
    """What was done to the split before anything was read.

    Args:
        queries: queries of the split.
        dropped_queries: of these, without a stream (`require="any"`).
        cut_videos: videos with more clips than `max_clips`.
        cut_queries: queries with more tokens than `max_tokens`, of whichever encoder.
        clipped_windows: moments that ended after the grid.
        dropped_windows: moments that began after the grid.
        dropped_clip_ids: scored clips outside the grid.
    """

    queries: int = 0
    dropped_queries: int = 0
    cut_videos: int = 0
    cut_queries: int = 0
    clipped_windows: int = 0
    dropped_windows: int = 0
    dropped_clip_ids: int = 0

    def sentences(self, *, targets: bool = True) -> list[str]:
        """One sentence for each thing that happened; [] if nothing did.

        Args:
            targets: whether to tell of moments and scored clips, which only training looks at.
        """
        told = {
            "queries left out, because a stream lacks their video or text": self.dropped_queries,
            "videos cut to the allowed number of clips": self.cut_videos,
            "queries cut to the allowed number of tokens": self.cut_queries,
        }
        of_targets = {
            "moments clipped to the end of their video's grid": self.clipped_windows,
            "moments left out, because they begin after the grid ends": self.dropped_windows,
            "scored clips left out, because they are not on the grid": self.dropped_clip_ids,
        }
        told |= of_targets if targets else {}
        return [f"{count} {what}" for what, count in told.items() if count]


class MomentDataset:
    """The queries of a split with the features of their videos, in the order of the annotations.

    Rows are read from the store when asked for; it may be used in forked processes and pickled.
    Grids, contents and lengths of all streams are compared when it is made, before any is read.

    Attributes:
        annotations: the queries that have everything asked for, moments clipped to the grid. For
            scoring take those of `store.annotations`, which nothing was done to.
        missing: ids without a row, by stage; empty unless `require="any"`.
        report: what was cut, clipped and left out.

    Args:
        store: the store.
        split: a split with annotations in the store.
        rows: which queries of the split are wanted; None takes all. Moments as files have them
            may be reversed or empty: `data.annotations.mend` makes those of training usable.
        streams: stages whose per-clip array (of the same name) is part of `video`, in order.
        other_texts: further encoders of the queries whose token states samples carry, by the names
            that the stage `queries` gave them.
        narratives: whether samples carry the narrative.
        events: whether samples carry pseudo-events.
        event_depth: only the cuts of so many levels of their tree: 0 is the whole video as one
            event, 1 the first cut; None takes all. Events between cuts that are left out are
            joined, so that they partition the video still.
        require: "all": a missing row is an error; "any": its queries are left out.
        max_clips: longer videos are cut; None takes all.
        max_tokens: longer queries are cut; None takes all.
        normalised: whether features are divided by their length (`normalise`), or as stored.

    Raises:
        UsageError: no such split, no stream named, a stream or an encoder named twice, or no such
            encoder of the queries.
        StoreError: a stage was not run, rows are missing, or streams of a video do not fit.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        rows: Sequence[Annotation] | None = None,
        streams: Sequence[str] = ("slowfast", "clip"),
        other_texts: Sequence[str] = (),
        narratives: bool = False,
        events: bool = False,
        event_depth: int | None = None,
        require: Literal["all", "any"] = "all",
        max_clips: int | None = None,
        max_tokens: int | None = 32,
        normalised: bool = True,
    ) -> None:
        if not streams or len(set(streams)) < len(streams):
            raise UsageError(f"streams must name one or more different stages, got {streams}")
        if len(set(other_texts)) < len(other_texts):
            raise UsageError(f"other_texts must name different encoders, got {other_texts}")
        self.streams = tuple(streams)
        self._max_clips, self._max_tokens = max_clips, max_tokens
        self._event_depth = event_depth
        self._prepared = normalise if normalised else _as_stored
        sides = [NARRATIVES] * narratives + [EVENTS] * events
        self._video_readers = {name: store.reader(name) for name in [*streams, *sides]}
        self._queries = store.reader(QUERIES)
        for name in self.streams:
            _check_stream(self._video_readers[name])
        self._others = {name: _tokens_of(self._queries, name) for name in other_texts}
        self._widths = [_width(self._video_readers[name], name) for name in self.streams]
        self._buffers = Buffers()
        rows = store.annotations(split) if rows is None else rows
        self.missing = self._find_missing(rows)
        if self.missing and require == "all":
            raise StoreError(_missing_message(store, split, self.missing))
        lacking = {id for ids in self.missing.values() for id in ids}
        kept = [row for row in rows if not {row.video_id, query_id(row.query)} & lacking]
        if not kept:
            raise StoreError(_missing_message(store, split, self.missing))
        self._grids = {id: self._common_grid(id) for id in {row.video_id for row in kept}}
        self.annotations, self.report = self._on_grid(kept, len(rows))

    @property
    def video_dim(self) -> int:
        """Columns of `Sample.video`."""
        return sum(self._widths) + 2

    @property
    def text_dim(self) -> int:
        """Columns of `Sample.text`."""
        return _width(self._queries, "tokens")

    @property
    def word_encoder(self) -> str | None:
        """The text encoder of the queries; None where their recipe does not say."""
        said = self._queries.recipe.params.get("encoder")
        return said.get("name") if isinstance(said, Mapping) else None

    @property
    def narrative_dim(self) -> int | None:
        """Columns of `Sample.narrative`; None if not asked for."""
        reader = self._video_readers.get(NARRATIVES)
        return _width(reader, "narrative") if reader else None

    @property
    def recipes(self) -> dict[str, str]:
        """Recipe id of every stage that samples are made of."""
        readers = {**self._video_readers, QUERIES: self._queries}
        return {stage: reader.recipe_id for stage, reader in readers.items()}

    def grid(self, video_id: str) -> Grid:
        """The clips of a video of this split, after a cut to `max_clips`; reads nothing."""
        return self._grids[video_id]

    def __len__(self) -> int:
        return len(self.annotations)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        row = self.annotations[index]
        video = np.empty((self._grids[row.video_id].n, self.video_dim), np.float32)
        self._fill(row.video_id, video)
        return self._sample(row, video, self._prepared(self._tokens(row)))

    def together(self, rows: Sequence[int]) -> Together:
        """Samples of a batch, read straight into the place where the batch wants them.

        Args:
            rows: which samples, at least one.
        """
        some = [self.annotations[row] for row in rows]
        clips = [self._grids[row.video_id].n for row in some]
        video = self._buffers.array(len(some), max(clips), self.video_dim)
        for row, length, place in zip(some, clips, video, strict=True):
            place[length:] = 0.0
            self._fill(row.video_id, place[:length])
        tokens = [self._tokens(row) for row in some]
        text = np.zeros((len(some), max(map(len, tokens)), self.text_dim), tokens[0].dtype)
        for place, each in zip(text, tokens, strict=True):
            place[: len(each)] = each
        text = self._prepared(text)
        samples = [
            self._sample(row, video[i, : clips[i]], text[i, : len(tokens[i])])
            for i, row in enumerate(some)
        ]
        return Together(samples, video, text)

    def _sample(
        self, row: Annotation, video: NDArray[np.float32], text: NDArray[np.float32]
    ) -> Sample:
        grid = self._grids[row.video_id]
        narrative, narrative_mask = self._narrative(row.video_id, grid)
        return Sample(
            annotation=row,
            grid=grid,
            video=video,
            text=text,
            texts={name: self._prepared(self._tokens(row, a)) for name, a in self._others.items()},
            narrative=narrative,
            narrative_mask=narrative_mask,
            events=self._events(row.video_id, grid),
        )

    def _tokens(self, row: Annotation, array: str = "tokens") -> NDArray[Any]:
        return self._queries.array(query_id(row.query), array)[: self._max_tokens]

    def _longest(self, row: Annotation) -> int:
        """Tokens of a query under the encoder that gives it most."""
        arrays = ("tokens", *self._others.values())
        return max(self._queries.length(query_id(row.query), each) for each in arrays)

    def _fill(self, video_id: str, video: NDArray[np.float32]) -> None:
        """Streams and clip edges of a video, as many clips as `video` has rows."""
        start, clips = 0, len(video)
        for name, width in zip(self.streams, self._widths, strict=True):
            rows = self._video_readers[name].array(video_id, name)[:clips]
            self._prepared(rows.reshape(clips, width), video[:, start : start + width])
            start += width
        video[:, start:] = _edges(clips)

    def _narrative(
        self, video_id: str, grid: Grid
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        reader = self._video_readers.get(NARRATIVES)
        if reader is None:
            return None, None
        row = reader.row(video_id)
        narrative = row["narrative"][: grid.n]
        # A clip without a caption of its own still has something to say if it was filled.
        return self._prepared(narrative), (row["coverage"][: grid.n] > 0) | narrative.any(axis=1)

    def _events(self, video_id: str, grid: Grid) -> NDArray[np.float32] | None:
        reader = self._video_readers.get(EVENTS)
        if reader is None:
            return None
        row = reader.row(video_id)
        length_s = grid.n * grid.clip_len_s
        spans, depth = row["spans_s"], row["depth"]
        if self._event_depth is not None:
            spans, depth = coarser(spans, row["boundary_depth"], self._event_depth)
        inside = spans[:, 0] < length_s
        spans = np.clip(spans[inside] / length_s, 0.0, 1.0)
        return np.concatenate([spans, depth[inside, None]], axis=1).astype(np.float32)

    def _find_missing(self, rows: Sequence[Annotation]) -> dict[str, list[str]]:
        videos = list(dict.fromkeys(row.video_id for row in rows))
        texts = list(dict.fromkeys(query_id(row.query) for row in rows))
        wanted = {stage: (reader, videos) for stage, reader in self._video_readers.items()}
        wanted[QUERIES] = (self._queries, texts)
        missing = {
            stage: [id for id in ids if id not in reader] for stage, (reader, ids) in wanted.items()
        }
        return {stage: ids for stage, ids in missing.items() if ids}

    def _common_grid(self, video_id: str) -> Grid:
        """The grid that all streams of a video have, cut to `max_clips`."""
        first_stage, first = next(iter(self._video_readers.items()))
        grid = first.grid(video_id)
        for stage, reader in self._video_readers.items():
            other = reader.grid(video_id)
            same = reader.key(video_id).content == first.key(video_id).content
            if grid is None or other is None or _clips(grid) != _clips(other) or not same:
                raise StoreError(
                    f"streams of video '{video_id}' do not fit: {_tell(first, video_id)}, "
                    f"{_tell(reader, video_id)}; run `pipeline run --stage {first_stage} "
                    f"--stage {stage}` so that both have the present content"
                )
        assert grid is not None
        if self._max_clips is None or grid.n <= self._max_clips:
            return grid
        return Grid(self._max_clips * grid.clip_len_s, grid.clip_len_s)

    def _on_grid(self, rows: Sequence[Annotation], asked: int) -> tuple[list[Annotation], Report]:
        fitted = [_fit(row, self._grids[row.video_id]) for row in rows]
        long = self._max_tokens
        lengths = [self._longest(row) for row in rows]
        first = self._video_readers[self.streams[0]]
        report = Report(
            queries=asked,
            dropped_queries=asked - len(rows),
            cut_videos=sum(grid != first.grid(id) for id, grid in self._grids.items()),
            cut_queries=sum(long is not None and length > long for length in lengths),
            clipped_windows=sum(each.clipped_windows for each in fitted),
            dropped_windows=sum(each.dropped_windows for each in fitted),
            dropped_clip_ids=sum(each.dropped_clip_ids for each in fitted),
        )
        return [each.annotation for each in fitted], report


@lru_cache(maxsize=256)
def _edges(clips: int) -> NDArray[np.float32]:
    """(L, 2): start and end of each clip as shares of the video."""
    edges = np.arange(clips + 1, dtype=np.float32) / np.float32(clips)
    return np.stack([edges[:-1], edges[1:]], axis=1)


@dataclass(frozen=True)
class _Fitted:
    annotation: Annotation
    clipped_windows: int
    dropped_windows: int
    dropped_clip_ids: int


def _fit(row: Annotation, grid: Grid) -> _Fitted:
    """The annotation without what lies outside the grid.

    Scored clips that are not the grid's all stay: what of them the grid shares counts.
    """
    end_s = grid.n * grid.clip_len_s
    windows = row.windows or ()
    inside = [window for window in windows if window[0] < end_s - _SLACK_S]
    scored = list(zip(row.clip_ids or (), row.saliency or (), strict=True))
    clipped = sum(end > end_s + _SLACK_S for _, end in inside)
    fitted = replace(
        row,
        windows=None if row.windows is None else tuple((a, min(b, end_s)) for a, b in inside),
    )
    if row.clip_spans_s is not None:
        outside = sum(start >= end_s for start, _ in row.clip_spans_s)
        return _Fitted(fitted, clipped, len(windows) - len(inside), outside)
    kept = [(id, scores) for id, scores in scored if id < grid.n]
    fitted = replace(
        fitted,
        clip_ids=None if row.clip_ids is None else tuple(id for id, _ in kept),
        saliency=None if row.saliency is None else tuple(scores for _, scores in kept),
    )
    return _Fitted(fitted, clipped, len(windows) - len(inside), len(scored) - len(kept))


def _check_stream(reader: StageReader) -> None:
    arrays = reader.recipe.schema.arrays
    if reader.stage not in arrays or arrays[reader.stage].per != "clip":
        raise UsageError(
            f"stage '{reader.stage}' cannot be a stream: it writes no array of its name per clip, "
            f"only {', '.join(sorted(arrays)) or 'none'}"
        )


def _tokens_of(queries: StageReader, encoder: str) -> str:
    """The array with the token states of a further encoder of the queries."""
    array = tokens_in(encoder)
    arrays, prefix = queries.recipe.schema.arrays, tokens_in("")
    if array not in arrays:
        known = [each.removeprefix(prefix) for each in arrays if each.startswith(prefix)]
        raise UsageError(
            f"the queries of this store were not encoded as '{encoder}', too; there are: "
            f"{', '.join(sorted(known)) or 'none but the main encoder'}; name it in pipeline.yaml, "
            f"stages.queries.others: {{{encoder}: {{encoder: NAME}}}}, and run `pipeline run "
            "--stage queries`"
        )
    return array


def _width(reader: StageReader, array: str) -> int:
    return int(np.prod(reader.recipe.schema.arrays[array].shape))


def _clips(grid: Grid) -> tuple[int, float]:
    return grid.n, grid.clip_len_s


def _tell(reader: StageReader, video_id: str) -> str:
    grid = reader.grid(video_id)
    clips = f"{grid.n} clips of {grid.clip_len_s:g} s" if grid else "no grid"
    content = reader.key(video_id).content[:8]
    return f"{reader.stage}/{reader.recipe_id} has {clips}, content {content}…"


def missing_sentences(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """How many ids each stage lacks, and the first of them."""
    told = []
    for stage, ids in missing.items():
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        told.append(f"stage '{stage}' lacks {len(ids)}: {', '.join(ids[:_SHOWN])}{more}")
    return told


def _missing_message(store: Store, split: str, missing: dict[str, list[str]]) -> str:
    told = missing_sentences(missing)
    command = " ".join(f"--stage {stage}" for stage in missing)
    return (
        f"store {store.path} lacks rows that split '{split}' needs; {'; '.join(told)}; "
        f"run `pipeline run {command}`, or leave their queries out with --require any, which also "
        "lists all of them in left_out.json of the run"
    )
