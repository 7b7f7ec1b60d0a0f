"""YAML and JSON from strangers, and the ids, paths and sizes in them."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from data.annotations import load_annotations
from data.config import Group, load_config, parse_yaml
from data.errors import UsageError
from data.foreign import DIGITS_OF_SETTINGS, LONGEST_LINE, brief, strict_json, text_lines
from data.identity import check_id
from data.video import list_videos
from pipeline.config import load_pipeline_config
from training.predictions import read_predictions

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NESTED_ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [[[[[[[[[[*a{n - 1}]]]]]]]]]]\n" for n in range(1, 9)
)


class Options(Group):
    epochs: int = 1
    names: tuple[str, ...] = ()


def configured(tmp_path: Path, text: str) -> Options:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(Options, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: !!python/object/apply:os.mkdir [harmed]\n", "could not determine a constructor"),
        ("epochs: !!python/object/new:os.system [true]\n", "could not determine a constructor"),
        ("epochs: !!python/module:antigravity\n", "could not determine a constructor"),
        ("epochs: !own 1\n", "could not determine a constructor"),
        (ALIASES, "with its aliases it has more than 100,000 values"),
        (NESTED_ALIASES, "nested deeper than 32 levels"),
        ("names: &x [*x]\n", "a part of"),
        ("names: " + "[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        ("names: " + "[" * 100_000, "nested deeper than 32 levels"),
        ("names: " + "{a: " * 100_000, "nested deeper than 32 levels"),
        ("epochs: 1\nepochs: 2\n", "key 'epochs' is given twice"),
        ("yes: 1\ntrue: 2\n", "key 'True' is given twice"),
        ("? [a]\n: b\n", "a list or a mapping cannot be a key"),
        ("epochs: 1\n---\nepochs: 2\n", "expected a single document"),
        ("epochs: !!timestamp 2020-99-99\n", "does not fit its tag"),
        ("epochs: !!int ''\n", "does not fit its tag"),
        ("epochs: !!bool maybe\n", "does not fit its tag"),
        ("epochs: " + "9" * 5000, "does not fit its tag"),
        ("epochs: .inf\n", "'epochs'"),
        ("epochs: -3.5\n", "'epochs'"),
        ("_target_: os.system\n", "unknown key '_target_'"),
        ("epochs: \x00\n", "special characters are not allowed"),
        ("# " + "x" * (1 << 20) + "\n", "larger than the 1,048,576 bytes"),
    ],
)
def test_a_configuration_that_means_harm_is_a_sentence(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        configured(tmp_path, text)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "harmed").exists()


def test_aliases_and_merge_keys_of_a_sane_size_still_work(tmp_path: Path) -> None:
    found = configured(tmp_path, "<<: {epochs: 3, names: &n [a, b]}\nepochs: 4\n")
    assert (found.epochs, found.names) == (4, ("a", "b"))


def test_a_configuration_that_is_a_pipe_a_device_or_a_circle_of_links_is_not_opened(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    for name, why in (
        ("pipe", "is a pipe"),
        ("circle", "Too many levels of symbolic links"),
        ("nothing", "is a link to nothing"),
        ("", "is a folder"),
        ("/dev/zero", "is a device"),
    ):
        with pytest.raises(UsageError, match=f"cannot read the configuration file .*{why}"):
            load_config(Options, tmp_path / name)


def test_the_configuration_inside_a_checkpoint_has_the_same_limits() -> None:
    for text in (ALIASES, "a: 1\na: 2\n", "- a\n", "x" * (2 << 20)):
        with pytest.raises(UsageError, match=r"the configuration in 'last\.pt'"):
            parse_yaml(text, "the configuration in 'last.pt'")


def test_a_configuration_cannot_choose_code_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"
    monkeypatch.delenv("STORYLINE_DECODERS", raising=False)
    for text in ("backend: 'antigravity:fly_to'", "fallbacks: ['os:abort']"):
        path.write_text(f"extends: tiny\ndecode: {{{text}}}\n")
        with pytest.raises(UsageError, match=r"decode\.\w+': .* code of your own, .*export"):
            load_pipeline_config(path)
    monkeypatch.setenv("STORYLINE_DECODERS", "mine:Decoder,os:abort")
    assert load_pipeline_config(path).decode.fallbacks == ("os:abort",)


# --- JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"b": {"a": 1, "a": 1}}', "key 'a' is given twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "1e999 is not a number"),
        ("[" + "9" * 400 + ".5]", "is not a number that can be used"),
        ("[" + "9" * 20 + "]", "more than 19 digits"),
        ("[" + "9" * 5000 + "]", "more than 19 digits"),
        ("[" * 66 + "]" * 66, "nested deeper than 64"),
        ('{"a":' * 66 + "1" + "}" * 66, "nested deeper than 64"),
        ("[" * 100_000, "nested deeper than 64"),
        (b"\xff\xfe", "decode"),
        ('"\x01"', "control character"),
        ("", "Expecting value"),
    ],
)
def test_json_that_python_would_bend_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strict_json(text)


def test_ordinary_json_means_what_it_means_to_python() -> None:
    text = (
        '{"id": "12345678901234567890123", "n": [-9223372036854775808, 0.1, 1e-300, 2E5], "x": {}}'
    )
    assert strict_json(text) == strict_json(text.encode()) == json.loads(text)
    wide = json.dumps([[1, 2]] * 10_000)
    assert strict_json(wide) == json.loads(wide)


ROW = {"qid": 1, "query": "a dog", "duration": 10, "vid": "v", "relevant_windows": [[0, 4]]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW)[:-1] + ', "vid": "w"}', "key 'vid' is given twice"),
        (json.dumps(ROW | {"vid": "../../etc/passwd"}), "video id '../../etc/passwd' is not all"),
        (json.dumps(ROW | {"vid": "v\u0000"}), "is not allowed"),
        (json.dumps(ROW | {"query": "x" * 10_001}), "'query' has 10,001 characters"),
        (json.dumps(ROW | {"duration": 1e29}), "'duration' must be above 0 seconds and below"),
        (json.dumps(ROW | {"x": [[[]]] * 9}).replace("[]", "[" * 70 + "]" * 70), "deeper than 64"),
    ],
)
def test_an_annotation_that_means_harm_names_its_line(
    line: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {"qid": 0}) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 2.*{message}"):
        load_annotations("custom", tmp_path / "a.jsonl")


def test_lines_without_end_and_pipes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_bytes(b"x" * (LONGEST_LINE + 1))
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (
        ("long.jsonl", "line 1 .*8,388,608 bytes"),
        ("pipe.jsonl", "is a pipe, not a file"),
    ):
        with pytest.raises(UsageError, match=message):
            load_annotations("custom", tmp_path / name)
        with pytest.raises(UsageError, match=message):
            list_videos(tmp_path / name)
        with pytest.raises(UsageError, match=message):
            read_predictions(tmp_path / name)
        with pytest.raises(UsageError, match=message):
            list(text_lines(tmp_path / name, "the file"))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    """Notepad writes one; before, `Expecting value: line 1 column 1` was the answer."""
    mark = "\ufeff".encode()
    assert strict_json(mark + b'{"a": 1}') == strict_json('\ufeff{"a": 1}') == {"a": 1}
    (tmp_path / "lines").write_bytes(mark + b"a\nb\n")
    assert list(text_lines(tmp_path / "lines", "lines")) == [(1, b"a"), (2, b"b")]
    row = {"qid": 1, "query": "a dog", "vid": "v", "duration": 9, "relevant_windows": [[0, 2]]}
    (tmp_path / "rows.jsonl").write_bytes(mark + json.dumps(row).encode())
    rows = load_annotations("custom", tmp_path / "rows.jsonl")
    assert [each.qid for each in rows] == [1]
    (tmp_path / "scores.json").write_bytes(mark + b'{"1": [0.5]}')
    assert [each.qid for each in read_predictions(tmp_path / "scores.json", rows)] == [1]


def test_what_is_quoted_from_a_file_is_cut() -> None:
    assert len(brief("x" * 10**7)) < 200
    assert len(brief([["x" * 10**6]] * 10**6)) < 200
    assert brief({"a": 1}) == "{'a': 1}"


# --- ids, paths and lists of videos

BAD_IDS = [
    *("../x", "../../etc/passwd", "a/b", "a\\b", "/etc/passwd", "C:\\x", ".", "..", ".hidden"),
    *(
        "",
        "a" * 129,
        "a" * 300,
        "a\x00",
        "a\n",
        "a\nb",
        "a\r",
        "a\x1b[2J",
        "a b",
        "a%2e",
        "a\u202e",
    ),
    *("CON", "con", "nul.mp4", "Aux.x.y", "COM1", "lpt9.txt", "PRN"),
    *("é", unicodedata.normalize("NFD", "é"), "ａ", "\ud800", "$(id)", "`id`", "a;b", "~", "*"),
]


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_id_that_could_mean_something_else_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not allowed") as caught:
        check_id(value)
    assert len(str(caught.value)) < 400
    row = {"video_id": value, "path": "a.mp4"}
    (tmp_path / "l.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=r"l\.jsonl, line 1: "):
        list_videos(tmp_path / "l.jsonl")


def test_ids_of_youtube_and_of_datasets_are_fine() -> None:
    for value in ("-5nuDGvUkhI", "_xYz", "NUsG9BgSes0_210.0_360.0", "console", "com", "a" * 128):
        assert check_id(value) == value


def listed(tmp_path: Path, *rows: dict[str, object]) -> None:
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    list_videos(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"video_id": "Video", "path": "a.mp4"},
            r"'Video' is given twice; line 1 .* the same video",
        ),
        (
            {"video_id": "Video", "path": "b.mp4"},
            r"'Video' is given twice; line 1 .* another video",
        ),
        (
            {"video_id": "video", "path": "b.mp4"},
            r"'Video' .* 'video' .* differ in upper and lower",
        ),
        ({"video_id": "b", "path": "http://10.0.0.1/b.mp4"}, "is a URL; .* download it first"),
        ({"video_id": "b", "path": "file:///etc/passwd"}, "is a URL"),
        ({"video_id": "b", "path": "concat:/etc/passwd|a.mp4"}, "is a URL"),
        ({"video_id": "b", "path": "a\u0000.mp4"}, "control characters"),
        ({"video_id": "b", "path": "a\n.mp4"}, "control characters"),
        ({"video_id": "b", "path": "a" * 5000}, "more than 4096"),
        ({"video_id": "b", "path": "b.mp4", "start_s": 1e400}, "must be seconds|not a number"),
    ],
)
def test_a_list_with_twins_or_paths_that_are_none_is_refused(
    second: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        listed(tmp_path, {"video_id": "Video", "path": "a.mp4"}, second)


def test_files_of_a_folder_whose_names_are_twins_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Video.mp4").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "video.mp4").touch()
    with pytest.raises(UsageError, match="differ in upper and lower case only"):
        list_videos(tmp_path)


def test_a_windows_path_with_a_colon_and_a_name_with_one_are_paths(tmp_path: Path) -> None:
    listed(tmp_path, {"video_id": "a", "path": "10:30.mp4"}, {"video_id": "b", "path": "C:/b.mp4"})


def test_settings_of_transformers_may_hold_its_number_for_no_limit_and_no_longer_one() -> None:
    text = f'{{"model_max_length": {int(1e30)}}}'
    with pytest.raises(ValueError, match="more than 19 digits"):
        strict_json(text)
    assert strict_json(text, digits=DIGITS_OF_SETTINGS) == {"model_max_length": int(1e30)}
    for longer in ("1" * 32, "-" + "9" * 5000):
        with pytest.raises(ValueError, match="more than 31 digits"):
            strict_json(f"[{longer}]", digits=DIGITS_OF_SETTINGS)
    with pytest.raises(ValueError, match="NaN is not a number"):
        strict_json(f"[{int(1e30)}, NaN]", digits=DIGITS_OF_SETTINGS)
