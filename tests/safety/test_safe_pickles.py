"""Pickles as data: nothing in them is run, whatever trick they use."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.annotations.gebd import GebdVideo, read_gebd
from data.errors import UsageError
from data.pickles import read_pickle
from pipeline.events.evaluate import Truth, read_truth

VIDEO = {
    "num_frames": 250,
    "path_video": "x/a.mp4",
    "fps": 25.0,
    "video_duration": 10.0,
    "f1_consis": [0.5, np.float64(0.75)],
    "f1_consis_avg": np.float64(0.625),
    "substages_myframeidx": [[50], [100, 25]],
    "substages_timestamps": [[2.0], [4, 1.0]],
}


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_gebd_file_is_read_from_every_protocol(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "k400_mr345_val_min_change_duration0.3.pkl"
    path.write_bytes(pickle.dumps({"a": VIDEO}, protocol=protocol))
    assert read_gebd(path) == {"a": GebdVideo(10.0, ((2.0,), (1.0, 4.0)), 0.625)}


def test_the_same_as_json_gives_the_same_and_feeds_the_scores(tmp_path: Path) -> None:
    unsure = VIDEO | {"f1_consis_avg": 0.2}
    plain = json.dumps({"a": VIDEO, "b": unsure}, default=float)
    (tmp_path / "gebd.json").write_text(plain)
    (tmp_path / "gebd.pkl").write_bytes(pickle.dumps({"a": VIDEO, "b": unsure}))
    assert read_gebd(tmp_path / "gebd.json") == read_gebd(tmp_path / "gebd.pkl")
    # the challenge leaves out videos whose annotators agree too little
    assert read_truth(tmp_path / "gebd.pkl") == {"a": Truth(10.0, ((2.0,), (1.0, 4.0)))}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_gebd_file_with_code_in_it_is_refused_and_runs_nothing(
    protocol: int, tmp_path: Path
) -> None:
    folder = tmp_path / "harmed"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"a": VIDEO | {"fps": Harm(folder)}}, protocol=protocol))
    with pytest.raises(
        UsageError, match=r"evil\.pkl' is refused: the pickle asks for posix\.mkdir"
    ):
        read_gebd(path)
    assert not folder.exists()


def test_boundaries_of_ones_own_as_json_are_told_to_be_jsonl(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text('[{"vid": "a", "duration": 10.0, "boundaries": [5.0]}]')
    with pytest.raises(UsageError, match=r"boundaries of your own are lines .* \.jsonl file"):
        read_gebd(tmp_path / "truth.json")


def test_plain_data_allows_no_name_at_all() -> None:
    with pytest.raises(UsageError, match=r"would build objects or run code .* Nothing was run"):
        read_pickle(pickle.dumps(np.float64(1)), "x.pkl")


LONG = struct.pack("<Q", 1 << 60)
NAMED = b"cnumpy.core.multiarray\nscalar\n"

TRICKS = {
    "REDUCE": b"cos\nsystem\n(X\x04\x00\x00\x00true" + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "INST": b"(X\x04\x00\x00\x00trueios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "NEWOBJ": b"\x80\x02cbuiltins\nlist\n)\x81.",
    "EXT1": b"\x82\x01.",
    "PERSID": b"Pos.system\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x12core.os.system.name\x93.",
    "BUILD on a function of ours": NAMED + b"}X\x05\x00\x00\x00_makeNsb.",
    "BUILD with slots": NAMED + b"N}X\x05\x00\x00\x00_makeNs\x86b.",
    "a call of the array class": b"cnumpy\nndarray\n(I1000000000000\ntR.",
    "bytes(10**12)": NAMED + b"(cnumpy\ndtype\n(X\x02\x00\x00\x00u1tRI1000000000000\ntR.",
    "an object dtype": NAMED + b"(cnumpy\ndtype\n(X\x02\x00\x00\x00O8tRC\x0812345678tR.",
    "memo bomb": b"\x80\x04]r\xff\xff\xff\x7f.",
    "memo bomb in text": b"]p2147483647\n.",
    "frame of 2^60 bytes": b"\x80\x04\x95" + LONG + b"N.",
    "bytes of 2^60": b"\x80\x04\x8e" + LONG + b"N.",
    "text of 2^60": b"\x80\x04\x8d" + LONG + b"N.",
    "int of 2^31 bytes": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "int of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "nothing": b"",
    "no stop": b"\x80\x04N",
    "empty stack": b"0.",
    "unknown instruction": b"\xff.",
    "unknown memo": b"h\x05.",
    "unhashable key": b"}]Ns.",
    "not a pickle": b"hello, world",
}


@pytest.mark.parametrize("numpy_values", [False, True])
@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick_of_the_protocol_is_refused_with_a_sentence(
    trick: str, numpy_values: bool
) -> None:
    with pytest.raises(UsageError, match=r"'x\.pkl' is (refused|not a whole pickle)"):
        read_pickle(TRICKS[trick], "x.pkl", numpy_values=numpy_values)


def test_a_string_that_becomes_bytes_a_million_times_is_counted() -> None:
    encode = b"c_codecs\nencode\nq\x00X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x01"
    again = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R"
    content = b"\x80\x02" + encode + b"00](" + again * 1000 + b"e."
    with pytest.raises(UsageError, match="means more bytes than it has"):
        read_pickle(content, "x.pkl", numpy_values=True)


def test_shared_lists_that_unfold_to_billions_are_counted_and_deep_ones_refused(
    tmp_path: Path,
) -> None:
    times = [float(each) for each in range(10_000)]
    many = {f"v{each}": VIDEO | {"substages_timestamps": [times] * 64} for each in range(64)}
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(many))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match=r"more than 5,000,000 boundaries"):
        read_gebd(path)
    path.write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(UsageError, match="holds no videos"):
        read_gebd(path)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("../a", {}, "video id '../a' is not allowed"),
        (7, {}, "its id is not a string"),
        ("a", {"video_duration": float("nan")}, "'video_duration' must be numbers from 0"),
        ("a", {"video_duration": 10**400}, "'video_duration' must be numbers from 0"),
        ("a", {"video_duration": 0}, "'video_duration' must be above 0"),
        ("a", {"f1_consis_avg": "0.5"}, "'f1_consis_avg' must be numbers"),
        ("a", {"substages_timestamps": []}, "one list of seconds for each of up to 64"),
        ("a", {"substages_timestamps": [[True]]}, "must be numbers .* got True"),
        ("a", {"substages_timestamps": [[0.0] * 10_001]}, "at most 10,000 numbers"),
        ("a", {"substages_timestamps": [[{"start_time": 1}]]}, "raw release.*prepare_k400_release"),
    ],
)
def test_a_gebd_video_that_is_not_one_is_named(
    key: Any, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({key: VIDEO | change}))
    with pytest.raises(UsageError, match=rf"x\.pkl, video .*{message}"):
        read_gebd(tmp_path / "x.pkl")
