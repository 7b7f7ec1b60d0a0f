"""Tokenizers of LLaMA-like models, read from their own files: text to ids and back.

Two libraries read two files of the same tokenizer: SentencePiece `tokenizer.model`, `tokenizers`
`tokenizer.json`. transformers is not asked: which of its classes comes out of a folder, and whether
a blank is put before a text, depends on its version and on flags in tokenizer_config.json. Here a
text is always one whole piece, with the blank that LLaMA puts before it, without markers around it;
markers spelt out in a text ("</s>") are text.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.errors import UsageError, how_to_install
from data.foreign import read_limited

__all__ = ["ByteTokens", "Tokens", "read_tokens"]

_MAX_BYTES = 256 << 20
"""The largest tokenizer.json of a public model has 33 MB."""


class Tokens(ABC):
    """A tokenizer.

    Attributes:
        bos: id that a prompt begins with.
        eos: id that ends a text.
        count: ids of pieces are below it; ids that were added for pictures and padding are not.
    """

    bos: int
    eos: int
    count: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, no markers."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; markers among them are left out."""


class ByteTokens(Tokens):
    """One token per byte of UTF-8, after `<unk>`, `<s>` and `</s>`: for untrained models."""

    bos, eos, count = 1, 2, 259

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`; bytes that are no UTF-8 become U+FFFD."""
        return bytes(each - 3 for each in ids if 3 <= each < self.count).decode(errors="replace")


class SentencePieceTokens(Tokens):
    """`tokenizer.model`.

    Args:
        content: bytes of the file.
    """

    def __init__(self, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        model: Any = SentencePieceProcessor()
        model.LoadFromSerializedProto(content)
        self._model = model
        self.bos, self.eos, self.count = model.bos_id(), model.eos_id(), model.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        ids: list[int] = self._model.EncodeAsIds(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`."""
        model = self._model
        kept = [
            each
            for each in ids
            if each < self.count and not model.IsControl(each) and not model.IsUnknown(each)
        ]
        text: str = model.DecodeIds(kept)
        return text


class JsonTokens(Tokens):
    """`tokenizer.json`.

    Args:
        content: bytes of the file.
        bos: how the marker of the beginning is spelt.
        eos: how the marker of the end is spelt.
    """

    def __init__(self, content: bytes, bos: str = "<s>", eos: str = "</s>") -> None:
        from tokenizers import Tokenizer

        model: Any = Tokenizer.from_buffer(content)
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._model = model
        self.bos, self.eos = (_id_of(model, each) for each in (bos, eos))
        self.count = model.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text


def _id_of(model: Any, marker: str) -> int:
    found: int | None = model.token_to_id(marker)
    if found is None:
        raise ValueError(f"it has no token '{marker}'")
    return found


def read_tokens(folder: Path) -> Tokens:
    """The tokenizer in the folder of a model.

    Where a folder has both files, `tokenizer.json` is read.

    Raises:
        UsageError: there is none, it cannot be read, or its library is not installed.
    """
    file = next((folder / name for name in _READERS if (folder / name).is_file()), None)
    if file is None:
        raise UsageError(
            f"folder '{folder}' has no tokenizer ({' or '.join(_READERS)}); copy it there from "
            "where the model is published"
        )
    content = read_limited(file, _MAX_BYTES, "the tokenizer")
    try:
        return _READERS[file.name](folder, content)
    except ImportError as error:
        raise UsageError(
            f"tokenizer '{file}' needs the Python package '{error.name}'; install it: "
            f"{how_to_install('pipeline')}"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # both libraries raise bare RuntimeError and Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"tokenizer '{file}' cannot be read ({reason}); download it again"
        ) from None


def _json_tokens(folder: Path, content: bytes) -> Tokens:
    return JsonTokens(content, **_markers(folder))


def _markers(folder: Path) -> dict[str, str]:
    """How the markers are spelt, where the folder says so."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    # Not as strictly as other files from strangers: transformers writes numbers of 31 digits into
    # this one ("model_max_length").
    try:
        told = json.loads(read_limited(file, _MAX_BYTES, "the tokenizer's settings"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    spelt = {}
    for key in ("bos", "eos"):
        value = told.get(f"{key}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            spelt[key] = value
    return spelt


_READERS: dict[str, Callable[[Path, bytes], Tokens]] = {
    "tokenizer.json": _json_tokens,
    "tokenizer.model": lambda _, content: SentencePieceTokens(content),
}
