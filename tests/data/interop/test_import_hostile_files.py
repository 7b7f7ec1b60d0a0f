"""Files of strangers: torn, huge, pickled, linking elsewhere. Each costs only itself."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import new_store, npy_folder, npz_folder, rows

from data.errors import InputError, UsageError
from data.interop import ImportOptions, import_streams, open_source
from data.interop.arrays import MOST_BYTES, REASONS, NpyPart, NpzPart, rows_of


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def claiming(shape: str, descr: str = "<f4") -> bytes:
    """A npy file that claims a shape and has a few numbers."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(64)


WRONG_NPY: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "unreadable"),
    "text": (lambda _: b"features of this video\n" * 9, "unreadable"),
    "torn": (lambda _: npy_bytes(rows(50))[:400], "unreadable"),
    "pickle": (lambda path: pickle.dumps(Canary(path / "canary")), "unreadable"),
    "objects": (lambda path: objects(path / "canary"), "pickled"),
    "text array": (lambda _: npy_bytes(np.array([["a", "b"]])), "type"),
    "whole numbers": (lambda _: npy_bytes(np.ones((3, 6), np.int64)), "type"),
    "records": (lambda _: npy_bytes(np.zeros(3, [("a", "f4")])), "type"),
    "one terabyte": (lambda _: claiming("(200000000, 1024)"), "too-large"),
    "more than there is": (lambda _: claiming("(100, 1024)"), "unreadable"),
    "negative": (lambda _: claiming("(-3, 1024)"), "shape"),
    "code as shape": (lambda _: claiming("__import__('os').getpid()"), "unreadable"),
    "one number": (lambda _: npy_bytes(np.float32(3.0)), "shape"),
    "one row without rows": (lambda _: npy_bytes(np.ones(6, np.float32)), "shape"),
    "no rows": (lambda _: npy_bytes(np.ones((0, 6), np.float32)), "shape"),
    "pictures": (lambda _: npy_bytes(np.ones((4, 6, 7, 7), np.float32)), "shape"),
    "nan": (lambda _: npy_bytes(np.full((3, 6), np.nan, np.float32)), "not-finite"),
    "other width": (lambda _: npy_bytes(rows(3, width=5)), "width"),
}


def objects(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Canary(canary)] * 3, object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", WRONG_NPY)
def test_a_wrong_file_is_refused_and_the_others_are_stored(tmp_path: Path, kind: str) -> None:
    make, reason = WRONG_NPY[kind]
    folder = npy_folder(tmp_path / "f", {"good": rows(3), "too": rows(4)})
    (folder / "wrong.npy").write_bytes(make(tmp_path))
    store = new_store(tmp_path / "s")
    report = import_streams(store, open_source(folder), ImportOptions("clip"))
    assert [(each.id, each.reason) for each in report.refused] == [("wrong", reason)]
    assert reason in REASONS
    assert store.reader("clip").ids() == ["good", "too"]
    (failure,) = store.failures("clip").read().values()
    assert (failure.reason, failure.message) == (reason, report.refused[0].told)
    assert not (tmp_path / "canary").exists()
    assert store.verify() == []


def test_a_second_import_does_not_note_the_same_fault_again(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", {"good": rows(3)})
    (folder / "wrong.npy").write_bytes(b"no array")
    store = new_store(tmp_path / "s")
    for _ in range(2):
        report = import_streams(store, open_source(folder), ImportOptions("clip"))
    log = store.folder("clip") / "failures.jsonl"
    assert len(log.read_text().splitlines()) == 1
    assert [each.outcome for each in report.lines] == ["present", "refused"]


def test_a_folder_of_wrong_files_only_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.npy").write_bytes(b"no array")
    store = new_store(tmp_path / "s")
    with pytest.raises(UsageError, match=r"none of the 1 files can be imported.*a.npy is no npy"):
        import_streams(store, open_source(tmp_path / "f"), ImportOptions("clip"))
    assert store.stages() == []


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", claiming("(16000, 1024)") + bytes(16000 * 4096 - 64))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(InputError, match="claims 65,536,128 bytes in") as caught:
        NpzPart(bomb, "features").look()
    assert caught.value.reason == "bomb"


def test_a_npz_whose_array_is_longer_than_its_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", claiming("(100, 1024)"))
    with pytest.raises(InputError, match="claims 409,600 bytes and has 64"):
        NpzPart(path, "features").read()


def test_a_flipped_bit_in_a_npz_is_found(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path, {"a": rows(50)})
    raw = bytearray((folder / "a.npz").read_bytes())
    raw[700] ^= 1
    (folder / "a.npz").write_bytes(raw)
    with pytest.raises(InputError, match=r"a.npz:features .*CRC"):
        NpzPart(folder / "a.npz", "features").read()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_mutated_npz_files_are_read_or_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    """200 files with eight random bytes each: no other error, and no wrong number unnoticed."""
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    write(path, features=rows(20))
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), 8):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            read = NpzPart(path, "features").read()
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(read, rows(20))
    assert refused > 100


