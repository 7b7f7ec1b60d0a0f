from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import StoreError, UsageError
from data.grid import Grid
from data.store import ItemKey, Recipe, Row, Schema, StreamSpec
from data.store.hdf5 import read_layout
from data.store.reader import FilePool
from data.store.shard import encode_shard, index_crc32, is_table
from data.store.shard_reader import Shard

MakeRow = Callable[..., Row]


def _open(tmp_path: Path, content: bytes) -> Shard:
    path = tmp_path / "shard.h5"
    path.write_bytes(content)
    return Shard(path, FilePool())


def _edited(tmp_path: Path, content: bytes, edit: Callable[[h5py.File], None]) -> Path:
    path = tmp_path / "edited.h5"
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def test_rows_come_back_as_they_went_in(
    recipe: Recipe, make_row: MakeRow, assert_same_row: Callable[[Row, Row], None], tmp_path: Path
) -> None:
    rows = [make_row(f"v{n}", clips=n + 1) for n in range(5)]
    shard = _open(tmp_path, encode_shard(recipe, rows))
    assert shard.keys == [row.key for row in rows]
    assert shard.recipe.id == recipe.id
    for index, row in enumerate(rows):
        assert_same_row(shard.row(index), row)
        np.testing.assert_array_equal(shard.array(index, "clip"), row["clip"])
        shard.check(index)


def test_an_item_may_have_no_texts_and_no_rows(
    recipe: Recipe, make_row: MakeRow, assert_same_row: Callable[[Row, Row], None], tmp_path: Path
) -> None:
    empty = replace(_with(make_row("v2"), "spans_s", np.zeros((0, 2))), texts={"caption": []})
    rows = [make_row("v1"), empty, make_row("v3")]
    shard = _open(tmp_path, encode_shard(recipe, rows))
    for index, row in enumerate(rows):
        assert_same_row(shard.row(index), row)


def test_a_query_needs_no_grid_and_an_empty_array_and_shard_are_fine(tmp_path: Path) -> None:
    recipe = Recipe("queries", 1, {}, {}, Schema({"tokens": StreamSpec((4,), "float32", "item")}))
    row = Row(ItemKey("q-1", "0" * 64), None, {"tokens": np.zeros((0, 4), np.float32)})
    shard = _open(tmp_path, encode_shard(recipe, [row]))
    assert shard.row(0).grid is None
    assert shard.row(0)["tokens"].shape == (0, 4)
    assert np.isnan(shard.clip_len_s)
    assert _open(tmp_path, encode_shard(recipe, [])).keys == []


