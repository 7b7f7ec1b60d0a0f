"""Tokenizers of LLaMA-like models, read from their own files: text to ids and back.

Two libraries read two files of the same tokenizer: SentencePiece `tokenizer.model`, `tokenizers`
`tokenizer.json`. transformers is not asked: which of its classes comes out of a folder, and whether
a blank is put before a text, depends on its version and on flags in tokenizer_config.json. Here a
text is always one whole piece, with the blank that LLaMA puts before it, without markers around it;
markers spelt out in a text ("</s>") are text.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UsageError, how_to_install
from data.foreign import DIGITS_OF_SETTINGS, json_object, read_limited

__all__ = ["ByteTokens", "Tokens", "read_tokens", "tokens_from"]

_MAX_BYTES = 256 << 20
"""The largest tokenizer.json of a public model has 33 MB."""


class Tokens(ABC):
    """A tokenizer.

    Attributes:
        bos: id that a prompt begins with; -1 if there is none.
        eos: id that ends a text; -1 if there is none.
        count: ids of pieces are below it; ids that were added for pictures and padding are not.
    """

    bos: int
    eos: int
    count: int

    @property
    def writable(self) -> int:
        """A text is made of ids below it: pieces, and its end, which Llama 3 has after them."""
        return max(self.count, self.eos + 1)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, no markers."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; markers among them are left out."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """How the vocabulary spells an id: a blank is `▁` or `Ġ`, a byte `<0x0A>` or a sign."""


class ByteTokens(Tokens):
    """One token per byte of UTF-8, after `<unk>`, `<s>` and `</s>`: for untrained models."""

    bos, eos, count = 1, 2, 259

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`; bytes that are no UTF-8 become U+FFFD."""
        return bytes(each - 3 for each in ids if 3 <= each < self.count).decode(errors="replace")

    def piece(self, index: int) -> str:
        """See `Tokens`."""
        return (
            f"<0x{index - 3:02X}>" if 3 <= index < self.count else ("<unk>", "<s>", "</s>")[index]
        )


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

    def piece(self, index: int) -> str:
        """See `Tokens`."""
        spelt: str = self._model.IdToPiece(index)
        return spelt


class JsonTokens(Tokens):
    """`tokenizer.json`. One that was made of SentencePiece's file gives what that file gives.

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
        _put_blank_before(model)
        self._model = model
        self.bos, self.eos = (_id_or_none(model.token_to_id(each)) for each in (bos, eos))
        self.count = model.get_vocab_size(with_added_tokens=False)
        self._bytes = _bytes_of(model)
        added = model.get_added_tokens_decoder()
        self._silent = {index for index, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`."""
        kept = [each for each in ids if each not in self._silent]
        if not self._bytes:
            text: str = self._model.decode(kept, skip_special_tokens=True)
            return text
        # For one byte that is no UTF-8 `tokenizers` loses all beside it, SentencePiece only it.
        return _joined([self._bytes.get(each) or self.piece(each) for each in kept])

    def piece(self, index: int) -> str:
        """See `Tokens`."""
        spelt: str | None = self._model.id_to_token(index)
        return spelt or ""


def _id_or_none(found: int | None) -> int:
    return -1 if found is None else found


_BLANK = "▁"


def _put_blank_before(model: Any) -> None:
    """Before every text, as SentencePiece does; transformers 5 writes tokenizers of LLaMA that do
    not where the text begins with a blank of its own.
    """
    from tokenizers import normalizers, pre_tokenizers

    before = model.pre_tokenizer
    if not isinstance(before, pre_tokenizers.Metaspace) or before.split:
        return
    if before.prepend_scheme != "never":
        steps = [normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)]
        own = [model.normalizer] if model.normalizer is not None else []
        model.normalizer = normalizers.Sequence([*own, *steps])
        model.pre_tokenizer = None


def _bytes_of(model: Any) -> dict[int, bytes]:
    """The pieces that stand for bytes, `<0x00>` to `<0xFF>`, if this tokenizer has them all."""
    found = {model.token_to_id(f"<0x{each:02X}>"): bytes([each]) for each in range(256)}
    return {} if None in found else found


def _joined(pieces: Sequence[str | bytes]) -> str:
    """Text of pieces as SentencePiece puts it together: the blank before the text is not part of
    it, and each byte that is no UTF-8 becomes a U+FFFD.
    """
    told = b"".join(
        each if isinstance(each, bytes) else each.replace(_BLANK, " ").encode() for each in pieces
    )
    first = next((each for each in pieces if each), "")
    if isinstance(first, str) and first.startswith(_BLANK):
        told = told[1:]
    return told.decode(errors=_EACH_BYTE)


_EACH_BYTE = "storyline-each-byte"


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _each_byte)


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
    markers = _markers(folder)
    tokens = tokens_from(content, file.name, f"tokenizer '{file}'", markers)
    lacks = [name for name, found in (("bos", tokens.bos), ("eos", tokens.eos)) if found < 0]
    if lacks:
        spelt = ", ".join(f"{name} '{markers.get(name, _SPELT[name])}'" for name in lacks)
        raise UsageError(
            f"tokenizer '{file}' has no token that begins or ends a text: {spelt}; '{_SETTINGS}' "
            "beside it says how they are spelt (bos_token, eos_token)"
        )
    return tokens


def tokens_from(
    content: bytes, kind: str, what: str, markers: Mapping[str, str] | None = None
) -> Tokens:
    """A tokenizer from the bytes of its file.

    Args:
        content: of the file.
        kind: which file it is: "tokenizer.model" (SentencePiece) or "tokenizer.json".
        what: what it is called, for messages.
        markers: how `bos` and `eos` are spelt in a tokenizer.json; None: `<s>` and `</s>`.

    Raises:
        UsageError: it is none, or its library is not installed.
    """
    if kind not in _READERS:
        raise UsageError(f"{what} is of kind '{kind}'; allowed: {', '.join(_READERS)}")
    try:
        return _READERS[kind](content, markers or {})
    except ImportError as error:
        raise UsageError(
            f"{what} needs the Python package '{error.name}'; install it: "
            f"{how_to_install('pipeline')}"
        ) from error
    except Exception as error:  # both libraries raise bare RuntimeError and Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{what} cannot be read ({reason}); download it again") from None


def _markers(folder: Path) -> dict[str, str]:
    """How the markers are spelt, where the folder says so."""
    file = folder / _SETTINGS
    if not file.is_file():
        return {}
    content = read_limited(file, _MAX_BYTES, "the tokenizer's settings")
    told = json_object(content, str(file), digits=DIGITS_OF_SETTINGS)
    spelt = {}
    for key in ("bos", "eos"):
        value = told.get(f"{key}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            spelt[key] = value
    return spelt


_SETTINGS = "tokenizer_config.json"
_SPELT = {"bos": "<s>", "eos": "</s>"}

_READERS: dict[str, Callable[[bytes, Mapping[str, str]], Tokens]] = {
    "tokenizer.json": lambda content, markers: JsonTokens(content, **markers),
    "tokenizer.model": lambda content, _: SentencePieceTokens(content),
}