def test_a_npz_without_the_array_names_those_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", feats=rows(2), mask=rows(2))
    with pytest.raises(InputError, match="has no 'features'; in it: feats, mask"):
        NpzPart(tmp_path / "a.npz", "features").look()


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"a.npy is a pipe"):
        NpyPart(tmp_path / "a.npy").look()


def test_headers_of_python_2_are_read(tmp_path: Path) -> None:
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
    (tmp_path / "a.npy").write_bytes(raw + np.arange(6, dtype="<f4").tobytes())
    np.testing.assert_array_equal(NpyPart(tmp_path / "a.npy").read(), np.arange(6).reshape(2, 3))


def test_other_byte_orders_and_orders_of_axes_are_read(tmp_path: Path) -> None:
    big, fortran = rows(4).astype(">f4"), np.asfortranarray(rows(5))
    folder = npy_folder(tmp_path / "f", {"big": big, "fortran": fortran})
    store = new_store(tmp_path / "s")
    import_streams(store, open_source(folder), ImportOptions("clip"))
    np.testing.assert_array_equal(store.reader("clip").array("big", "clip"), rows(4))
    np.testing.assert_array_equal(store.reader("clip").array("fortran", "clip"), rows(5))


def test_the_limit_is_that_of_one_array() -> None:
    assert MOST_BYTES == 2**30
    assert rows_of((1, 7, 512)) == rows_of((7, 512)) == rows_of((7, 512, 1, 1)) == (7, 512)


# --- HDF5


def hostile_h5(tmp_path: Path) -> Path:
    """Links, other files' bytes, a virtual array, a terabyte of nothing; and one good array."""
    (tmp_path / "secret.bin").write_bytes(np.ones(18, "<f4").tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["features"] = rows(3)
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        file["good"] = rows(3)
        file["soft"] = h5py.SoftLink("/good")
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/features")
        file.create_dataset(
            "secret", (3, 6), "<f4", external=[(str(tmp_path / "secret.bin"), 0, 72)]
        )
        layout = h5py.VirtualLayout((3, 6), "<f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (3, 6))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("terabyte", (2**28, 1024), "<f4", chunks=(64, 1024))
        file.create_dataset("bomb", (16_000, 1024), "<f4", chunks=(64, 1024), compression="gzip")
        with_plugin(file, "plugin")
        file["words"] = np.array([b"a", b"b"])
        file.create_group("nothing")
    return path


def with_plugin(file: h5py.File, name: str) -> None:
    """An array that names Zstandard, number 32015 of The HDF Group's list: a plug-in, code."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3, 6))
    creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((3, 6))
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, creation)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, rows(3))


def test_reading_an_array_looks_at_it_again(tmp_path: Path) -> None:
    """A file may change between the look and the reading."""
    (bomb,) = (each for each in open_source(hostile_h5(tmp_path)).entries if each.id == "bomb")
    with pytest.raises(InputError) as caught:
        bomb.parts[0].read()
    assert caught.value.reason == "bomb"


def test_only_plain_arrays_of_the_file_itself_are_read(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    report = import_streams(store, open_source(hostile_h5(tmp_path)), ImportOptions("c3d"))
    assert {each.id: each.reason for each in report.refused} == {
        "soft": "no-array",
        "elsewhere": "no-array",
        "secret": "no-array",
        "virtual": "no-array",
        "terabyte": "too-large",
        "bomb": "bomb",
        "plugin": "unreadable",
        "words": "type",
        "nothing": "no-array",
    }
    assert store.reader("c3d").ids() == ["good"]


def test_a_torn_h5_file_is_an_error_of_usage(tmp_path: Path) -> None:
    path = tmp_path / "all.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UsageError, match="is no HDF5 file"):
        open_source(path)


def test_names_that_are_no_ids_are_left_out_and_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["good"], file["bad id"], file["con"] = rows(3), rows(3), rows(3)
    source = open_source(tmp_path / "all.h5")
    assert [each.id for each in source.entries] == ["good"]
    assert "is not allowed" in source.left_out["bad id"]
    assert "device on Windows" in source.left_out["con"]
