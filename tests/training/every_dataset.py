"""Small corpora in the public form of every dataset's annotation files, and stores of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from small_store import CLIPS, write_store

from data.annotations import DATASETS, load_annotations
from data.store import Store

__all__ = ["CORPORA", "Corpus", "clips_of", "small_dataset"]

Videos = Sequence[str]


@dataclass(frozen=True)
class Corpus:
    """How a dataset's files look.

    Args:
        splits: number of videos by the name of the split.
        text: the annotation file of some videos; `seconds` long each.
    """

    splits: Mapping[str, int]
    text: Callable[[Videos, float], str]


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _numbers(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _window(video: str, seconds: float) -> list[float]:
    start = float(_numbers(video).uniform(0, 0.6)) * seconds
    return [round(start, 2), round(start + 0.3 * seconds, 2)]


def _rows(videos: Videos, seconds: float) -> str:
    """Charades-STA and TACoS as everybody converts them."""
    return _lines(
        [
            {
                "qid": i,
                "query": f"somebody opens door {video}",
                "duration": seconds,
                "vid": video,
                "relevant_windows": [_window(video, seconds)],
            }
            for i, video in enumerate(videos)
        ]
    )


def _captions(videos: Videos, seconds: float, **more: Any) -> str:
    """ActivityNet Captions, and what was made of it."""
    return json.dumps(
        {
            f"v_{video}": {
                "duration": seconds,
                "timestamps": [_window(video, seconds)],
                "sentences": [f"Somebody opens door {video}."],
                **more,
            }
            for video in videos
        }
    )


def _charades_cg(videos: Videos, seconds: float) -> str:
    found = json.loads(_captions(videos, seconds))
    news = [[{"VERB": ["open"]}], [{"NOUN": ["door"]}]]
    for number, (video, entry) in enumerate(found.items()):
        if "novel" in video:
            entry["news"] = news[number % 2]
    return json.dumps({video.removeprefix("v_"): entry for video, entry in found.items()})


def _charades_cd(videos: Videos, seconds: float) -> str:
    return json.dumps(
        {
            video: {
                "video_duration": seconds,
                "timestamps": [_window(video, seconds)],
                "sentences": [f"somebody opens door {video}"],
                "framestamps": [[round(16 * each) for each in _window(video, seconds)]],
                "encoded_sentences": [[1, 2]],
                "decode_fps": 16.0,
                "video_fps": -1.0,
            }
            for video in videos
        }
    )


def _tvsum(videos: Videos, seconds: float) -> str:
    """Twenty annotators who like three clips in a row; `duration` is the number of clips."""
    clips = round(seconds / 2)
    rows = []
    for i, video in enumerate(videos):
        rng = _numbers(video)
        label = rng.integers(1, 3, (clips, 20))
        best = int(rng.integers(0, clips - 3))
        label[best : best + 3] = rng.integers(4, 6, (3, 20))
        domain = ("BK", "VU")[i % 2]
        row = {"qid": video, "query": f"title of {domain}", "duration": clips, "vid": video}
        empty = {"relevant_clip_ids": None, "relevant_windows": None}
        rows.append({**row, **empty, "label": label.tolist(), "domain": domain})
    return _lines(rows)


def _youtube(videos: Videos, seconds: float) -> str:
    """Clips of 100 frames, one each 50 frames, of a video of 25 frames a second."""
    fps, frames = 25.0, round(25 * seconds)
    rows = []
    for i, video in enumerate(videos):
        clip = [[start, min(start + 100, frames)] for start in range(0, frames - 50, 50)]
        best = int(_numbers(video).integers(0, len(clip) - 2))
        match = [1 if best <= j < best + 2 else -1 for j in range(len(clip))]
        domain = ("dog", "skiing")[i % 2]
        rows.append(
            {
                "qid": video,
                "query": domain,
                "duration": seconds,
                "vid": video,
                "relevant_clip_ids": None,
                "relevant_windows": None,
                "label": [[int(each > 0)] for each in match],
                "domain": domain,
                "frames": frames,
                "fps": fps,
                "clip": clip,
                "match": match,
            }
        )
    return _lines(rows)


_CD = {"train": 8, "val": 3, "test_iid": 2, "test_ood": 2}
_CG = {"train": 12, "test_trivial": 2, "novel_word": 4, "novel_composition": 2}

CORPORA = {
    "charades_sta": Corpus({"train": 12, "test": 3}, _rows),
    "tacos": Corpus({"train": 8, "val": 3, "test": 2}, _rows),
    "activitynet_captions": Corpus({"train": 12, "val_1": 3, "val_2": 2}, _captions),
    "charades_cd": Corpus(_CD, _charades_cd),
    "activitynet_cd": Corpus(_CD, _captions),
    "charades_cg": Corpus(_CG, _charades_cg),
    "activitynet_cg": Corpus(_CG, _captions),
    "tvsum": Corpus({"train": 8, "val": 4}, _tvsum),
    "youtube_highlights": Corpus({"train": 8, "val": 4}, _youtube),
}
"""All published datasets but QVHighlights, whose rows are those of `small_store`."""


def clips_of(dataset: str) -> float:
    """Clip length in seconds of a dataset."""
    clip_len_s = DATASETS.get(dataset).clip_len_s
    assert clip_len_s is not None
    return clip_len_s


def small_dataset(folder: Path, dataset: str, times: int = 1) -> Store:
    """Write the annotation files of a dataset, read them as `pipeline run` does, add features.

    Args:
        folder: where `<split>.json` and `store` go.
        dataset: a name of `CORPORA`.
        times: so many times the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, count in CORPORA[dataset].splits.items():
        videos = [f"{split}{i}" for i in range(count * times)]
        path = folder / f"{split}.json"
        path.write_text(CORPORA[dataset].text(videos, CLIPS * clips_of(dataset)))
        splits[split] = load_annotations(dataset, path)
    return write_store(folder / "store", splits, dataset, clips_of(dataset))
