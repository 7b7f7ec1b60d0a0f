from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.annotations import Annotation
from data.dataset import MomentDataset, normalise
from data.errors import StoreError, UsageError
from data.grid import Grid
from data.identity import query_id
from data.store import CatalogueEntry, ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.video.types import VideoFacts

Arrays = Mapping[str, NDArray[Any]]

SCHEMAS = {
    "slowfast": {"slowfast": StreamSpec((6,), "float16", "clip")},
    "clip": {"clip": StreamSpec((4,), "float16", "clip")},
    "narratives": {
        "narrative": StreamSpec((3,), "float16", "clip"),
        "coverage": StreamSpec((), "uint8", "clip"),
    },
    "events": {
        "spans_s": StreamSpec((2,), "float64", "item"),
        "depth": StreamSpec((), "int32", "item"),
        "boundary_depth": StreamSpec((), "int32", "item"),
    },
    "queries": {
        "tokens": StreamSpec((5,), "float16", "item"),
        "pooled": StreamSpec((5,), "float16", "item"),
        "tokens_llama": StreamSpec((3,), "float16", "item"),
        "tokens_words": StreamSpec((2,), "float16", "item"),
    },
}
CONTENT = "a" * 64


def put(store: Store, stage: str, id: str, grid: Grid | None, arrays: Arrays, content: str) -> None:
    recipe = Recipe(stage, 1, {}, {}, Schema(SCHEMAS[stage]))
    with store.writer(recipe) as writer:
        writer.add(Row(ItemKey(id, content), grid, arrays))
    store.set_current({stage: recipe.id})


def put_stream(store: Store, stage: str, id: str, clips: int, content: str = CONTENT) -> None:
    rng = np.random.default_rng(list(f"{stage}|{id}".encode()))
    rows = rng.standard_normal((clips, *SCHEMAS[stage][stage].shape)).astype(np.float16)
    put(store, stage, id, Grid(2.0 * clips, 2.0), {stage: rows}, content)


def put_query(store: Store, text: str, tokens: int) -> None:
    rng = np.random.default_rng(len(text))
    arrays = {
        "tokens": rng.standard_normal((tokens, 5)).astype(np.float16),
        "pooled": rng.standard_normal((1, 5)).astype(np.float16),
        "tokens_llama": rng.standard_normal((2 * tokens, 3)).astype(np.float16),
        "tokens_words": rng.standard_normal((1, 2)).astype(np.float16),
    }
    put(store, "queries", query_id(text), None, arrays, hashlib.sha256(text.encode()).hexdigest())


def put_narrative(store: Store, id: str, rows: Sequence[Sequence[float]], own: list[int]) -> None:
    arrays = {"narrative": np.array(rows, np.float16), "coverage": np.array(own, np.uint8)}
    put(store, "narratives", id, Grid(2.0 * len(rows), 2.0), arrays, CONTENT)


@pytest.fixture
def filled(store: Store) -> Store:
    """Two videos of 5 and 8 clips, three queries."""
    for id, clips in (("v1", 5), ("v2", 8)):
        put_stream(store, "slowfast", id, clips)
        put_stream(store, "clip", id, clips)
    put_query(store, "a red ball", 4)
    put_query(store, "a blue box", 7)
    rows = [
        Annotation(1, "a red ball", "v1", 10.0, ((0.0, 4.0),), (0, 1), ((1.0,), (2.0,))),
        Annotation(2, "a blue box", "v1", 10.0, ((6.0, 10.0),), (3, 4), ((1.0,), (2.0,))),
        Annotation(3, "a red ball", "v2", 16.0, ((2.0, 16.0),), (1, 7), ((3.0,), (4.0,))),
    ]
    store.save_annotations("val", rows)
    return store


