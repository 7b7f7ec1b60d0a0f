"""What a store promises holds wherever it is: a folder, fsspec's memory, a local S3 server; and on
a file system that fails, tears and remembers."""

from __future__ import annotations

import base64
import hashlib
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import unreliable
from one_shard import place_of as write
from unreliable import Unreliable

from data.errors import DamageError, GoneError, StoreError, UsageError
from data.store import (
    CatalogueEntry,
    Failure,
    ItemKey,
    Recipe,
    Row,
    Schema,
    Store,
    StreamSpec,
    remote,
)
from data.store.files import (
    append_records,
    atomic_write,
    change_file,
    list_folder,
    move,
    read_bytes,
    read_records,
    remove,
    sha256_of,
    size_of,
)
from data.store.place import Place, place_of, text_of
from data.store.shard import encode_shard
from data.video.types import VideoFacts

MakeRow = Callable[..., Row]
FACTS = VideoFacts(12.0, 25.0, 300, 64, 48, 0, "h264", "yuv420p", 1234, False, 0)


@pytest.fixture
def place(every_place: Place) -> Place:
    return every_place


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Iterator[Place]:
    """A folder of a file system without whole puts and conditions, as sftp is; no waiting."""
    unreliable.register()
    monkeypatch.setattr(remote, "_WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "_SETTLE_S", 0.0)
    Unreliable.clear()
    yield place_of("unreliable://folder/store")
    Unreliable.clear()


def test_files_are_written_listed_moved_and_removed(place: Place) -> None:
    assert list_folder(place) == []
    assert size_of(place / "a.txt") is None
    atomic_write(place / "a.txt", b"old")
    atomic_write(place / "a.txt", b"new content")
    atomic_write(place / "deep" / "er" / "b.txt", b"b")
    (file, folder) = list_folder(place)
    assert (file.name, file.size, file.is_folder) == ("a.txt", 11, False)
    assert file.mtime is not None
    assert file.mtime > 1.7e9
    assert (folder.name, folder.is_folder) == ("deep", True)
    assert sha256_of(place / "a.txt") == (
        "fe32608c9ef5b6cf7e3f946480253ff76f24f4ec0678f3d0f07f9844cbff9601"
    )

    move(place / "a.txt", place / "aside" / "c.txt")
    assert size_of(place / "a.txt") is None
    assert read_bytes(place / "aside" / "c.txt") == b"new content"
    with pytest.raises(FileNotFoundError):
        move(place / "a.txt", place / "aside" / "d.txt")
    for _ in range(2):
        remove(place / "aside" / "c.txt")
        remove(place / "deep")
    assert size_of(place / "deep" / "er" / "b.txt") is None
    with pytest.raises(FileNotFoundError):
        read_bytes(place / "aside" / "c.txt")


def test_records_of_two_writers_are_all_there_and_in_order(place: Place) -> None:
    path = place / "failures.jsonl"
    assert read_records(path) == []

    def add(writer: int) -> None:
        for number in range(8):
            append_records(path, [{"writer": writer, "number": number}])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, range(2)))
    found = read_records(path)
    for writer in range(2):
        numbers = [each["number"] for each in found if each["writer"] == writer]
        assert numbers == list(range(8))
    append_records(path, [{"writer": 3, "number": 0}])
    assert read_records(path)[-1] == {"writer": 3, "number": 0}


def test_records_go_on_where_a_store_was_copied_from_an_object_store(
    memory_place: Place, tmp_path: Path
) -> None:
    append_records(memory_place / "log.jsonl", [{"n": 1}])
    for entry in list_folder(memory_place / "log.jsonl.d"):
        data = read_bytes(memory_place / "log.jsonl.d" / entry.name)
        atomic_write(tmp_path / "log.jsonl.d" / entry.name, data)
    append_records(tmp_path / "log.jsonl", [{"n": 2}])
    assert read_records(tmp_path / "log.jsonl") == [{"n": 1}, {"n": 2}]

    atomic_write(memory_place / "other.jsonl", b'{"n": 1}\n')
    append_records(memory_place / "other.jsonl", [{"n": 2}])
    assert read_records(memory_place / "other.jsonl") == [{"n": 1}, {"n": 2}]


def _count_up(path: Place) -> None:
    for _ in range(6):
        change_file(path, lambda text: str(int(text or b"0") + 1).encode())


