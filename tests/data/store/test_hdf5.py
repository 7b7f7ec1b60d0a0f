"""What a stranger may put into an HDF5 file (specs/pipeline_and_shards.md §5.4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest

from data.errors import GoneError, StoreError
from data.store.hdf5 import OpenFile, read_layout

SECRET = b"the content of another file"


def _external_link(file: h5py.File, other: Path) -> None:
    file["x"] = h5py.ExternalLink(str(other), "/x")


def _soft_link(file: h5py.File, other: Path) -> None:
    del other
    file["real"] = np.zeros(3)
    file["x"] = h5py.SoftLink("/real")


def _second_hard_link(file: h5py.File, other: Path) -> None:
    del other
    file["real"] = np.zeros(3)
    file["x"] = file["real"]


def _endless_groups(file: h5py.File, other: Path) -> None:
    del other
    group = file.create_group("x")
    for number in range(200):
        group[str(number)] = group


def _external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("x", (len(SECRET),), "u1", external=[(str(other), 0, len(SECRET))])


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "x", (3,))
    file.create_virtual_dataset("x", layout)


def _chunked(file: h5py.File, other: Path) -> None:
    del other
    file.create_dataset("x", data=np.zeros(100), chunks=(10,))


def _filtered(file: h5py.File, other: Path) -> None:
    del other
    file.create_dataset("x", data=np.zeros(100), compression="gzip")


def _enormous(file: h5py.File, other: Path) -> None:
    del other
    file.create_dataset("x", (10**12,), "f4")


def _variable_length(file: h5py.File, other: Path) -> None:
    del other
    file.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype())


def _compound(file: h5py.File, other: Path) -> None:
    del other
    file["x"] = np.zeros(3, [("a", "f4"), ("b", "f4")])


def _big_endian(file: h5py.File, other: Path) -> None:
    del other
    file["x"] = np.zeros(3, ">f4")


def _scalar(file: h5py.File, other: Path) -> None:
    del other
    file["x"] = 3.0


def _named_type(file: h5py.File, other: Path) -> None:
    del other
    file["x"] = np.dtype("f4")


def _long_attribute(file: h5py.File, other: Path) -> None:
    del other
    file.attrs["x"] = np.zeros(1000)


def _text_attribute(file: h5py.File, other: Path) -> None:
    del other
    file.attrs["x"] = "variable length"


Build = Callable[[h5py.File, Path], None]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_external_link, "soft or external link"),
        (_soft_link, "soft or external link"),
        (_second_hard_link, "second link"),
        (_endless_groups, "second link|too many members"),
        (_external_storage, "kept in another file"),
        (_virtual, "virtual"),
        (_chunked, "chunked"),
        (_filtered, "filtered"),
        (_enormous, "claims 4000000000000 bytes"),
        (_variable_length, "has type object"),
        (_compound, "has type"),
        (_big_endian, "has type >f4"),
        (_scalar, "has type float64"),
        (_named_type, "neither a group nor an array"),
        (_long_attribute, "attribute 'x'"),
        (_text_attribute, "attribute 'x'"),
    ],
)
def test_what_is_not_a_plain_array_is_refused(build: Build, reason: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(SECRET)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        build(file, tmp_path / "other")
    with pytest.raises(StoreError, match=rf"x\.h5 .*({reason})"):
        read_layout(tmp_path / "x.h5")


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", SECRET * 1000])
def test_a_file_that_is_not_hdf5_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.h5 is not a readable HDF5 file"):
        read_layout(tmp_path / "x.h5")


def test_plain_arrays_are_found_and_read_by_place(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["size"] = np.int64(7)
        file["a/b"] = np.arange(12, dtype=np.float16).reshape(4, 3)
        file["empty"] = np.zeros((0, 5), np.uint8)
    layout = read_layout(path)
    assert layout.attributes == {"size": 7}
    file = OpenFile(path)
    np.testing.assert_array_equal(file.read(layout.extents["a/b"], 1, 3), [[3, 4, 5], [6, 7, 8]])
    assert file.read(layout.extents["empty"]).shape == (0, 5)


def test_a_file_that_was_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(1000.0)
    layout, file = read_layout(path), OpenFile(path)
    with path.open("r+b") as cut:
        cut.truncate(4000)
    with pytest.raises(StoreError, match="ends too early"):
        file.read(layout.extents["a"])


def test_a_file_that_is_taken_away_while_it_is_opened_is_gone_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(b"anything")

    def taken_away(*_: object, **__: object) -> NoReturn:
        path.unlink()
        raise OSError("Unable to synchronously open file (can't retrieve stat info for file)")

    monkeypatch.setattr("h5py.File", taken_away)
    with pytest.raises(GoneError):
        read_layout(path)