def test_streams_are_normalised_one_by_one_and_followed_by_the_clip_edges(filled: Store) -> None:
    dataset = MomentDataset(filled, "val")
    sample = dataset[0]
    slowfast = filled.reader("slowfast").array("v1", "slowfast").astype(np.float32)
    clip = filled.reader("clip").array("v1", "clip").astype(np.float32)
    expected = [
        slowfast / (np.linalg.norm(slowfast, axis=1, keepdims=True) + 1e-5),
        clip / (np.linalg.norm(clip, axis=1, keepdims=True) + 1e-5),
        np.array([[0, 0.2], [0.2, 0.4], [0.4, 0.6], [0.6, 0.8], [0.8, 1]]),
    ]
    assert sample.video.dtype == sample.text.dtype == np.float32
    assert sample.video.shape == (5, dataset.video_dim) == (5, 12)
    np.testing.assert_allclose(sample.video, np.concatenate(expected, axis=1), atol=1e-6)
    assert sample.grid == Grid(10.0, 2.0)
    assert sample.narrative is sample.narrative_mask is sample.events is None
    assert dataset.report.sentences() == []


def test_text_is_found_by_the_sentence_and_normalised(filled: Store) -> None:
    dataset = MomentDataset(filled, "val")
    assert [sample.text.shape for sample in dataset] == [(4, 5), (7, 5), (4, 5)]
    np.testing.assert_array_equal(dataset[0].text, dataset[2].text)
    tokens = filled.reader("queries").array(query_id("a blue box"), "tokens")
    np.testing.assert_array_equal(dataset[1].text, normalise(tokens))
    np.testing.assert_allclose(np.linalg.norm(dataset[1].text, axis=1), 1.0, atol=1e-4)
    assert dataset.text_dim == 5


def test_features_can_be_had_as_they_are_stored(filled: Store) -> None:
    chosen: dict[str, Any] = {"streams": ("slowfast", "clip"), "other_texts": ["llama"]}
    dataset = MomentDataset(filled, "val", **chosen, normalised=False)
    clips = [filled.reader(name).array("v1", name) for name in ("slowfast", "clip")]
    query = query_id(dataset[0].annotation.query)
    words = [filled.reader("queries").array(query, name) for name in ("tokens", "tokens_llama")]
    for sample in (dataset[0], dataset.together([0]).samples[0]):
        np.testing.assert_array_equal(sample.video[:, :-2], np.concatenate(clips, axis=1))
        np.testing.assert_array_equal(sample.text, words[0])
        np.testing.assert_array_equal(sample.texts["llama"], words[1])
        assert {sample.video.dtype, sample.text.dtype} == {np.dtype(np.float32)}
    edges = MomentDataset(filled, "val", **chosen)[0].video[:, -2:]
    np.testing.assert_array_equal(dataset[0].video[:, -2:], edges)


def test_further_encoders_give_their_own_tokens_normalised_and_only_if_asked(
    filled: Store,
) -> None:
    dataset = MomentDataset(filled, "val", other_texts=["llama", "words"])
    shapes = [{name: x.shape for name, x in sample.texts.items()} for sample in dataset]
    assert shapes[0] == {"llama": (8, 3), "words": (1, 2)}
    assert shapes[1] == {"llama": (14, 3), "words": (1, 2)}
    stored = filled.reader("queries").array(query_id("a blue box"), "tokens_llama")
    np.testing.assert_array_equal(dataset[1].texts["llama"], normalise(stored))
    for one, other in zip(dataset, dataset.together([0, 1, 2]).samples, strict=True):
        assert one.texts.keys() == other.texts.keys() == {"llama", "words"}
        for name, tokens in one.texts.items():
            np.testing.assert_array_equal(tokens, other.texts[name])
    assert MomentDataset(filled, "val")[0].texts == {}


def test_queries_are_cut_under_each_encoder_and_counted_once(filled: Store) -> None:
    dataset = MomentDataset(filled, "val", other_texts=["llama"], max_tokens=7)
    assert [sample.texts["llama"].shape[0] for sample in dataset] == [7, 7, 7]
    assert [len(sample.text) for sample in dataset] == [4, 7, 4]
    assert dataset.report.cut_queries == 3
    assert MomentDataset(filled, "val", max_tokens=7).report.cut_queries == 0


