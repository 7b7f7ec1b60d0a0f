"""Checkpoints of many GB: tensors by name in one file or in shards, read when they are used.

A folder of Hugging Face cut into shards has an index, `model.safetensors.index.json` or
`pytorch_model.bin.index.json`, whose `weight_map` says which file holds which tensor. Nothing is
held in memory twice: tensors are views of mapped files until somebody copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.errors import UsageError, some
from data.foreign import json_object, read_limited
from models.weight_files import read_file
from models.zoo import FOLDER_FILES, INDEX_FILES, resolve

__all__ = ["TensorFiles", "read_folder", "tensor_names", "weights_files"]

_MAX_INDEX_BYTES = 64 << 20
"""The index of a model of 600 GB has 9 MB."""

_CONTAINERS = ("model", "state_dict", "model_state", "model_state_dict")
_SHOWN = 4


class TensorFiles(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for, as a view of its file.

    Args:
        source: what the files are called, for messages.
        places: for each name, the table that holds it and its name there.
    """

    def __init__(self, source: str, places: Mapping[str, tuple[Mapping[str, Any], str]]) -> None:
        self.source = source
        self._places = dict(places)

    @classmethod
    def of(cls, source: str, table: Mapping[str, Any]) -> TensorFiles:
        """Of one table of tensors."""
        return cls(source, {name: (table, name) for name in table})

    def __getitem__(self, name: str) -> Tensor:
        table, own = self._places[name]
        value = table[own]
        if not isinstance(value, Tensor):
            raise UsageError(
                f"'{self.source}' holds an entry that is no tensor: {name} is a "
                f"{type(value).__name__}"
            )
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def renamed(self, rename: Callable[[str], str | None]) -> TensorFiles:
        """The same tensors under other names; those renamed to None are left out.

        Raises:
            UsageError: two tensors get one name.
        """
        places: dict[str, tuple[Mapping[str, Any], str]] = {}
        first: dict[str, str] = {}
        for name, place in self._places.items():
            new = rename(name)
            if new is None:
                continue
            if new in first:
                raise UsageError(
                    f"'{self.source}' holds two tensors for {new}: {first[new]} and {name}"
                )
            places[new], first[new] = place, name
        return TensorFiles(self.source, places)

    def joined(self, other: TensorFiles) -> TensorFiles:
        """Both tables; a name of both is a UsageError."""
        twice = sorted(self._places.keys() & other._places.keys())
        if twice:
            raise UsageError(
                f"'{self.source}' and '{other.source}' both hold {some(twice, _SHOWN)}"
            )
        both = dict.fromkeys((self.source, other.source))
        return TensorFiles(" + ".join(both), self._places | other._places)


def read_folder(checkpoint: str | Path) -> TensorFiles:
    """The tensors of a checkpoint, whole or in shards, by the names in its files.

    Args:
        checkpoint: whatever `models.zoo.resolve` finds: a folder in the way of Hugging Face, a
            file (also one that wraps its table as `{"model": …}`), or the index of shards.

    Raises:
        UsageError: not found, a shard missing or damaged, an index that does not fit its shards.
    """
    path = resolve(checkpoint)
    files = weights_files(path)
    source = path.name
    if files[0].name in INDEX_FILES:
        return _sharded(files[0], source)
    return TensorFiles.of(source, _inner(read_file(files[0], lazily=True)))


def tensor_names(path: Path) -> frozenset[str]:
    """What the files of a folder say that they hold; with an index no shard is opened.

    Raises:
        UsageError: see `read_folder`.
    """
    first = weights_files(path)[0]
    return frozenset(_weight_map(first) if first.name in INDEX_FILES else read_folder(path))


def weights_files(path: Path) -> tuple[Path, ...]:
    """The files that `read_folder` reads; of shards the index first.

    Raises:
        UsageError: there are none, or a shard is missing.
    """
    found = path
    if path.is_dir():
        names = [name for name in FOLDER_FILES if (path / name).is_file()]
        if not names:
            raise UsageError(
                f"folder '{path}' holds no weights: none of {', '.join(FOLDER_FILES[2:])}; "
                f"it holds {some(sorted(each.name for each in path.iterdir())) or 'nothing'}"
            )
        found = path / names[0]
    if found.name not in INDEX_FILES:
        return (found,)
    return (found, *(found.parent / name for name in sorted({*_weight_map(found).values()})))


def _inner(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict that a training program wrapped."""
    for key in _CONTAINERS:
        if key in table and isinstance(table[key], Mapping):
            inner: Mapping[str, Any] = table[key]
            return inner
    return table


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index from a stranger."""
    again = "download the folder again"
    content = read_limited(index, _MAX_INDEX_BYTES, "the index of shards")
    found = json_object(content, f"the index of shards '{index}'").get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UsageError(f"the index '{index}' has no table `weight_map` of tensors; {again}")
    strange = [
        repr(name)[:80]
        for name in {*map(str, found.values())}
        if Path(name).name != name or name in {"", ".", ".."}
    ]
    if strange or not all(isinstance(name, str) for name in found.values()):
        raise UsageError(
            f"the index '{index}' names files that are not in its own folder: "
            f"{some(strange, _SHOWN) or 'no text'}; {again}"
        )
    names = sorted({*found.values()})
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UsageError(
            f"{len(absent)} of {len(names)} shards of '{index.parent}' are missing: "
            f"{some(absent, _SHOWN)}; {again}"
        )
    return found


def _sharded(index: Path, source: str) -> TensorFiles:
    weight_map = _weight_map(index)
    tables = {
        name: read_file(index.parent / name, lazily=True) for name in sorted({*weight_map.values()})
    }
    lost = [key for key, file in weight_map.items() if key not in tables[file]]
    if lost:
        raise UsageError(
            f"shards of '{index.parent}' do not hold {len(lost)} tensors that the index says they "
            f"do: {some(lost, _SHOWN)}; files of two downloads are mixed: download the folder again"
        )
    places = {
        # What the index does not name is reported by whoever loads strictly.
        key: (tables[weight_map.get(key, file)], key)
        for file, table in tables.items()
        for key in table
    }
    return TensorFiles(source, places)
