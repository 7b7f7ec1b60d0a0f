"""Tables of word vectors: one file each, written by `pipeline weights`, read by text encoders.

A safetensors file with

    vectors     (V, D) float16 or float32, one row per word or token
    words       UTF-8 bytes: V words, one per line              (`glove`)
    unknown     UTF-8 bytes: words that were asked for and are in no row   (`glove`)
    tokenizer   bytes of a tokenizer.model or tokenizer.json    (`llama_embedding`)

and, as metadata, what it is. All of it is in one file, so that its hash names the vectors *and*
what turns a text into their numbers; it holds no names of files and no dates, so the same words of
the same vectors give the same bytes. Rows are read from the mapped file: workers share its pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, nearest
from data.foreign import check_plain_file, strict_json
from data.identity import file_sha256
from models.zoo import resolve

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["KINDS", "Tokenizer", "WordTable", "open_table", "table_bytes"]

_MARK = "storyline word table 1"

KINDS: Mapping[str, str] = {
    "glove": "pipeline weights glove VECTORS OUT --words-from STORE",
    "llama_embedding": "pipeline weights extract-embedding CHECKPOINT OUT",
}
"""Text encoders that need a table, and the command that writes it."""

Tokenizer = Literal["tokenizer.model", "tokenizer.json"]


@dataclass(frozen=True)
class WordTable:
    """An open table.

    Args:
        path: its file.
        kind: encoder that it is for: a name of `KINDS`.
        about: further metadata: `whole` ("1" if every word of the source is in it), `tokenizer`
            (which of the two files of a tokenizer it holds).
        opened: the file, mapped by safetensors.
    """

    path: Path
    kind: str
    about: Mapping[str, str]
    opened: Any = field(repr=False, compare=False)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """V and D."""
        rows, dim = self._slice.get_shape()
        return int(rows), int(dim)

    @cached_property
    def sha256(self) -> str:
        """Of the whole file."""
        return file_sha256(self.path)

    @cached_property
    def words(self) -> list[str]:
        """The words of the rows, in order."""
        return self._lines("words")

    @cached_property
    def unknown(self) -> frozenset[str]:
        """Words that were asked for and that the source does not have."""
        return frozenset(self._lines("unknown"))

    @property
    def whole(self) -> bool:
        """Whether every word of the source is in it."""
        return self.about.get("whole") == "1"

    def row(self, index: int) -> NDArray[np.float32]:
        """The vector of a row, float32 (D,)."""
        vector: NDArray[Any] = self._slice[index : index + 1][0]
        return vector.astype(np.float32)

    def blob(self, name: str) -> bytes:
        """The bytes of an entry beside the vectors."""
        if name not in self.opened.keys():  # noqa: SIM118 - safe_open is no mapping
            raise UsageError(f"table '{self.path}' holds no '{name}': make it again with "
                             f"`{KINDS[self.kind]}`")  # fmt: skip
        content: NDArray[np.uint8] = self.opened.get_tensor(name)
        return content.tobytes()

    @cached_property
    def _slice(self) -> Any:
        return self.opened.get_slice("vectors")

    def _lines(self, name: str) -> list[str]:
        try:
            content = self.blob(name).decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"table '{self.path}' is damaged: its '{name}' are not text in UTF-8 ({error}); "
                f"make it again with `{KINDS[self.kind]}`"
            ) from None
        return content.split("\n") if content else []


def open_table(checkpoint: Checkpoint | None, kind: str) -> WordTable:
    """The table of an encoder.

    Args:
        checkpoint: its path, or any name that `models.zoo.resolve` knows.
        kind: encoder that it is for.

    Raises:
        UsageError: none given, not found, damaged, or no table of this encoder; it says which
            command writes one.
    """
    how = f"write one with `{KINDS[kind]}`"
    if checkpoint is None:
        raise UsageError(
            f"text encoder {kind} needs its table and `checkpoint` names none: {how} "
            "(docs/narratives.md); an encoder that needs no file: hash"
        )
    if isinstance(checkpoint, Mapping):
        raise UsageError(f"a state dict is no checkpoint of text encoder {kind}: {how}")
    path = resolve(checkpoint)
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder and no checkpoint of text encoder {kind}: {how}")
    check_plain_file(path, "the table")
    opened, about = _opened(path, f"'{path}' is no checkpoint of text encoder {kind}; {how}")
    if about.get("kind") != kind:
        found = about.get("kind", "nothing that is known")
        raise UsageError(f"'{path}' is no checkpoint of text encoder {kind}: it is the table of "
                         f"{found}; say `encoder: {found}`, or {how}")  # fmt: skip
    return WordTable(path, kind, about, opened)


def table_bytes(
    kind: str,
    vectors: NDArray[Any],
    blobs: Mapping[str, bytes],
    about: Mapping[str, str] | None = None,
) -> bytes:
    """The file of a table.

    Args:
        kind: a name of `KINDS`.
        vectors: (V, D) float16 or float32.
        blobs: entries beside the vectors: `words`, `unknown`, `tokenizer`.
        about: further metadata.
    """
    from safetensors.numpy import save

    if kind not in KINDS:
        raise ValueError(f"no text encoder with a table is called '{kind}'; {nearest(kind, KINDS)}")
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors must be (V, D) of float16 or float32, got {vectors.dtype} "
                         f"{vectors.shape}")  # fmt: skip
    entries: dict[str, NDArray[Any]] = {"vectors": np.ascontiguousarray(vectors)}
    entries |= {name: np.frombuffer(each, np.uint8) for name, each in blobs.items()}
    # One entry: safetensors does not promise an order for several.
    told = json.dumps({"kind": kind, **(about or {})}, sort_keys=True)
    content: bytes = save(entries, metadata={_MARK: told})
    return content


def _opened(path: Path, sentence: str) -> tuple[Any, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{sentence} (it cannot be read: {error})") from None
    metadata = opened.metadata() or {}
    if _MARK not in metadata or "vectors" not in opened.keys():  # noqa: SIM118 - no mapping
        raise UsageError(f"{sentence} (it is a safetensors file without the mark of a table)")
    kind = opened.get_slice("vectors").get_dtype()
    shape = opened.get_slice("vectors").get_shape()
    if kind not in ("F16", "F32") or len(shape) != 2 or 0 in shape:
        raise UsageError(f"{sentence} (its vectors are {kind} {shape})")
    try:
        about = strict_json(metadata[_MARK])
    except ValueError as error:
        raise UsageError(f"{sentence} (its metadata cannot be read: {error})") from None
    if not isinstance(about, dict):
        raise UsageError(f"{sentence} (its metadata is no object)")
    return opened, {str(key): str(value) for key, value in about.items()}
