"""Which weights these are: sha256 of a file, or of the files of a folder that decide what it does.

A recipe names weights by their content, so every command asks for it. For a folder of 26 GB that
must not take a minute each time: files that decide nothing are left out, the hash of a large file
is remembered on disk, and where Hugging Face's cache already names a file by its sha256 nothing is
read at all. No torch here: a plan must not pay for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from data.errors import UsageError
from data.foreign import strict_json
from data.identity import digest, file_sha256
from models.zoo import cache_folder, resolve

__all__ = ["files_sha256", "hash_of", "hashes_of", "matters"]

_REMEMBERED_BYTES = 16 << 20
"""Smaller files are read sooner than looked up."""

_SETTLED_S = 2.0
"""A file that changed more recently may change again within one tick of its clock."""

_LEFT_OUT = (
    # for people
    "README*",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "*.md",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.gif",
    "*.svg",
    "*.webp",
    "*.mp4",
    "*.pdf",
    # of a training that is over
    "optimizer.*",
    "scheduler.*",
    "rng_state*",
    "trainer_state.json",
    "training_args.bin",
    "events.out.tfevents*",
    # the same weights for other programs
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.tflite",
    "tf_model*.h5",
)
"""Files of a model's folder that nothing here reads, by name."""

_TWICE = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Weights that are not read where the same folder has them as safetensors."""

_SAFE = ("model.safetensors", "model.safetensors.index.json")

_BLOB = re.compile(r"[0-9a-f]{64}")


def files_sha256(checkpoint: str | Path) -> str:
    """sha256 (64 hex) of a checkpoint: of a file its own, of a folder that over `hashes_of`.

    Raises:
        UsageError: there is no such checkpoint, or a folder with nothing in it.
    """
    path = resolve(checkpoint)
    return digest(hashes_of(path)) if path.is_dir() else hash_of(path)


def hashes_of(folder: Path) -> dict[str, str]:
    """sha256 of each file of a folder that matters, by its place in it.

    Raises:
        UsageError: there is none.
    """
    found = {each.relative_to(folder).as_posix(): hash_of(each) for each in matters(folder)}
    if not found:
        raise UsageError(f"folder '{folder}' holds no weights: no file in it is one of a model")
    return found


def matters(folder: Path) -> list[Path]:
    """The files of a folder, and of folders in it, that can change what a model does."""
    return [each for each in sorted(_visible(folder, frozenset())) if not _left_out(each)]


def _visible(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Regular files; nothing whose name begins with a dot (.git, .cache, .gitattributes).

    Args:
        folder: of which those in it, too.
        above: folders that it is in, which a link may lead back to.
    """
    above |= {folder.resolve()}
    for each in folder.iterdir():
        if each.name.startswith("."):
            continue
        if each.is_dir():
            if each.resolve() not in above:
                yield from _visible(each, above)
        elif each.is_file():
            yield each


def _left_out(file: Path) -> bool:
    name = file.name
    if any(fnmatchcase(name, each) for each in _LEFT_OUT):
        return True
    twice = any(fnmatchcase(name, each) for each in _TWICE)
    return twice and any((file.parent / each).is_file() for each in _SAFE)


def hash_of(file: Path) -> str:
    """sha256 of a file; a large one that has not changed is read once, ever."""
    named = _named_by_hub(file)
    if named is not None:
        return named
    about = file.stat()
    key = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    return _hash_of(file.absolute(), key)


def _named_by_hub(file: Path) -> str | None:
    """In Hugging Face's cache `snapshots/…/file` is a link to `blobs/<sha256>`, for large files;
    the hub verifies what it downloads by size only, a damaged one is told when it is loaded.
    """
    if not file.is_symlink():
        return None
    blob = file.resolve()
    repository = blob.parent.parent
    in_cache = blob.parent.name == "blobs" and repository.name.startswith("models--")
    return blob.name if in_cache and _BLOB.fullmatch(blob.name) and blob.is_file() else None


@lru_cache(maxsize=4096)
def _hash_of(file: Path, key: tuple[int, ...]) -> str:
    """Several stages may use one file; size, times and inode tell a changed one."""
    if key[0] < _REMEMBERED_BYTES:
        return file_sha256(file)
    note = cache_folder() / "storyline" / "hashes" / f"{_short(str(file))}.json"
    remembered = _read_note(note, file, key)
    if remembered is not None:
        return remembered
    started_s = time.time()
    made = file_sha256(file)
    if started_s - max(key[1], key[2]) / 1e9 > _SETTLED_S:
        _write_note(note, {"file": str(file), "key": _short(repr(key)), "sha256": made})
    return made


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _read_note(note: Path, file: Path, key: tuple[int, ...]) -> str | None:
    try:
        found = strict_json(note.read_bytes())
        # As text: the inode of some file systems has more digits than a number may have there.
        known = found["file"] == str(file) and found["key"] == _short(repr(key))
        sha256 = found["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not ours: it is made again
    return sha256 if known and isinstance(sha256, str) and _BLOB.fullmatch(sha256) else None


def _write_note(note: Path, content: dict[str, object]) -> None:
    # A home that cannot be written costs time and nothing else.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(note)
