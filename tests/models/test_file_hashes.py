"""The identity of weights: content alone, read no oftener than needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import models.file_hashes as hashes
from data.errors import UsageError
from data.identity import digest
from models.file_hashes import files_sha256, hash_of, hashes_of

LARGE = hashes._REMEMBERED_BYTES


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of one's own; every call is as in a new process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashes._hash_of.cache_clear()
    yield tmp_path / "cache" / "storyline" / "hashes"
    hashes._hash_of.cache_clear()


def large(path: Path, first: bytes = b"a", *, age_s: float = 60) -> Path:
    """A sparse file of the size from which hashes are remembered."""
    with path.open("wb") as file:
        file.write(first)
        file.truncate(LARGE)
    when = path.stat().st_mtime - age_s
    os.utime(path, (when, when))
    return path


def again(path: Path) -> str:
    hashes._hash_of.cache_clear()
    return hash_of(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a minute had passed since files were made: the time of change cannot be set back."""
    monkeypatch.setattr(hashes, "_SETTLED_S", -60.0)


@pytest.mark.usefixtures("settled")
def test_the_hash_of_a_large_file_is_read_from_a_note_until_the_file_changes(
    tmp_path: Path, notes: Path
) -> None:
    path = large(tmp_path / "model.safetensors")
    first = hash_of(path)
    assert first == sha256(path)
    (note,) = notes.iterdir()
    content = json.loads(note.read_text())
    assert content["sha256"] == first
    # That it is the note that answers: one that says otherwise is believed.
    note.write_text(json.dumps({**content, "sha256": "0" * 64}))
    assert again(path) == "0" * 64
    large(path, b"b")
    assert again(path) == sha256(path) != first


@pytest.mark.usefixtures("settled")
def test_another_file_of_the_same_size_and_time_in_its_place_is_noticed(tmp_path: Path) -> None:
    path = large(tmp_path / "model.bin")
    before, first = path.stat(), hash_of(path)
    other = large(tmp_path / "other.bin", b"c")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert again(path) == sha256(path) != first


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path, notes: Path) -> None:
    hash_of(large(tmp_path / "model.bin", age_s=0))
    assert not notes.exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["", "[]", '{"file": 3}', "{", '{"sha256": "short"}'])
def test_a_damaged_note_is_made_again(damage: str, tmp_path: Path, notes: Path) -> None:
    path = large(tmp_path / "model.bin")
    first = hash_of(path)
    (note,) = notes.iterdir()
    note.write_text(damage)
    assert again(path) == first
    assert json.loads(note.read_text())["sha256"] == first


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setattr(hashes, "_SETTLED_S", -60.0)
    path = large(tmp_path / "model.bin")
    assert hash_of(path) == sha256(path)


def hub(tmp_path: Path, name: str) -> Path:
    """A file as Hugging Face's cache holds it: a link to a blob that is named by its hash."""
    blob = tmp_path / "models--org--name" / "blobs" / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"weights")
    link = tmp_path / "models--org--name" / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(Path("../../blobs") / name)
    return link


def test_a_large_file_of_the_hubs_cache_is_named_already_and_not_read(tmp_path: Path) -> None:
    """The name is believed: here it is not that of the content, which shows who answered."""
    assert hash_of(hub(tmp_path, "ab" * 32)) == "ab" * 32


@pytest.mark.parametrize("name", ["ab" * 20, "AB" * 32])
def test_a_blob_that_is_not_named_by_sha256_is_read(name: str, tmp_path: Path) -> None:
    """Small files have git's hash, of 40 digits."""
    link = hub(tmp_path, name)
    assert hash_of(link) == hashlib.sha256(b"weights").hexdigest()


def test_a_link_elsewhere_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("ab" * 32)).write_bytes(b"weights")
    link = tmp_path / "model.bin"
    link.symlink_to(tmp_path / "blobs" / ("ab" * 32))
    assert hash_of(link) == hashlib.sha256(b"weights").hexdigest()


def folder(place: Path, *names: str) -> Path:
    for name in names:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return place


def test_of_a_folder_only_files_count_that_a_model_is_made_of(tmp_path: Path) -> None:
    place = folder(
        tmp_path / "model",
        *("config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"),
        *("tokenizer.model", "llm/pytorch_model.bin", "merges.txt"),
        # and beside them
        *("README.md", "LICENSE", ".gitattributes", ".cache/huggingface/x.lock", ".git/HEAD"),
        *("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "optimizer.pt"),
        *("images/shot.png", "model.gguf", "tf_model.h5", "training_args.bin"),
    )
    assert set(hashes_of(place)) == {
        *("config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"),
        *("tokenizer.model", "llm/pytorch_model.bin", "merges.txt"),
    }
    before = files_sha256(place)
    assert before == digest(hashes_of(place))
    (place / "README.md").write_text("another text")
    assert files_sha256(place) == before
    (place / "tokenizer.model").write_text("another tokenizer")
    assert files_sha256(place) != before


def test_weights_for_torch_count_where_there_are_no_others(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", "config.json", "pytorch_model.bin")
    assert set(hashes_of(place)) == {"config.json", "pytorch_model.bin"}


def test_the_same_content_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    names = ("config.json", "pytorch_model.bin")
    one, two = folder(tmp_path / "one", *names), folder(tmp_path / "two", *names)
    assert files_sha256(one) == files_sha256(two)
    assert files_sha256(one / "pytorch_model.bin") == files_sha256(one)  # beside its config: whole


def test_a_folder_without_weights_is_a_sentence(tmp_path: Path) -> None:
    folder(tmp_path / "model", "README.md")
    with pytest.raises(UsageError, match=r"holds no weights: no file in it is one of a model"):
        files_sha256(tmp_path / "model")


@pytest.mark.usefixtures("settled")
def test_inodes_of_any_length_are_remembered(tmp_path: Path, notes: Path) -> None:
    """Overlays and network file systems give 64 bits without sign, a digit more than JSON takes."""
    path = large(tmp_path / "model.safetensors")
    about = path.stat()
    key = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, 2**64 - 1)
    first = hashes._hash_of(path, key)
    hashes._hash_of.cache_clear()
    (note,) = notes.iterdir()
    note.write_text(note.read_text().replace(first, "0" * 64))
    assert hashes._hash_of(path, key) == "0" * 64


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "config.json").write_text("{}")
    before = hashes_of(folder)
    for name in ("one", "two"):
        (folder / name).symlink_to(folder)
        (folder / "llm" / name).symlink_to(tmp_path)
    assert hashes_of(folder) == before
