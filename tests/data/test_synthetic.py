from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from data.synthetic import MOTIONS, Scene, render_corpus, write_script
from data.video import FrameRequest, Video, View, open_decoder

pytest.importorskip("av")

SMALL: dict[str, Any] = {"train": 6, "val": 2, "test": 1, "seed": 3, "clips": 8, "size": (64, 48)}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    render_corpus(folder, **SMALL)
    return folder


def test_a_corpus_has_all_its_files(corpus: Path) -> None:
    facts = json.loads((corpus / "corpus.json").read_text())
    assert facts["videos"] == {"train": 6, "val": 2, "test": 1}
    assert len(list((corpus / "videos").glob("*.mp4"))) == 9
    assert set(facts["sha256"]) | {"corpus.json"} == set(contents(corpus))
    assert json.loads((corpus / "annotations/dataset.json").read_text())["clip_len_s"] == 1.0


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(
    corpus: Path, tmp_path: Path
) -> None:
    render_corpus(tmp_path / "again", **SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(corpus)


def test_another_seed_gives_other_films_and_queries(corpus: Path, tmp_path: Path) -> None:
    render_corpus(tmp_path / "other", **{**SMALL, "seed": 4})
    ours, theirs = contents(corpus), contents(tmp_path / "other")
    same = {name for name in ours if ours[name] == theirs.get(name)}
    assert same == {"annotations/dataset.json"}


def test_every_film_has_the_length_size_and_rate_that_were_asked_for(corpus: Path) -> None:
    for path in (corpus / "videos").iterdir():
        facts = open_decoder("pyav").probe(Video(path.stem, path))
        assert (facts.duration_s, facts.fps, facts.codec) == (8.0, 8.0, "h264")
        assert (facts.width, facts.height, facts.damaged) == (64, 48, 0)


def test_films_are_unique_and_splits_share_none(corpus: Path) -> None:
    hashes = json.loads((corpus / "corpus.json").read_text())["sha256"]
    films = [sha for name, sha in hashes.items() if name.startswith("videos/")]
    assert len(set(films)) == 9
    splits = [
        {row["vid"] for row in rows(corpus / f"annotations/{split}.jsonl")}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 9


def test_rows_are_consistent_qvhighlights_rows(corpus: Path) -> None:
    every = [row for path in (corpus / "annotations").glob("*.jsonl") for row in rows(path)]
    assert len({row["qid"] for row in every}) == len(every) == 30
    for row in every:
        clips = [
            clip for start, end in row["relevant_windows"] for clip in range(int(start), int(end))
        ]
        assert row["relevant_clip_ids"] == clips
        assert row["duration"] == 8.0
        assert np.array(row["saliency_scores"]).shape == (len(clips), 3)
        assert {score for scores in row["saliency_scores"] for score in scores} <= set(range(5))


def test_boundaries_are_where_the_picture_changes(corpus: Path) -> None:
    for row in rows(corpus / "boundaries.jsonl"):
        video = Video(row["vid"], corpus / "videos" / f"{row['vid']}.mp4")
        corner = np.arange(64)[:, None] / 8.0
        windows = open_decoder("pyav").windows(
            video, [FrameRequest("a", corner, View(48, crop=False), inclusive=True)]
        )
        borders = np.stack(
            [window.frames[0, [0, -1]].astype(int).mean((0, 1)) for window in windows]
        )
        jumps = np.abs(np.diff(borders, axis=0)).max(1)
        for boundary in row["boundaries"]:
            assert jumps[int(boundary * 8) - 1] > 5, (row, boundary)


def test_scripts_tell_scenes_that_differ_and_can_be_asked_about() -> None:
    for seed in range(500):
        script = write_script((seed,), "v", clips=24)
        scenes = script.scenes
        assert 3 <= len(scenes) <= 6
        ends = np.cumsum([scene.clips for scene in scenes]).tolist()
        assert [scene.start for scene in scenes] == [0, *ends[:-1]]
        assert ends[-1] == 24
        for one, other in pairwise(scenes):
            assert one.background != other.background
            assert not descriptions(one) & descriptions(other), seed
        for text, spans in script.moments().items():
            assert [text in descriptions(scene) for scene in scenes] == [
                (scene.start, scene.start + scene.clips) in spans for scene in scenes
            ]


def descriptions(scene: Scene) -> set[str]:
    return {actor.description for actor in scene.actors}


def test_moments_cannot_be_guessed_without_looking(tmp_path: Path) -> None:
    """The best fixed window of the training split, found by trying all, on held-out films."""

    def recall(spans: list[list[tuple[int, int]]], guess: tuple[int, int]) -> float:
        return float(np.mean([max(overlap(guess, span) for span in each) >= 0.5 for each in spans]))

    films = [write_script((9, i), "v", clips=24).moments() for i in range(400)]
    moments = [spans for film in films for spans in film.values()]
    train, held_out = moments[::2], moments[1::2]
    guesses = [(a, b) for a in range(24) for b in range(a + 1, 25)]
    best = max(guesses, key=lambda guess: recall(train, guess))
    assert 0.1 < recall(held_out, best) < 0.25


def overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0]))


def test_all_motions_and_repeated_moments_occur() -> None:
    scripts = [write_script((5, i), "v", clips=24) for i in range(60)]
    motions = {a.motion for script in scripts for scene in script.scenes for a in scene.actors}
    assert motions == set(MOTIONS)
    twice = [any(len(spans) > 1 for spans in script.moments().values()) for script in scripts]
    assert 0.2 < np.mean(twice) < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 1}, "a film needs >= 2 clips"),
        ({"clip_len_s": 0.3}, "whole number of frames"),
        ({"size": (33, 64)}, "size must be even"),
        ({"queries_per_video": 0}, "queries_per_video >= 1"),
    ],
)
def test_parameters_that_make_no_film_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        render_corpus(tmp_path / "corpus", **{**SMALL, **change})
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_is_never_overwritten(corpus: Path) -> None:
    with pytest.raises(UsageError, match="already holds a corpus"):
        render_corpus(corpus, **SMALL)
