from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import load_annotations
from data.annotations.join import joined
from data.errors import UsageError


def _file(folder: Path, name: str, **videos: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(videos))
    return path


def _video(*sentences: str, duration: float = 10.0, **more: Any) -> dict[str, Any]:
    times = [[index, index + 1] for index, _ in enumerate(sentences)]
    return {"duration": duration, "timestamps": times, "sentences": list(sentences), **more}


def test_sentences_of_a_video_are_put_together_in_the_order_of_the_files(tmp_path: Path) -> None:
    parts = [
        _file(tmp_path, "train.json", v_a=_video("one", "two"), v_b=_video("three")),
        _file(tmp_path, "val_1.json", v_c=_video("four"), v_d=_video("five")),
        _file(tmp_path, "val_2.json", v_c=_video("six", duration=10.004)),
    ]
    held = [
        _file(tmp_path, "iid.json", v_b=_video("three")),
        _file(tmp_path, "ood.json", v_d=_video("five"), v_x=_video("gone")),
    ]
    found = joined(parts, held)
    assert (len(found.videos), found.queries) == (2, 4)
    assert found.videos["v_c"] == {
        "duration": 10.0,
        "timestamps": [[0, 1], [0, 1]],
        "sentences": ["four", "six"],
    }
    assert (found.left_out, found.unknown) == (("v_b", "v_d"), ("v_x",))
    path = tmp_path / "made.json"
    path.write_text(json.dumps(found.videos))
    rows = load_annotations("activitynet_cd", path)
    assert [(row.qid, row.query) for row in rows] == [
        ("v_a_0", "one"),
        ("v_a_1", "two"),
        ("v_c_0", "four"),
        ("v_c_1", "six"),
    ]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = _file(tmp_path, "one.json", v_a=_video("one"))
    for name, video, message in (
        ("long.json", {"v_a": _video("two", duration=12.0)}, "lasts 12 s here and 10 s"),
        ("more.json", {"v_b": _video("two", novels=[{}])}, "has novels, which cannot be joined"),
        ("wrong.json", {"v_b": _video("two") | {"sentences": [7]}}, "video 'v_b', sentence 1"),
        ("none.json", {"v_b": {"duration": 1}}, "video 'v_b': must be an object whose"),
    ):
        with pytest.raises(UsageError, match=message):
            joined([one, _file(tmp_path, name, **video)])
    with pytest.raises(UsageError, match=r"not one video of .*other\.json is in .*one\.json"):
        joined([one], [_file(tmp_path, "other.json", v_z=_video("z"))])
    with pytest.raises(UsageError, match="no video is left"):
        joined([one], [_file(tmp_path, "same.json", v_a=_video("one"))])
    link = tmp_path / "link.json"
    link.symlink_to(one)
    for files, without in (([one, link], []), ([one], [link])):
        with pytest.raises(UsageError, match=r"link\.json' is named twice"):
            joined(files, without)