def test_a_query_without_rows_is_left_out_with_all_its_encoders(filled: Store) -> None:
    rows = [Annotation(1, "a red ball", "v1"), Annotation(2, "never encoded", "v1")]
    filled.save_annotations("train", rows)
    with pytest.raises(StoreError, match="stage 'queries' lacks 1"):
        MomentDataset(filled, "train", other_texts=["llama"])
    (sample,) = MomentDataset(filled, "train", other_texts=["llama"], require="any")
    assert sample.texts["llama"].shape == (8, 3)


def test_an_encoder_that_the_queries_do_not_have_is_answered_with_the_remedy(
    filled: Store,
) -> None:
    with pytest.raises(UsageError, match=r"as 'lama', too; there are: llama, words; name it in"):
        MomentDataset(filled, "val", other_texts=["lama"])


def test_normalising_gives_zero_for_zero_and_does_not_overflow_in_half_precision() -> None:
    rows = np.array([[0, 0], [60000, 60000], [3, 4]], np.float16)
    expected = np.array([[0, 0], [0.5**0.5, 0.5**0.5], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(normalise(rows), expected, atol=2e-6)
    assert rows[2, 0] == 3


def test_the_order_of_the_streams_is_the_one_asked_for(filled: Store) -> None:
    there = MomentDataset(filled, "val", streams=("slowfast", "clip"))[0].video
    back = MomentDataset(filled, "val", streams=("clip", "slowfast"))[0].video
    np.testing.assert_array_equal(there[:, :6], back[:, 4:10])
    assert MomentDataset(filled, "val", streams=("clip",)).video_dim == 6


def test_samples_come_in_the_order_of_the_annotations_and_survive_pickling(filled: Store) -> None:
    dataset: MomentDataset = pickle.loads(pickle.dumps(MomentDataset(filled, "val")))
    assert [sample.annotation.qid for sample in dataset] == [1, 2, 3]
    assert len(dataset) == 3
    assert dataset[-1].video.shape == (8, 12)
    with pytest.raises(IndexError):
        dataset[3]
    assert set(dataset.recipes) == {"slowfast", "clip", "queries"}


def test_a_narrative_speaks_where_a_clip_has_a_caption_or_was_filled(filled: Store) -> None:
    put_narrative(
        filled, "v1", [[3, 0, 4], [0, 0, 0], [0, 0, 0], [0, 5, 0], [1, 0, 0]], [1, 1, 0, 0, 1]
    )
    put_narrative(filled, "v2", np.ones((8, 3)).tolist(), [1] * 8)
    dataset = MomentDataset(filled, "val", narratives=True)
    sample = dataset[0]
    assert sample.narrative is not None
    assert sample.narrative_mask is not None
    assert dataset.narrative_dim == 3
    np.testing.assert_array_equal(sample.narrative_mask, [True, True, False, True, True])
    np.testing.assert_allclose(sample.narrative[0], [0.6, 0, 0.8], atol=1e-5)
    np.testing.assert_array_equal(sample.narrative[1:3], 0.0)


def put_events(store: Store, id: str, clips: int, spans: Sequence[Sequence[float]]) -> None:
    depth = np.arange(len(spans), dtype=np.int32)
    arrays = {
        "spans_s": np.array(spans, np.float64).reshape(-1, 2),
        "depth": depth,
        "boundary_depth": depth[1:],
    }
    put(store, "events", id, Grid(2.0 * clips, 2.0), arrays, CONTENT)


def test_events_are_shares_of_the_grid_with_their_depth(filled: Store) -> None:
    put_events(filled, "v1", 5, [[0.0, 5.0], [5.0, 10.4], [10.0, 10.4]])
    put_events(filled, "v2", 8, [])
    dataset = MomentDataset(filled, "val", events=True)
    np.testing.assert_allclose(dataset[0].events, [[0, 0.5, 0], [0.5, 1, 1]])  # type: ignore[arg-type]
    assert dataset[2].events is not None
    assert dataset[2].events.shape == (0, 3)
    assert dataset[0].events is not None
    assert dataset[0].events.dtype == np.float32


def test_events_of_fewer_levels_are_joined_and_cover_the_video_still(filled: Store) -> None:
    levels = {"v1": [1, 0], "v2": [0]}
    spans = {"v1": [[0.0, 2.0], [2.0, 6.0], [6.0, 10.0]], "v2": [[0.0, 4.0], [4.0, 16.0]]}
    splits = {"v1": [2, 2, 1], "v2": [1, 1]}
    for id, clips in (("v1", 5), ("v2", 8)):
        arrays = {
            "spans_s": np.array(spans[id]),
            "depth": np.array(splits[id], np.int32),
            "boundary_depth": np.array(levels[id], np.int32),
        }
        put(filled, "events", id, Grid(2.0 * clips, 2.0), arrays, CONTENT)

    def events(depth: int | None, **cut: int) -> list[list[float]]:
        found = MomentDataset(filled, "val", events=True, event_depth=depth, **cut)[0].events
        assert found is not None
        return found.astype(np.float64).round(6).tolist()

    assert events(0) == [[0, 1, 0]]
    assert events(1) == [[0, 0.6, 1], [0.6, 1, 1]]
    assert events(2) == events(None) == [[0, 0.2, 2], [0.2, 0.6, 2], [0.6, 1, 1]]
    assert events(1, max_clips=3) == [[0, 1, 1]]


def test_a_cut_to_the_longest_allowed_video_and_query_is_counted(filled: Store) -> None:
    put_narrative(filled, "v1", np.ones((5, 3)).tolist(), [1] * 5)
    put_narrative(filled, "v2", np.ones((8, 3)).tolist(), [1] * 8)
    put_events(filled, "v1", 5, [[0.0, 6.0], [6.0, 10.0]])
    put_events(filled, "v2", 8, [[0.0, 6.0], [6.0, 16.0]])
    dataset = MomentDataset(filled, "val", narratives=True, events=True, max_clips=6, max_tokens=5)
    whole = MomentDataset(filled, "val", max_tokens=None)
    sample = dataset[2]
    assert sample.grid == Grid(12.0, 2.0)
    assert sample.video.shape == (6, 12)
    np.testing.assert_array_equal(sample.video[:, :10], whole[2].video[:6, :10])
    assert sample.video[-1, -1] == 1.0
    assert sample.narrative is not None
    assert sample.narrative.shape == (6, 3)
    np.testing.assert_allclose(sample.events, [[0, 0.5, 0], [0.5, 1, 1]])  # type: ignore[arg-type]
    assert sample.annotation.windows == ((2.0, 12.0),)
    assert sample.annotation.clip_ids == (1,)
    assert dataset[1].text.shape == (5, 5)
    assert dataset.report.sentences() == [
        "1 videos cut to the allowed number of clips",
        "1 queries cut to the allowed number of tokens",
        "1 moments clipped to the end of their video's grid",
        "1 scored clips left out, because they are not on the grid",
    ]
    assert whole.report.sentences() == []


def test_annotations_outside_the_grid_are_clipped_and_counted(filled: Store) -> None:
    row = Annotation(
        9,
        "a red ball",
        "v1",
        14.0,
        ((8.0, 12.0), (10.0, 14.0), (0.0, 10.0)),
        (4, 5),
        ((1.0,), (2.0,)),
    )
    filled.save_annotations("train", [row])
    dataset = MomentDataset(filled, "train")
    [found] = dataset.annotations
    assert found.windows == ((8.0, 10.0), (0.0, 10.0))
    assert (found.clip_ids, found.saliency) == ((4,), ((1.0,),))
    report = dataset.report
    assert (report.clipped_windows, report.dropped_windows, report.dropped_clip_ids) == (1, 1, 1)
    assert filled.annotations("train") == [row]


def test_queries_without_ground_truth_stay_without(filled: Store) -> None:
    filled.save_annotations("test", [Annotation(1, "a red ball", "v1")])
    [found] = MomentDataset(filled, "test").annotations
    assert found.windows is found.clip_ids is found.saliency is None


def test_missing_rows_are_named_with_their_number_and_the_command(filled: Store) -> None:
    rows = [Annotation(n, "a red ball", f"x{n:02}") for n in range(12)]
    filled.save_annotations("train", [*rows, Annotation(99, "never encoded", "v1")])
    with pytest.raises(StoreError) as caught:
        MomentDataset(filled, "train")
    message = str(caught.value)
    ten = ", ".join(f"x{n:02}" for n in range(10))
    assert f"stage 'slowfast' lacks 12: {ten} and 2 more" in message
    assert f"stage 'queries' lacks 1: {query_id('never encoded')}" in message
    assert "`pipeline run --stage slowfast --stage clip --stage queries`" in message


def test_missing_rows_may_be_left_out_and_are_listed(filled: Store) -> None:
    put_stream(filled, "clip", "v3", 4)
    rows = [
        Annotation(1, "a red ball", "v3"),
        Annotation(2, "a red ball", "v1"),
        Annotation(3, "never encoded", "v1"),
    ]
    filled.save_annotations("train", rows)
    dataset = MomentDataset(filled, "train", require="any")
    assert [sample.annotation.qid for sample in dataset] == [2]
    assert dataset.missing == {"slowfast": ["v3"], "queries": [query_id("never encoded")]}
    assert (dataset.report.queries, dataset.report.dropped_queries) == (3, 2)
    assert dataset.report.sentences()[0].startswith("2 queries left out")


def test_a_split_of_which_nothing_is_left_is_an_error(filled: Store) -> None:
    filled.save_annotations("train", [Annotation(1, "a red ball", "x")])
    with pytest.raises(StoreError, match="stage 'slowfast' lacks 1: x"):
        MomentDataset(filled, "train", require="any")


def test_streams_on_different_grids_name_both_recipes(filled: Store) -> None:
    put_stream(filled, "slowfast", "v3", 6)
    put_stream(filled, "clip", "v3", 5)
    filled.save_annotations("train", [Annotation(1, "a red ball", "v3")])
    current = filled.current
    with pytest.raises(
        StoreError,
        match=rf"'v3' do not fit: slowfast/{current['slowfast']} has 6 clips.*"
        rf"clip/{current['clip']} has 5 clips",
    ):
        MomentDataset(filled, "train")


def test_streams_of_different_contents_of_a_video_do_not_fit(filled: Store) -> None:
    put_stream(filled, "slowfast", "v3", 6)
    put_stream(filled, "clip", "v3", 6, content="b" * 64)
    filled.save_annotations("train", [Annotation(1, "a red ball", "v3")])
    with pytest.raises(
        StoreError, match=r"6 clips of 2 s, content aaaaaaaa….*2 s, content bbbbbbbb…"
    ):
        MomentDataset(filled, "train")


def test_the_catalogue_says_which_content_of_a_changed_video_is_meant(filled: Store) -> None:
    for stage in ("slowfast", "clip"):
        put_stream(filled, stage, "v1", 7, content="b" * 64)
    facts = VideoFacts(14.0, 25.0, 350, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)
    filled.update_catalogue([CatalogueEntry("v1", "b" * 64, facts)])
    assert MomentDataset(filled, "val")[0].video.shape == (7, 12)


def test_wrong_use_is_answered_with_a_sentence(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'vall'; did you mean 'val'"):
        MomentDataset(filled, "vall")
    with pytest.raises(StoreError, match="no stage 'i3d'"):
        MomentDataset(filled, "val", streams=("i3d",))
    with pytest.raises(StoreError, match="no stage 'narratives'"):
        MomentDataset(filled, "val", narratives=True)
    for streams in ((), ("clip", "clip")):
        with pytest.raises(UsageError, match="one or more different stages"):
            MomentDataset(filled, "val", streams=streams)
    with pytest.raises(UsageError, match=r"stage 'queries' cannot be a stream.*pooled, tokens"):
        MomentDataset(filled, "val", streams=("queries",))
