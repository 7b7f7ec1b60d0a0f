from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UsageError
from data.video import Video, list_videos

MakeFiles = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> MakeFiles:
    """A folder with empty files of these names."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "videos").mkdir(exist_ok=True)
        return tmp_path / "videos"

    return make


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    """A JSONL list of these rows."""

    def make(*rows: Any) -> Path:
        path = tmp_path / "list.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return make


def test_a_folder_gives_its_media_files_sorted_by_id_and_counts_the_others(
    files: MakeFiles,
) -> None:
    root = files("b.mp4", "sub/deep/a.MKV", "song.mp3", "notes.txt", ".hidden.mp4", ".git/c.mp4")
    found = list_videos(root)
    assert found.videos == (
        Video("a", root / "sub/deep/a.MKV"),
        Video("b", root / "b.mp4"),
        Video("song", root / "song.mp3"),
    )
    assert found.ignored == (root / ".hidden.mp4", root / "notes.txt")


def test_a_linked_folder_is_followed_and_a_circle_ends(files: MakeFiles, tmp_path: Path) -> None:
    root = files("a.mp4")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.mp4").touch()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    assert [video.id for video in list_videos(root).videos] == ["a", "b"]


def test_two_files_with_one_id_are_both_named(files: MakeFiles) -> None:
    root = files("x/a.mp4", "y/a.mov")
    with pytest.raises(UsageError, match=r"would both have the id 'a'.*JSONL list") as caught:
        list_videos(root)
    assert str(root / "x/a.mp4") in str(caught.value)
    assert str(root / "y/a.mov") in str(caught.value)


def test_a_file_name_that_is_no_id_is_named(files: MakeFiles) -> None:
    with pytest.raises(UsageError, match=r"my film\.mp4: video id 'my film' is not allowed"):
        list_videos(files("my film.mp4"))


def test_nothing_to_do_is_said_with_advice(files: MakeFiles, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; set videos\.root"):
        list_videos(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no videos \(1 other files"):
        list_videos(files("notes.txt"))
    (tmp_path / "film.mp4").touch()
    with pytest.raises(UsageError, match="is a single file"):
        list_videos(tmp_path / "film.mp4")


def test_a_list_gives_ids_parts_and_paths_relative_to_itself(
    listing: Callable[..., Path],
) -> None:
    path = listing(
        {"video_id": "b", "path": "/films/b.mp4"},
        "",
        {"video_id": "a", "path": "films/x.mp4", "start_s": 10, "end_s": 20.5},
    )
    assert list_videos(path).videos == (
        Video("a", path.parent / "films/x.mp4", 10.0, 20.5),
        Video("b", Path("/films/b.mp4")),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 2: not JSON"),
        ([1], "line 2: expected a JSON object, got list"),
        ({"video_id": "a", "path": "a.mp4"}, "line 2: video_id 'a' is given twice"),
        ({"video_id": "../a", "path": "a.mp4"}, "line 2: video id '../a' is not allowed"),
        ({"video_id": 7, "path": "a.mp4"}, "line 2: 'video_id' must be a non-empty string, got 7"),
        ({"video_id": "b"}, "line 2: 'path' must be a non-empty string, got None"),
        ({"video_id": "b", "pth": "a"}, "line 2: unknown key 'pth'; did you mean 'path'"),
        ({"video_id": "b", "path": "a", "start_s": -1}, "line 2: 'start_s' must be seconds >= 0"),
        ({"video_id": "b", "path": "a", "end_s": True}, "line 2: 'end_s' must be seconds >= 0"),
        ({"video_id": "b", "path": "a", "start_s": 5, "end_s": 5}, "end_s must be after start_s"),
    ],
)
def test_a_bad_line_is_named_with_its_number(
    row: Any, message: str, listing: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        list_videos(listing({"video_id": "a", "path": "a.mp4"}, row))


def test_an_empty_list_is_said_with_an_example_line(listing: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="lists no videos; add lines such as"):
        list_videos(listing(""))
