"""Captioner `precomputed`: what it reads, what it refuses, and how it says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UsageError
from models.captioners import CaptionRequest, CaptionResult, create
from models.captioners.caption_table import CaptionTable, ForeignCaption
from models.captioners.precomputed import Precomputed


def written(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def captioner(path: str, **options: Any) -> Precomputed:
    made = create("precomputed", path=path, **options)
    assert isinstance(made, Precomputed)
    return made


def asked(made: Precomputed, video: str, *times_s: float) -> list[CaptionResult]:
    blind = np.zeros((0, 0, 0, 3), np.uint8)
    return made.caption(
        [CaptionRequest(blind, "", t, f"{'0' * 64}:{i}", video) for i, t in enumerate(times_s)]
    )


def all_of(made: Precomputed, video: str) -> list[tuple[float, str]]:
    times = made.times_s(video).tolist()
    return list(zip(times, [each.text for each in asked(made, video, *times)], strict=True))


# One content in every form; the columns are those of LifelongMemory, our exports, LLoVi,
# ActivityNet Captions (specs/tea_lmr_cqval_splits.md §6.1).
WANTED = {
    "a": [(0.0, "A man runs on a lawn."), (1.0, 'He says "stop", and stops.')],
    "b": [(0.0, "A dog sleeps in a basket.")],
}
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LifelongMemory": (
        "x.csv",
        "cid,vid,timestamp,caption\n"
        '1,a,1,"He says ""stop"", and stops."\n'
        "2,b,0.0,A dog sleeps in a basket.\n"
        "0,a,0,A man runs on a lawn.\n",
        {},
    ),
    "a table of tabs, of Windows": (
        "x.tsv",
        "\ufeffvideo\tstart\ttext\r\na\t00:00\tA man runs on a lawn.\r\n"
        'a\t0:00:01.000\t"He says ""stop"", and stops."\r\nb\t0\tA dog sleeps in a basket.\r\n',
        {},
    ),
    "names of one's own, milliseconds": (
        "x.csv",
        "clip,ms,words\nv/a.mp4,0,A man runs on a lawn.\n"
        'v/a.mp4,1000,"He says ""stop"", and stops."\nv\\b.avi,0,A dog sleeps in a basket.\n',
        {
            "columns": {"video": "clip", "time": "ms", "text": "words"},
            "unit_s": 0.001,
            "ids": "stem",
        },
    ),
    "LLoVi": (
        "x.json",
        json.dumps({video: [text for _, text in rows] for video, rows in WANTED.items()}),
        {},
    ),
    "rows by video": (
        "x.json",
        json.dumps(
            {v: [{"start": t, "caption": text} for t, text in rows] for v, rows in WANTED.items()}
        ),
        {},
    ),
    "ActivityNet Captions": (
        "x.json",
        json.dumps(
            {
                v: {
                    "duration": 9,
                    "timestamps": [[t, t + 2] for t, _ in rows],
                    "sentences": [text for _, text in rows],
                }
                for v, rows in WANTED.items()
            }
        ),
        {},
    ),
    "a list of rows": (
        "x.json",
        json.dumps(
            [{"vid": v, "t": t, "narration": x} for v, rows in WANTED.items() for t, x in rows]
        ),
        {},
    ),
    "our lines": (
        "x.jsonl",
        "\n".join(
            json.dumps(
                {
                    "video_id": v,
                    "time_s": t,
                    "start_s": t,
                    "caption": x,
                    "status": "ok",
                    "flags": [],
                }
            )
            for v, rows in WANTED.items()
            for t, x in rows
        ),
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_captions(form: str, tmp_path: Path) -> None:
    name, text, options = FORMS[form]
    made = captioner(written(tmp_path, name, text), **options)
    assert {video: all_of(made, video) for video in WANTED} == WANTED
    assert made.times_s("c").shape == (0,)
    assert made.params()["captions"] == 3
    assert made.own_times
    assert made.sight.frames == 0


def test_a_folder_of_paragraphs_gives_the_same_captions(tmp_path: Path) -> None:
    for video, rows in WANTED.items():
        lines = "".join(f"{t:g}: {text}\n" for t, text in rows)
        written(tmp_path, f"{video}.txt", lines)
    written(tmp_path, "storyline_export.json", "{}")
    made = captioner(str(tmp_path))
    assert {video: all_of(made, video) for video in WANTED} == WANTED


def test_plain_lists_have_the_times_they_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "x.json", '{"a": ["one dog runs", "two dogs run", "three dogs run"]}')
    made = captioner(path, every_s=2.0, offset_s=0.5)
    assert made.times_s("a").tolist() == [0.5, 2.5, 4.5]


def test_blank_lines_of_a_table_are_no_rows(tmp_path: Path) -> None:
    text = "\nvid,timestamp,caption\n\nv,1,A man runs.\n\n\nv,-0.0,A dog runs.\n\n"
    made = captioner(written(tmp_path, "x.csv", text))
    assert all_of(made, "v") == [(0.0, "A dog runs."), (1.0, "A man runs.")]
    assert np.copysign(1, made.times_s("v")[0]) == 1


def test_what_is_told_about_a_caption_can_be_stored_and_shown(tmp_path: Path) -> None:
    row = {"vid": "v\ud800", "timestamp": 1, "caption": "", "status": "failed", "flags": []}
    text = json.dumps(row | {"reason": "a\ud800\x1b[31m\0\nb"}) + "\n"
    made = captioner(written(tmp_path, "x.jsonl", text))
    (found,) = asked(made, "v?", 1.0)
    assert found.reason == "a??[31m? b"


def test_ends_are_kept(tmp_path: Path) -> None:
    path = written(
        tmp_path, "x.csv", "vid,start,end,caption\na,1,3.5,A dog runs.\na,4,,A cat runs.\n"
    )
    first, second = asked(captioner(path), "a", 1.0, 4.0)
    assert (first.end_s, second.end_s) == (3.5, None)


def test_captions_are_flagged_as_generated_ones_are_unless_told_not_to(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", "vid,t,caption\na,0,#C C\na,1,A dog runs fast.\n")
    assert [each.flags for each in asked(captioner(path), "a", 0, 1)] == [("short",), ()]
    assert [each.status for each in asked(captioner(path, guards=False), "a", 0, 1)] == ["ok", "ok"]


def test_flags_and_reasons_of_an_export_are_kept(tmp_path: Path) -> None:
    rows = [
        {
            "video_id": "a",
            "time_s": 0,
            "caption": "A man.",
            "status": "flagged",
            "flags": ["truncated", "??"],
        },
        {
            "video_id": "a",
            "time_s": 1,
            "caption": "",
            "status": "failed",
            "flags": [],
            "reason": "HTTP 400",
        },
    ]
    path = written(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)))
    flagged, failed = asked(captioner(path), "a", 0, 1)
    assert (flagged.status, flagged.flags) == ("flagged", ("truncated",))
    assert (failed.status, failed.reason) == ("failed", "HTTP 400")


def test_a_caption_that_is_missing_is_failed_with_the_reason(tmp_path: Path) -> None:
    path = written(
        tmp_path, "x.csv", "vid,t,caption\na,0,A dog runs.\na,1,\nv/b.mp4,0,A cat runs.\n"
    )
    made = captioner(path)
    there, empty, nowhere = asked(made, "a", 0, 1, 1.5)
    assert there.status == "ok"
    assert (empty.status, empty.reason) == ("failed", "x.csv, line 3: the caption is empty")
    assert nowhere.reason == "x.csv has no caption of 'a' at 1.5 s, the closest is at 1 s"
    assert asked(made, "b", 0)[0].reason == (
        "x.csv has no captions of 'b'; it has v/b.mp4: set ids: stem if that is the same"
    )
    assert "allowed: a, v/b.mp4" in asked(made, "zzz", 0)[0].reason
    # Asking again would not help: no part is kept open for it.
    assert {each.finish_reason for each in (empty, nowhere)} == {"stop"}


TWICE = "vid,t,caption\na,1,A dog.\nb,1,A cow.\na,1.0,It runs.\na,1,\na,2,A cat.\n"


def test_two_captions_at_one_time_are_refused_until_told_what_they_mean(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", TWICE)
    with pytest.raises(UsageError, match=r"line 2, line 4, line 5 are all captions of 'a' at 1 s"):
        captioner(path)
    assert all_of(captioner(path, same_time="join"), "a") == [
        (1.0, "A dog. It runs."),
        (2.0, "A cat."),
    ]
    assert all_of(captioner(path, same_time="first"), "a") == [(1.0, "A dog."), (2.0, "A cat.")]


def recipe(path: str, **options: Any) -> dict[str, Any]:
    return Precomputed.recipe({"path": path, **options})


def test_the_recipe_is_what_is_in_the_file_and_not_what_it_is_called(tmp_path: Path) -> None:
    text = "vid,t,caption\na,1,A dog runs.\n"
    one, same = written(tmp_path, "x.csv", text), written(tmp_path, "y.csv", text)
    other = written(tmp_path, "z.csv", text.replace("dog", "cat"))
    assert recipe(one) == recipe(same) != recipe(other)
    assert recipe(one, unit_s=0.5) != recipe(one)
    assert str(tmp_path) not in json.dumps(recipe(one))
    before = recipe(one)
    Path(one).write_text(text.replace("dog", "cow"))
    os.utime(one, ns=(1, 1))
    assert recipe(one) != before


def test_the_check_of_a_machine_reads_the_first_rows_only(tmp_path: Path) -> None:
    good = "vid,t,caption\n" + "".join(f"a,{i},A dog runs.\n" for i in range(200))
    late, early = good + "a,x,A dog.\n", good.replace("a,3,", "a,x,")
    Precomputed.check(None, {"path": written(tmp_path, "late.csv", late)})
    with pytest.raises(UsageError, match="line 5: 'x' is no time"):
        Precomputed.check(None, {"path": written(tmp_path, "early.csv", early)})
    with pytest.raises(UsageError, match="does not exist"):
        Precomputed.check(None, {"path": str(tmp_path / "gone.csv")})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "holds no captions"),
        ("x.csv", "vid,t,caption\n", "holds no captions"),
        ("x.csv", "vid,t,words\na,1,A dog\n", "no column for the text, looked for caption, text"),
        ("x.csv", "vid,vid,t,caption\na,a,1,A\n", "the header names .'vid'. twice"),
        ("x.csv", "vid,t,caption\na,1,A dog, a cat\n", "line 2: 4 cells under a header of 3"),
        ("x.csv", 'vid,t,caption\na,1,"A dog\n', "line 2 is not CSV"),
        ("x.csv", "vid,t,caption\na,-1,A\n", "line 2: '-1' is no time"),
        ("x.csv", "vid,t,caption\na,nan,A\n", "'nan' is no time"),
        ("x.csv", "vid,t,caption\na,1e9,A\n", "'1e9' is no time"),
        ("x.csv", "vid,t,caption\n,1,A\n", "'' is no name of a video"),
        ("x.csv", "vid,t,end,caption\na,3,1,A\n", "it ends at 1 s, before its start, 3 s"),
        ("x.csv", "vid,t,caption\na,1," + "x" * 10_001, "10,001 characters, more than the 10,000"),
        ("x.csv", "vid,t,caption\na,1," + "x" * 200_000, "line 2 is not CSV: field larger"),
        ("x.csv", b"vid,t,caption\na,1,\xff\xfe\n", "not text in UTF-8"),
        ("x.csv", b"vid,t,caption\na,1,a\0b\n", "line 2.* NUL"),
        ("x.jsonl", '{"vid": "a", "t": 1, "caption": 5}', "the caption is a number, not a text"),
        ("x.jsonl", '{"vid": true, "t": 1, "caption": "x"}', "True is no name of a video"),
        ("x.jsonl", '{"vid": "a", "t": true, "caption": "x"}', "True is no time"),
        ("x.jsonl", '{"vid": "a", "t": 1, "caption": "x"', "line 1 is not JSON"),
        ("x.jsonl", "[1]", "expected a JSON object, found"),
        ("x.json", '{"a": "one text"}', "expected a list of captions, or an object with"),
        ("x.json", '{"a": [5]}', "video 'a', caption 0: expected an object, found a number"),
        ("x.json", '{"a": {"timestamps": [[0, 1]], "sentences": []}}', "differ in length"),
        ("x.json", '{"a": {"timestamps": [[0]], "sentences": ["x"]}}', "is .start, end. in sec"),
        ("x.json", "5", "expected an object or a list, found a number"),
        ("x.json", "{", "not JSON that can be used"),
        ("x.zip", "PK", "a suffix that is not known; allowed: .csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(
    name: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        captioner(written(tmp_path, name, text))


def test_a_pipe_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no \.txt"):
        captioner(str(tmp_path))
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(UsageError, match="is a pipe"):
        captioner(str(tmp_path / "x.csv"))
    folder = tmp_path / "texts"
    folder.mkdir()
    written(folder, "a.txt", "0: A dog runs.\nA cat runs.\n")
    with pytest.raises(UsageError, match=r"a\.txt, line 2: expected `SECONDS: caption`"):
        captioner(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path is missing"),
        ({"columns": {"texts": "x"}}, "unknown 'texts'; did you mean 'text'"),
        ({"columns": {"text": ""}}, "give the name of a column"),
        ({"columns": ["x"]}, "columns takes"),
        ({"unit_s": 0.0}, "unit_s is 0.0"),
        ({"every_s": -1.0}, "every_s is -1.0"),
        ({"offset_s": -1.0}, "offset_s is -1.0"),
        ({"ids": "steam"}, "did you mean 'stem'"),
        ({"same_time": "last"}, "same_time: unknown 'last'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, "x.csv", "vid,t,caption\na,1,A dog runs.\n")
    with pytest.raises(UsageError, match=message):
        create("precomputed", **{"path": path, **options})
    with pytest.raises(UsageError, match=message):
        Precomputed.recipe({"path": path, **options})


def test_a_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match=r"its file is an option: \{path: FILE\}"):
        create("precomputed", "x.pt")


rows_of_a_table = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 40),
        st.text(st.characters(codec="utf-8"), max_size=9),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[:2],
)


@given(rows_of_a_table)
@settings(max_examples=60, deadline=None)
def test_a_table_gives_back_what_was_put_in(rows: list[tuple[str, int, str]]) -> None:
    captions = [
        ForeignCaption(video, time / 4, text, f"line {i}", None if i % 2 else time / 4 + 1)
        for i, (video, time, text) in enumerate(rows)
    ]
    table = CaptionTable(iter(captions), "x", "refuse")
    assert len(table) == len(captions)
    for one in captions:
        assert table.at(one.video, one.time_s) == one
    for video in table.videos:
        own = sorted(each.time_s for each in captions if each.video == video)
        assert table.times_s(video).tolist() == own
    assert table.at("a", 99.0) is None
    assert table.at("z", 0.0) is None