def test_the_same_rows_give_the_same_bytes_and_other_order_gives_others(
    recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{n}") for n in range(3)]
    shuffled_schema = Schema(dict(reversed(recipe.schema.arrays.items())), recipe.schema.texts)
    first = encode_shard(recipe, rows)
    assert encode_shard(recipe, rows) == first
    assert encode_shard(replace(recipe, schema=shuffled_schema), rows) == first
    assert encode_shard(recipe, rows[::-1]) != first


_OTHER_PROCESS = """
import hashlib, sys, time, numpy as np
from data.grid import Grid
from data.store import *
from data.store.shard import encode_shard
time.sleep(1.1 * int(sys.argv[1]))
schema = Schema({"clip": StreamSpec((8,), "float16", "clip")}, ("caption",))
arrays = {"clip": np.arange(48, dtype=np.float16).reshape(6, 8)}
key, grid = ItemKey("v", "0" * 64), Grid(12.0, 2.0)
row = Row(key, grid, arrays, {"caption": ["é"]}, {"b": 1, "a": 2})
shard = encode_shard(Recipe("clip", 1, {}, {}, schema), [row])
sys.stdout.write(hashlib.sha256(shard).hexdigest())
"""


def test_the_same_rows_give_the_same_bytes_in_another_process_at_another_second() -> None:
    def build(delay: str, seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, delay],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert len(build("0", "1")) == 64
    assert build("0", "1") == build("1", "2")


def test_a_shard_says_itself_what_is_in_it(
    recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(encode_shard(recipe, [make_row("v1", clips=4), make_row("v2", clips=2)]))
    with h5py.File(path) as file:
        assert file.attrs["stage"] == b"clip"
        assert file.attrs["recipe_id"].decode() == recipe.id
        assert file.attrs["clip_len_s"] == 2.0
        assert file["items/ids"][:].tobytes() == b"v1v2"
        np.testing.assert_array_equal(file["offsets/clip"], [0, 4, 6])
        np.testing.assert_array_equal(file["timestamps"][3:5], [[6.0, 8.0], [0.0, 2.0]])
        for name in ("arrays/clip", "texts/caption/bytes", "items/facts"):
            assert file[name].chunks is None
            assert file[name].compression is None


def _with(row: Row, name: str, array: NDArray[Any]) -> Row:
    return replace(row, arrays={**row.arrays, name: array})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_item_and_stream(
    value: float, recipe: Recipe, make_row: MakeRow
) -> None:
    row = make_row("v7")
    row["clip"][3, 2] = value
    with pytest.raises(StoreError, match=r"item 'v7', stream 'clip': 1 values are not finite"):
        encode_shard(recipe, [make_row("v1"), row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: _with(r, "clip", r["clip"][:5]), "has 5 rows on a grid of 6 clips"),
        (lambda r: _with(r, "clip", r["clip"].astype("f4")), "type float32, declared.*float16"),
        (lambda r: _with(r, "clip", r["clip"][:, :7]), r"shape \(6, 7\)"),
        (lambda r: _with(r, "clip", np.float16(3)), r"shape \(\)"),
        (lambda r: _with(r, "other", r["clip"]), r"has the arrays .*'other'.*declares"),
        (lambda r: replace(r, arrays={}), r"has the arrays \[\]"),
        (lambda r: replace(r, texts={}), r"has the texts \[\]"),
        (lambda r: replace(r, grid=None), "per clip, but the row has no grid"),
        (lambda r: replace(r, facts={"x": float("nan")}), "facts or texts cannot be written"),
        (lambda r: replace(r, facts={"x": object()}), "facts or texts cannot be written"),
        (lambda r: replace(r, texts={"caption": ["\ud800"]}), "facts or texts cannot be written"),
        (lambda r: replace(r, key=ItemKey("v", "abc")), "content must be 64 hex"),
        (lambda r: replace(r, key=ItemKey("v", "0" * 64, 2, 2)), "part 2 of 2"),
    ],
)
def test_a_row_that_its_stage_did_not_declare_is_refused(
    change: Callable[[Row], Row], message: str, recipe: Recipe, make_row: MakeRow
) -> None:
    with pytest.raises(StoreError, match=message):
        encode_shard(recipe, [change(make_row("v"))])


def test_an_id_that_means_a_path_is_refused_when_written(recipe: Recipe, make_row: MakeRow) -> None:
    row = replace(make_row("v"), key=ItemKey("../v", "0" * 64))
    with pytest.raises(UsageError, match=r"item id '\.\./v' is not allowed"):
        encode_shard(recipe, [row])


def test_rows_of_two_clip_lengths_do_not_share_a_shard(recipe: Recipe, make_row: MakeRow) -> None:
    other = replace(make_row("w"), grid=Grid(6.0, 1.0))
    with pytest.raises(StoreError, match=r"clips of \[1.0, 2.0\] seconds"):
        encode_shard(recipe, [make_row("v"), other])


def _all_readable(path: Path) -> list[Row]:
    shard = Shard(path, FilePool())
    return [shard.row(index) for index in range(len(shard.keys))]


def test_a_flipped_byte_never_reaches_who_reads(
    recipe: Recipe, make_row: MakeRow, assert_same_row: Callable[[Row, Row], None], tmp_path: Path
) -> None:
    rows = [make_row(f"v{n}") for n in range(4)]
    whole = encode_shard(recipe, rows)
    rng = np.random.default_rng(0)
    path = tmp_path / "shard.h5"
    refused = 0
    for place in [*rng.integers(len(whole), size=300), *range(300)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = _all_readable(path)
        except StoreError:
            refused += 1
            continue
        for one, other in zip(found, rows, strict=True):  # padding, or a field nobody reads
            assert_same_row(one, other)
    assert refused > 150


@pytest.mark.parametrize("dataset", ["arrays/clip", "arrays/spans_s", "texts/caption/bytes"])
def test_damaged_rows_are_named_on_the_first_read_and_do_not_touch_others(
    dataset: str, recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    content = encode_shard(recipe, [make_row("v1"), make_row("v2")])

    def edit(file: h5py.File) -> None:
        last = file[dataset][-1]
        file[dataset][-1] = last + 1

    shard = Shard(_edited(tmp_path, content, edit), FilePool())
    shard.row(0)
    for _ in range(2):
        with pytest.raises(
            StoreError, match=r"edited.h5 has damaged rows of 'v2'.*pipeline repair"
        ):
            shard.array(1, "clip")


def test_damaged_timestamps_are_found_by_the_full_check(
    recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    def edit(file: h5py.File) -> None:
        file["timestamps"][0] = [0.0, 3.0]

    path = _edited(tmp_path, encode_shard(recipe, [make_row("v1")]), edit)
    with pytest.raises(StoreError, match="damaged timestamps of 'v1'"):
        Shard(path, FilePool()).check(0)


@pytest.mark.parametrize(
    "dataset",
    ["items/ids", "items/content", "items/crc32", "items/facts", "offsets/clip", "recipe"],
)
def test_a_damaged_item_table_is_found_when_the_shard_is_opened(
    dataset: str, recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    def edit(file: h5py.File) -> None:
        file[dataset][-1] = file[dataset][-1] ^ 1

    path = _edited(tmp_path, encode_shard(recipe, [make_row("v1")]), edit)
    with pytest.raises(StoreError, match="damaged item table"):
        Shard(path, FilePool())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_shard_that_is_cut_anywhere_is_refused(
    share: float, recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    content = encode_shard(recipe, [make_row(f"v{n}") for n in range(4)])
    with pytest.raises(StoreError, match=r"shard\.h5"):
        _open(tmp_path, content[: int(share * len(content))])


def test_another_schema_version_is_named_with_the_one_that_is_read(
    recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    def edit(file: h5py.File) -> None:
        file.attrs["schema_version"] = np.int64(7)

    path = _edited(tmp_path, encode_shard(recipe, [make_row("v1")]), edit)
    with pytest.raises(StoreError, match="has schema version 7; this program reads version 1"):
        Shard(path, FilePool())


def test_hdf5_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with pytest.raises(StoreError, match="is not a shard of a store"):
        Shard(tmp_path / "x.h5", FilePool())


def _forge(path: Path) -> None:
    """Make the CRC of the item table right again, as somebody who means harm would."""
    layout, pool = read_layout(path), FilePool()
    small = {name: extent for name, extent in layout.extents.items() if is_table(name)}
    tables = {name: pool.get(path).read(extent) for name, extent in small.items()}
    large = {
        name: (extent.shape, extent.dtype.str)
        for name, extent in layout.extents.items()
        if name not in small
    }
    with h5py.File(path, "r+") as file:
        file.attrs["index_crc32"] = np.int64(index_crc32(layout.attributes, tables, large))


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        ("items/ids", np.frombuffer(b"/1v2", "u1"), "forbidden id"),
        ("items/ids", np.frombuffer(b"v1v1", "u1"), "an item twice"),
        ("items/id_offsets", [0, 5, 4], "offsets out of bounds"),
        ("items/id_offsets", [1, 2, 4], "offsets out of bounds"),
        ("offsets/clip", [0, -6, 12], "offsets out of bounds"),
        ("offsets/clip", [0, 6, 2**62], "offsets out of bounds"),
        ("offsets/clip", [0, 7, 12], "another number of rows of 'clip' than clips"),
        ("offsets/spans_s", [0, 5, 4], "offsets out of bounds"),
        ("texts/caption/item_offsets", [0, 9, 6], "offsets out of bounds"),
        ("texts/caption/string_offsets", [0, 99, 9, 9, 9, 9, 9], "offsets out of bounds"),
        ("items/part", [0, -1], "impossible parts"),
        ("items/parts", [1, 0], "impossible parts"),
        ("items/duration_s", [12.0, np.inf], "impossible durations"),
        ("items/duration_s", [12.0, -3.0], "impossible durations"),
        ("items/duration_s", [12.0, 1e300], "timestamps amiss"),
        ("items/clip_offsets", [0, 5, 12], "timestamps amiss"),
        ("items/facts", None, "unreadable facts"),
        ("recipe", None, "unreadable recipe"),
    ],
)
def test_a_forged_shard_is_refused_with_a_sentence(
    dataset: str, value: Any, message: str, recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    def edit(file: h5py.File) -> None:
        file[dataset][:] = ord("[") if value is None else value

    content = encode_shard(recipe, [make_row("v1"), make_row("v2")])
    path = _edited(tmp_path, content, edit)
    _forge(path)
    with pytest.raises(StoreError, match=rf"edited\.h5 .*{message}"):
        Shard(path, FilePool()).facts(0)


def test_a_shard_with_other_arrays_than_its_recipe_declares_is_refused(
    recipe: Recipe, make_row: MakeRow, tmp_path: Path
) -> None:
    def edit(file: h5py.File) -> None:
        file["arrays/more"] = np.zeros(3)

    path = _edited(tmp_path, encode_shard(recipe, [make_row("v1")]), edit)
    _forge(path)
    with pytest.raises(StoreError, match="other arrays than its recipe declares"):
        Shard(path, FilePool())
