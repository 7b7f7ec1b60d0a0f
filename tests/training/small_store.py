"""A small real store whose moments can be found: clips of a moment carry the query's direction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.dataset import Sample, Together
from data.grid import Grid
from data.identity import query_id
from data.store import ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.store.place import Place, text_of
from training.batch import QueryTruth, pad

CLIPS, WIDTH, WORDS = 12, 16, 3
LLAMA = 6
"""Width of the further embedding of the queries, `llama`, which has twice as many words."""
CLIP_LEN_S = 2.0

Annotations = dict[str, list[Annotation]]


def annotation(split: str, video: int, rng: np.random.Generator) -> Annotation:
    """One query with one or two moments on whole clips, labelled as QVHighlights is."""
    starts = sorted(rng.choice(np.arange(0, CLIPS - 3, 3), size=1 + video % 2, replace=False))
    windows = [(start * CLIP_LEN_S, (start + 2) * CLIP_LEN_S) for start in starts]
    clips = [int(start) + i for start in starts for i in range(2)]
    return Annotation(
        qid=video if split == "train" else f"{split}{video}",
        query=f"{split} query {video}",
        video_id=f"{split}-{video}",
        duration_s=CLIPS * CLIP_LEN_S,
        windows=tuple((float(a), float(b)) for a, b in windows),
        clip_ids=tuple(clips),
        saliency=tuple((4.0, 3.0 + i % 2, 2.0) for i, _ in enumerate(clips)),
    )


def samples(rows: list[Annotation], clip_len_s: float = CLIP_LEN_S) -> list[Sample]:
    """Samples of annotations, as a store would give them; a narrative and events included."""
    return [_sample(row, clip_len_s) for row in rows]


def together(some: Sequence[Sample]) -> Together:
    """Samples as a batch wants them."""
    video, text = (
        pad([getattr(each, name) for each in some])[0].numpy() for name in ("video", "text")
    )
    return Together(some, video, text)


def _sample(row: Annotation, clip_len_s: float) -> Sample:
    rng = np.random.default_rng(list(row.query.encode()))
    direction = rng.standard_normal(WIDTH)
    video = 0.3 * rng.standard_normal((CLIPS, WIDTH))
    video[_answers(row, clip_len_s)] += direction
    edges = np.arange(CLIPS + 1) / CLIPS
    video = np.concatenate([video, edges[:-1, None], edges[1:, None]], axis=1)
    text = np.tile(direction, (WORDS, 1)) + 0.1 * rng.standard_normal((WORDS, WIDTH))
    llama = np.repeat(text[:, :LLAMA], 2, axis=0)
    return Sample(
        annotation=row,
        grid=Grid(CLIPS * clip_len_s, clip_len_s),
        video=video.astype(np.float32),
        text=text.astype(np.float32),
        texts={"llama": llama.astype(np.float32)},
        narrative=video[:, :WIDTH].astype(np.float32),
        narrative_mask=np.arange(CLIPS) % 4 > 0,
        events=np.asarray([[0.0, 0.5, 0.0], [0.5, 1.0, 0.0]], np.float32),
    )


def _answers(row: Annotation, clip_len_s: float) -> NDArray[np.bool_]:
    """(CLIPS,) clips that answer the query: those with at least half of the highest label."""
    truth = QueryTruth.of(row, CLIPS, clip_len_s)
    if truth is None:
        return np.zeros(CLIPS, bool)
    return np.asarray(truth.saliency >= max(truth.saliency.max() / 2, 1e-6))


def _recipe(stage: str, **arrays: StreamSpec) -> Recipe:
    return Recipe(stage, 1, {"weights": "test"}, {}, Schema(arrays))


def _row(id: str, grid: Grid | None, **arrays: Any) -> Row:
    return Row(ItemKey(id, hashlib.sha256(id.encode()).hexdigest()), grid, arrays)


def write_store(
    path: Place,
    splits: Annotations,
    dataset: str = "qvhighlights",
    clip_len_s: float = CLIP_LEN_S,
) -> Store:
    """A store with the streams `clip` and `slowfast`, narratives, events and queries, these in the
    further embedding `llama`, too.

    Every video has `CLIPS` clips; of several queries on a video the first one gives its features.
    """
    half = WIDTH // 2
    recipes = {
        "clip": _recipe("clip", clip=StreamSpec((half,), "float16", "clip")),
        "slowfast": _recipe("slowfast", slowfast=StreamSpec((half,), "float16", "clip")),
        "narratives": _recipe(
            "narratives",
            narrative=StreamSpec((WIDTH,), "float16", "clip"),
            coverage=StreamSpec((), "uint8", "clip"),
        ),
        "events": _recipe(
            "events",
            spans_s=StreamSpec((2,), "float64", "item"),
            depth=StreamSpec((), "int32", "item"),
            boundary_depth=StreamSpec((), "int32", "item"),
        ),
        "queries": _recipe(
            "queries",
            tokens=StreamSpec((WIDTH,), "float16", "item"),
            tokens_llama=StreamSpec((LLAMA,), "float16", "item"),
        ),
    }
    store = Store.create(path, dataset=dataset, clip_len_s=clip_len_s)
    writers = {stage: store.writer(recipe) for stage, recipe in recipes.items()}
    written: set[str] = set()
    for split, rows in splits.items():
        store.save_annotations(split, rows)
        for sample in samples(rows, clip_len_s):
            id, grid = sample.annotation.video_id, sample.grid
            assert sample.narrative is not None
            assert sample.events is not None
            video = sample.video.astype(np.float16)
            rows_of = {
                "clip": {"clip": video[:, :half]},
                "slowfast": {"slowfast": video[:, half:WIDTH]},
                "narratives": {
                    "narrative": sample.narrative.astype(np.float16),
                    "coverage": np.ones(CLIPS, np.uint8),
                },
                "events": {
                    "spans_s": sample.events[:, :2].astype(np.float64) * CLIPS * clip_len_s,
                    "depth": np.zeros(2, np.int32),
                    "boundary_depth": np.zeros(1, np.int32),
                },
            }
            query = query_id(sample.annotation.query)
            if id not in written:
                for stage, arrays in rows_of.items():
                    writers[stage].add(_row(id, grid, **arrays))
            if query not in written:
                words = sample.text.astype(np.float16)
                llama = sample.texts["llama"].astype(np.float16)
                writers["queries"].add(_row(query, None, tokens=words, tokens_llama=llama))
            written |= {id, query}
    for writer in writers.values():
        writer.flush()
    store.set_current({stage: recipe.id for stage, recipe in recipes.items()})
    return store


def small_values(store: Store) -> dict[str, Any]:
    """A configuration that trains in a second per epoch at most."""
    return {
        "data": {"store": text_of(store.path)},
        "model": {
            "name": "qd_detr",
            "options": {
                "hidden": 16,
                "heads": 2,
                "feedforward": 32,
                "queries": 4,
                "t2v_layers": 1,
                "encoder_layers": 1,
                "input_dropout": 0.1,
            },
        },
        "optim": {"lr": 1e-3, "schedule": {"name": "cosine"}},
        "loop": {"epochs": 2, "batch_size": 8, "device": "cpu", "seed": 3},
        "eval": {"batch_size": 4},
    }
