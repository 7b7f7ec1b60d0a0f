"""Three queries of each dataset in each form of its files, written as the real files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.annotations import Annotation

__all__ = ["SAMPLES", "FileSample"]

Row = dict[str, Any]


@dataclass(frozen=True)
class FileSample:
    """A file of three queries.

    Args:
        dataset: whose it is.
        name: how the file is called.
        content: text; a list is written as JSONL, a mapping as JSON.
        first: what the first query is in normal form.
        third: its place in messages, after the path.
        guessed: dataset as which the file shows itself; None where several have its form.
        beside: other files of the same folder.
    """

    dataset: str
    name: str
    content: str | list[Row] | dict[str, Any]
    first: Annotation
    third: str = "line 3"
    guessed: str | None = "custom"
    beside: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.dataset}-{Path(self.name).suffix[1:]}-{self.name[:5]}"

    def write(self, folder: Path) -> Path:
        """The file, and what belongs beside it."""
        for name, text in self.beside.items():
            (folder / name).write_text(text)
        path = folder / self.name
        path.write_text(self.text)
        return path

    @property
    def text(self) -> str:
        """The content of the file."""
        if isinstance(self.content, str):
            return self.content
        if isinstance(self.content, list):
            return "".join(json.dumps(row) + "\n" for row in self.content)
        return json.dumps(self.content)


def _rows(**same: Any) -> list[Row]:
    return [{"qid": i, "query": f"person sits {i}.", "vid": f"AB{i}", **same} for i in range(3)]


_MOMENTS = _rows(duration=30.5, relevant_windows=[[2.5, 40]])
_MOMENT = Annotation(0, "person sits 0.", "AB0", 30.5, ((2.5, 40.0),))
_SALIENCY = _rows(
    duration=12,
    relevant_windows=[[0, 2], [4, 8]],
    relevant_clip_ids=[0, 2],
    saliency_scores=[[4, 3, 2], [1, 0, 1]],
)
_SALIENT = Annotation(
    0,
    "person sits 0.",
    "AB0",
    12.0,
    ((0.0, 2.0), (4.0, 8.0)),
    (0, 2),
    ((4.0, 3.0, 2.0), (1.0, 0.0, 1.0)),
)


def _captions(*videos: str, **more: Any) -> dict[str, Any]:
    """One video with two sentences, one with one."""
    one, two = videos
    return {
        one: {
            "duration": 55.15,
            "timestamps": [[0.28, 55.15], [13.79, 54.32]],
            "sentences": ["A tutorial.", " The coach helps."],
            **{name: values[:2] for name, values in more.items()},
        },
        two: {
            "duration": 20,
            "timestamps": [[1, 2]],
            "sentences": ["A man."],
            **{name: values[2:] for name, values in more.items()},
        },
    }


def _captioned(video: str, **extra: Any) -> Annotation:
    return Annotation(
        f"{video}_0", "A tutorial.", video, 55.15, ((0.28, 55.15),), extra=dict(extra)
    )


_ANET = ("v_aaa", "v_bbb")
_NEWS = [{"NOUN": ["tutorial"]}, {"VERB": ["help"]}, {"NOUN": ["man"]}]
_NOVELS = [{"v-n": [["give", "tutorial"]]}, {}, {"a-n": [["old", "man"]]}]
_IN_THE_SECOND = "video '{}', sentence 1"

_FRAMED = {
    "WXXYY": {
        "framestamps": [[448, 576], [112, 308]],
        "decode_fps": 16.0,
        "encoded_sentences": [[1, 44], [1, 73]],
        "sentences": ["person sits", "person plays"],
        "video_fps": -1.0,
        "timestamps": [[28.0, 36.0], [7.0, 19.3]],
        "video_duration": 35.4375,
    },
    "N14BK": {
        "framestamps": [[628, 720]],
        "decode_fps": 16.0,
        "encoded_sentences": [[1, 38]],
        "sentences": ["person leaves"],
        "video_fps": -1.0,
        "timestamps": [[39.3, 45.0]],
        "video_duration": 47.625,
    },
}
_FRAMES = {
    "s30-d52.avi": {
        "timestamps": [[147, 294], [294, 588]],
        "sentences": ["She took out kiwi", "She took out cutting board"],
        "fps": 29.4,
        "num_frames": 7350,
    },
    "s30-d41.avi": {"timestamps": [[0, 50]], "sentences": ["He"], "fps": 25.0, "num_frames": 100},
}
_TEXT = "AO8RW 0.0 6.9##a person sits.\nAO8RW 20.8 30.0##a ## b.\nY6R7T 7.3 17.3##person leaves.\n"


def _seconds_beside(name: str, text: str) -> FileSample:
    return FileSample(
        "charades_sta",
        "charades_sta_test.txt",
        _TEXT,
        Annotation("AO8RW_0", "a person sits.", "AO8RW", 33.67, ((0.0, 6.9),)),
        guessed="charades_sta",
        beside={name: text},
    )


_TVSUM_ROWS = [
    {
        "qid": f"v{i}",
        "query": "A title",
        "duration": 2,
        "vid": f"v{i}",
        "relevant_clip_ids": None,
        "relevant_windows": None,
        "label": [[1.0, 5.0, 3.0], [2.0, 2.0, 1.0]],
        "domain": "VU",
    }
    for i in range(3)
]
_SUMS = [{**row, "duration": 5.5, "label": [[27.0], [25.0]]} for row in _TVSUM_ROWS]
_ANNO = {
    f"v{i}": {
        "fps": 25.0,
        "frames": "110",
        "domain": "VU",
        "title": "A title",
        "url": "https://example.org",
        "length": "0:04",
        "anno": [[1.0, 5.0, 3.0], [2.0, 2.0, 1.0]],
    }
    for i in range(3)
}
_CLIPS = {"frames": 250.0, "fps": 20.0, "clip": [[0.0, 100.0], [50.0, 151.0]], "match": [-1, 1]}
_YOUTUBE = [
    {
        "qid": f"v{i}",
        "query": "dog",
        "duration": 12.5,
        "vid": f"v{i}",
        "relevant_clip_ids": None,
        "relevant_windows": None,
        "label": [[0], [1]],
        "domain": "dog",
        **_CLIPS,
    }
    for i in range(3)
]
_YOUTUBE_RAW = {
    f"v{i}": {**_CLIPS, "frames": "250", "domain": "dog", "mturk": [0.0, 1.0], "info": ["a", None]}
    for i in range(3)
}


def _clips(extra: dict[str, Any]) -> Annotation:
    return Annotation(
        "v0",
        "dog",
        "v0",
        12.5,
        None,
        (0, 1),
        ((0.0,), (1.0,)),
        ((0.0, 5.0), (2.5, 7.55)),
        extra,
    )


def _rated(duration_s: float, scores: list[list[float]], extra: dict[str, Any]) -> Annotation:
    saliency = tuple(map(tuple, scores))
    return Annotation("v0", "A title", "v0", duration_s, None, (0, 1), saliency, extra=extra)


_RATINGS = [[1.0, 5.0, 3.0], [2.0, 2.0, 1.0]]

SAMPLES = [
    FileSample("qvhighlights", "train.jsonl", _SALIENCY, _SALIENT, guessed="qvhighlights"),
    FileSample(
        "qvhighlights",
        "blind.jsonl",
        _rows(duration=150),
        Annotation(0, "person sits 0.", "AB0", 150.0),
    ),
    FileSample("custom", "mine.jsonl", _MOMENTS, _MOMENT),
    FileSample(
        "custom",
        "highlights.jsonl",
        _rows(
            duration=12,
            relevant_clip_ids=[0, 1],
            saliency_scores=[[1], [0]],
            clip_spans=[[0, 3], [3, 9.5]],
            camera="left",
        ),
        Annotation(
            0,
            "person sits 0.",
            "AB0",
            12.0,
            None,
            (0, 1),
            ((1.0,), (0.0,)),
            ((0.0, 3.0), (3.0, 9.5)),
            {"camera": "left"},
        ),
    ),
    FileSample(
        "custom", "clips.jsonl", _SALIENCY, _SALIENT, beside={"dataset.json": '{"clip_len_s": 2}'}
    ),
    FileSample(
        "synthetic",
        "train.jsonl",
        _SALIENCY,
        _SALIENT,
        beside={"dataset.json": '{"clip_len_s": 1}'},
    ),
    _seconds_beside("durations.json", '{"AO8RW": 33.67, "Y6R7T": 20}'),
    _seconds_beside("charades.json", '{"AO8RW": {"duration": 33.67}, "Y6R7T": {"duration": 20}}'),
    _seconds_beside("Charades_v1_test.csv", 'id,script,length\nAO8RW,"a, b",33.67\nY6R7T,,20\n'),
    FileSample("charades_sta", "charades.jsonl", _MOMENTS, _MOMENT),
    FileSample(
        "activitynet_captions",
        "val_1.json",
        _captions(*_ANET),
        _captioned("v_aaa"),
        _IN_THE_SECOND.format("v_bbb"),
        None,
    ),
    FileSample("activitynet_captions", "val_1.jsonl", _MOMENTS, _MOMENT),
    FileSample(
        "activitynet_cd",
        "anet_val.json",
        _captions(*_ANET),
        _captioned("v_aaa"),
        _IN_THE_SECOND.format("v_bbb"),
        None,
    ),
    FileSample(
        "activitynet_cg",
        "novel_word.json",
        _captions(*_ANET, news=_NEWS),
        _captioned("v_aaa", news=_NEWS[0]),
        _IN_THE_SECOND.format("v_bbb"),
        "activitynet_cg",
    ),
    FileSample(
        "activitynet_cg",
        "train.json",
        _captions(*_ANET),
        _captioned("v_aaa"),
        _IN_THE_SECOND.format("v_bbb"),
        None,
    ),
    FileSample(
        "charades_cg",
        "novel_composition.json",
        _captions("AO8RW", "Y6R7T", novels=_NOVELS),
        _captioned("AO8RW", novels=_NOVELS[0]),
        _IN_THE_SECOND.format("Y6R7T"),
        "charades_cg",
    ),
    FileSample(
        "charades_cd",
        "charades_val.json",
        _FRAMED,
        Annotation(
            "WXXYY_0",
            "person sits",
            "WXXYY",
            35.4375,
            ((28.0, 36.0),),
            extra={
                "framestamps": [448, 576],
                "encoded_sentences": [1, 44],
                "decode_fps": 16.0,
                "video_fps": -1.0,
            },
        ),
        _IN_THE_SECOND.format("N14BK"),
        "charades_cd",
    ),
    FileSample("charades_cd", "test_ood.jsonl", _MOMENTS, _MOMENT),
    FileSample(
        "tacos",
        "test.json",
        _FRAMES,
        Annotation(
            "s30-d52_0",
            "She took out kiwi",
            "s30-d52",
            250.0,
            ((5.0, 10.0),),
            extra={"fps": 29.4, "num_frames": 7350},
        ),
        _IN_THE_SECOND.format("s30-d41.avi"),
        "tacos",
    ),
    FileSample("tacos", "test.jsonl", _MOMENTS, _MOMENT),
    FileSample(
        "tvsum",
        "tvsum_val.jsonl",
        _TVSUM_ROWS,
        _rated(4.0, _RATINGS, {"domain": "VU", "stated_duration": 2}),
        guessed="tvsum",
    ),
    FileSample(
        "tvsum",
        "tvsum.json",
        _ANNO,
        _rated(
            4.4,
            _RATINGS,
            {
                "domain": "VU",
                "fps": 25.0,
                "frames": "110",
                "url": "https://example.org",
                "length": "0:04",
            },
        ),
        "video 'v2'",
        "tvsum",
    ),
    FileSample(
        "tvsum_sfc",
        "tvsum_val_sfc.jsonl",
        _SUMS,
        _rated(5.5, [[27.0], [25.0]], {"domain": "VU"}),
        guessed="tvsum_sfc",
    ),
    FileSample(
        "youtube_highlights",
        "youtube_valid.jsonl",
        _YOUTUBE,
        _clips({"domain": "dog", **_CLIPS}),
        guessed="youtube_highlights",
    ),
    FileSample(
        "youtube_highlights",
        "youtube.json",
        _YOUTUBE_RAW,
        _clips(
            {"domain": "dog", **_CLIPS, "frames": "250", "mturk": [0.0, 1.0], "info": ["a", None]}
        ),
        "video 'v2'",
        "youtube_highlights",
    ),
]