def test_changes_of_a_small_file_by_two_processes_are_all_kept(s3_place: Place) -> None:
    jobs = [
        multiprocessing.get_context("fork").Process(target=_count_up, args=(s3_place / "count",))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert int(read_bytes(s3_place / "count")) == 12


def test_a_store_is_made_filled_resumed_and_read_anywhere(
    place: Place, recipe: Recipe, make_row: MakeRow, assert_same_row: Callable[[Row, Row], None]
) -> None:
    rows = [make_row(f"v{n}") for n in range(5)]
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(text_of(place))
    store = Store.open_or_create(text_of(place), dataset="tiny", clip_len_s=2.0)
    write(store, recipe, rows[:3])
    entries = {row.key.id: CatalogueEntry(row.key.id, row.key.content, FACTS) for row in rows}
    for entry in entries.values():
        store.update_catalogue([entry])
    store.failures("clip").record(Failure("clip", rows[4].key, "timeout", "too slow", 3))

    again = pickle.loads(pickle.dumps(Store.open_or_create(place, dataset="tiny", clip_len_s=2)))
    assert again.current == {"clip": recipe.id}
    assert (again.stages(), again.recipes("clip")) == (["clip"], [recipe.id])
    assert again.recipe("clip") == recipe
    assert again.catalogue() == entries
    assert [each.reason for each in again.failures("clip").read().values()] == ["timeout"]
    reader = again.reader("clip")
    missing = {row.key for row in rows} - reader.keys()
    assert missing == {rows[3].key, rows[4].key}
    write(again, recipe, rows[3:])
    reader.refresh()
    reader = pickle.loads(pickle.dumps(reader))
    for row in rows:
        assert_same_row(reader.row(row.key.id), row)
    assert again.verify() == []


def test_the_same_rows_are_not_sent_twice(shaky: Place, recipe: Recipe, make_row: MakeRow) -> None:
    store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
    write(store, recipe, [make_row("v1")])
    with Unreliable.behaving() as calls:
        write(store, recipe, [make_row("v1")])
    assert calls["pipe_file"] == 0


def test_two_jobs_that_make_one_store_share_it(s3_place: Place, recipe: Recipe) -> None:
    first = Store.open_or_create(s3_place, dataset="tiny", clip_len_s=2.0)
    first.set_current({"clip": recipe.id})
    # The second had found nothing when it looked.
    change_file(s3_place / "store.json", lambda there: there or b"a new one")
    assert Store.open(s3_place).current == {"clip": recipe.id}


def _flip(place: Place, offset: int) -> None:
    data = bytearray(read_bytes(place))
    data[offset] ^= 1
    atomic_write(place, bytes(data))


def test_damage_to_rows_is_found_before_one_of_them_is_used(
    place: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(place, dataset="tiny", clip_len_s=2.0)
    shard = write(store, recipe, [make_row("v1", clips=400)])
    _flip(shard, 3 * (size_of(shard) or 0) // 4)
    reader = store.reader("clip")
    with pytest.raises(DamageError, match="no wrong row was used"):
        reader.array("v1", "clip")
    assert {each.kind for each in store.verify()} & {"shard", "item"}


@pytest.mark.parametrize("left", [0, 100, -100])
def test_a_shard_that_was_cut_is_found_when_it_is_opened(
    left: int, place: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(place, dataset="tiny", clip_len_s=2.0)
    shard = write(store, recipe, [make_row("v1")])
    atomic_write(shard, read_bytes(shard)[:left])
    with pytest.raises(DamageError, match="torn"):
        store.reader("clip")
    (problem,) = store.reader("clip", strict=False).problems
    assert shard.name in problem.where


def test_a_shard_that_was_taken_away_is_gone_not_damaged(
    place: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(place, dataset="tiny", clip_len_s=2.0)
    shard = write(store, recipe, [make_row("v1")])
    reader = store.reader("clip")
    remove(shard)
    reader._files = pickle.loads(pickle.dumps(reader._files))
    for each in reader._shards.values():
        each._files = reader._files
        with pytest.raises(GoneError, match="is not there any more"):
            each.array(0, "clip")


# A file system that fails


def _fails_until(count: int, error: Exception) -> unreliable.Fault:
    def fault(call: int, work: unreliable.Call) -> Any:
        if call <= count:
            raise error
        return work()

    return fault


@pytest.mark.parametrize("method", ["pipe_file", "info", "cat_file", "ls", "mv"])
def test_an_error_that_passes_is_not_noticed(
    method: str, shaky: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    with Unreliable.behaving(**{method: _fails_until(3, ConnectionResetError("by peer"))}) as calls:
        store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
        write(store, recipe, [make_row("v1")])
        assert store.reader("clip").array("v1", "clip").shape == (6, 8)
    assert calls[method] > 3


def test_an_error_that_stays_names_the_place_and_leaves_the_old_file(shaky: Place) -> None:
    atomic_write(shaky / "store.json", b"old")
    for method in ("pipe_file", "mv"):
        with (
            Unreliable.behaving(**{method: _fails_until(99, TimeoutError("no answer"))}),
            pytest.raises(
                StoreError, match=r"cannot write unreliable:.*store\.json: TimeoutError: no answer"
            ),
        ):
            atomic_write(shaky / "store.json", b"new")
        assert read_bytes(shaky / "store.json") == b"old"
        assert [each.name for each in list_folder(shaky)] == ["store.json"]


class NoCredentialsError(Exception):
    """As botocore's, which has no base that could be named without botocore."""


@pytest.mark.parametrize("error", [PermissionError("denied"), NoCredentialsError("none found")])
def test_no_permission_is_told_at_once(error: Exception, shaky: Place) -> None:
    with (
        Unreliable.behaving(pipe_file=_fails_until(99, error)) as calls,
        pytest.raises(StoreError, match=rf"{type(error).__name__}: {error}; .*credentials"),
    ):
        atomic_write(shaky / "store.json", b"new")
    assert calls["pipe_file"] == 1


def test_an_upload_that_tears_is_sent_again(
    shaky: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    content = encode_shard(recipe, [make_row("v1")])

    def tear(call: int, work: unreliable.Call) -> None:
        work()
        if call == 1:
            (name,) = (each for each in Unreliable.store if ".tmp-" in each)
            Unreliable.store[name].truncate(100)

    with Unreliable.behaving(pipe_file=tear) as calls:
        atomic_write(shaky / "shard", content)
    assert calls["pipe_file"] == 2
    assert read_bytes(shaky / "shard") == content


def test_an_upload_whose_md5_is_told_and_differs_is_refused(shaky: Place) -> None:
    def wrong_md5(call: int, work: unreliable.Call) -> Any:
        return work() | {"md5Hash": base64.b64encode(bytes(16)).decode()}

    with (
        Unreliable.behaving(info=wrong_md5),
        pytest.raises(StoreError, match="other bytes arrived than were sent"),
    ):
        atomic_write(shaky / "shard", b"bytes")
    assert list_folder(shaky) == []


def test_a_listing_from_before_another_job_wrote_is_not_believed(
    shaky: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
    write(store, recipe, [make_row("v1")])
    reader = store.reader("clip")
    stale = dict(Unreliable.remembered)
    write(store, recipe, [make_row("v2")])
    Unreliable.remembered.update(stale)
    reader.refresh()
    assert reader.ids() == ["v1", "v2"]


def test_a_change_that_another_job_overwrites_is_made_again(shaky: Place) -> None:
    """Both jobs read the old file; the other replaces ours a moment later."""
    path = shaky / "names"
    atomic_write(path, b"old ")

    def other_comes_late(call: int, work: unreliable.Call) -> None:
        work()
        if call == 1:
            Unreliable.store["/folder/store/names"].seek(0)
            Unreliable.store["/folder/store/names"].truncate()
            Unreliable.store["/folder/store/names"].write(b"old theirs ")

    def with_ours(text: bytes | None) -> bytes:
        return text if text and b"ours" in text else (text or b"") + b"ours "

    with Unreliable.behaving(mv=other_comes_late):
        change_file(path, with_ours)
    assert read_bytes(path) == b"old theirs ours "


# How much is fetched


def _wide(count: int) -> tuple[Recipe, list[Row]]:
    """Rows of 15 KB: a shard of 200 is 3 MB."""
    recipe = Recipe("wide", 1, {}, {}, Schema({"wide": StreamSpec((1280,), "float16", "item")}))
    rows = [
        Row(ItemKey(f"v{n:04}", f"{n:064x}"), None, {"wide": np.full((6, 1280), n, np.float16)})
        for n in range(count)
    ]
    return recipe, rows


def test_opening_a_reader_takes_one_listing_and_one_range_of_each_shard(shaky: Place) -> None:
    recipe, rows = _wide(600)
    store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
    for start in range(0, 600, 200):
        write(store, recipe, rows[start : start + 200])
    fetched: list[int] = []

    def weigh(_: int, work: unreliable.Call) -> bytes:
        data: bytes = work()
        fetched.append(len(data))
        return data

    folder = store.folder("wide")
    with Unreliable.behaving(cat_file=weigh) as calls:
        reader = store.reader("wide", folder.name)
        assert len(reader) == 600
    assert (calls["ls"], calls["cat_file"]) == (1, 3 + 1)  # and recipe.json
    assert sum(fetched) < 4 * (256 << 10)
    with Unreliable.behaving() as calls:
        for row in rows[::7]:
            np.testing.assert_array_equal(reader.array(row.key.id, "wide"), row["wide"])
    assert calls["cat_file"] == 3  # each shard once, to scratch


def test_a_shard_whose_tables_lie_behind_its_rows_is_read(place: Place) -> None:
    """As shards were written before headers and tables came first."""
    recipe, rows = _wide(200)
    buffer = io.BytesIO()
    with (
        h5py.File(io.BytesIO(encode_shard(recipe, rows)), "r") as new,
        h5py.File(buffer, "w", libver="v110") as old,
    ):
        old.attrs.update(new.attrs)
        paths: list[str] = []
        new.visititems(
            lambda path, thing: paths.append(path) if isinstance(thing, h5py.Dataset) else None
        )
        for path in sorted(paths, key=lambda path: not path.startswith("arrays")):
            old.create_dataset(path, data=new[path][...], track_times=False)
    content = buffer.getvalue()
    store = Store.create(place, dataset="tiny", clip_len_s=2.0)
    write(store, recipe, rows[:1])
    name = f"shard-{hashlib.sha256(content).hexdigest()[:16]}.h5"
    atomic_write(store.folder("wide") / name, content)
    reader = store.reader("wide")
    assert len(reader) == 200
    np.testing.assert_array_equal(reader.array("v0150", "wide"), rows[150]["wide"])


# Local scratch


def test_a_copy_in_scratch_does_not_hide_damage_from_verify(
    shaky: Place, recipe: Recipe, make_row: MakeRow
) -> None:
    store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
    shard = write(store, recipe, [make_row("v1", clips=400)])
    store.update_catalogue(
        [CatalogueEntry("v1", key.content, FACTS) for key in store.reader("clip").keys()]  # noqa: SIM118
    )
    store.reader("clip").array("v1", "clip")
    assert store.verify() == []
    _flip(shard, 3 * (size_of(shard) or 0) // 4)
    (problem,) = {each.where for each in store.verify()}
    assert shard.name in problem


def test_verify_fetches_each_shard_once(shaky: Place, recipe: Recipe, make_row: MakeRow) -> None:
    store = Store.create(shaky, dataset="tiny", clip_len_s=2.0)
    shard = write(store, recipe, [make_row("v1", clips=40_000)])
    size = size_of(shard) or 0
    fetched: list[int] = []

    def weigh(_: int, work: unreliable.Call) -> bytes:
        data: bytes = work()
        fetched.append(len(data))
        return data

    with Unreliable.behaving(cat_file=weigh):
        store.verify()
    assert size < sum(fetched) < 1.7 * size


def test_scratch_keeps_what_was_used_last(
    memory_place: Place, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, rows = _wide(600)
    store = Store.create(memory_place, dataset="tiny", clip_len_s=2.0)
    for start in range(0, 600, 200):
        write(store, recipe, rows[start : start + 200])
    monkeypatch.setenv("STORYLINE_SCRATCH_GB", "0.0065")  # two of three
    for number in (0, 200, 0, 400, 599):
        store.reader("wide").array(f"v{number:04}", "wide")
    kept = {path.name for path in (scratch / "shards").glob("shard-*")}
    assert len(kept) == 2
    reader = store.reader("wide")
    named = {reader._where[row.key][0].path.name for row in (rows[0], rows[400])}
    assert kept == named
    assert scratch.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("STORYLINE_SCRATCH_GB", "much")
    with pytest.raises(UsageError, match="STORYLINE_SCRATCH_GB must be a number of gigabytes"):
        store.reader("wide").array("v0200", "wide")


def test_default_scratch_of_another_or_open_to_others_is_refused(
    memory_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORYLINE_SCRATCH")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store.create(memory_place, dataset="tiny", clip_len_s=2.0)
    store.file_hashes()
    (made,) = tmp_path.glob("storyline-*")
    made.chmod(0o755)
    with pytest.raises(UsageError, match="open to others; name a folder of your own"):
        store.file_hashes()
