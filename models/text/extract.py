"""The table of `llama_embedding` out of a language model's checkpoint: input embeddings, tokenizer.

One tensor is read, of any of the layouts that LLaMA and LLaVA are published in; the rest of the
checkpoint is neither read nor needed afterwards.

    LLaMA, Vicuna; LLaVA's own         model.embed_tokens.weight
    llava-hf (as it is saved)          language_model.model.embed_tokens.weight
    transformers 5 in memory           model.language_model.embed_tokens.weight
    Meta's consolidated.*.pth          tok_embeddings.weight, cut between GPUs
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UsageError, some
from data.foreign import read_limited
from models.checkpoints import read_folder
from models.tokens import Tokens, tokens_from
from models.weight_files import read_file
from models.word_tables import table_bytes
from models.zoo import resolve

__all__ = ["Extracted", "extract_embedding"]

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|tok_embeddings)\.weight")
_META = "consolidated.*.pth"
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
"""SentencePiece first: it is what LLaMA was trained with, and the other is made from it."""

_MAX_TOKENIZER_BYTES = 64 << 20
"""tokenizer.json of Llama 3 has 17 MB."""

_LARGEST_HALF = 65504.0
_SHOWN = 6


@dataclass(frozen=True)
class Extracted:
    """What was found, and the file to write.

    Args:
        content: bytes of the table.
        tensor: name of the tensor in the checkpoint.
        rows: rows of it that are kept, one per piece of the tokenizer.
        dropped: rows after them, which no text reaches (LLaVA's `<image>`, padding).
        dim: length of a row.
        dtype: type of numbers in the checkpoint.
        error: largest difference that rounding to the table's type made.
        tokenizer: which file it is from.
    """

    content: bytes
    tensor: str
    rows: int
    dropped: int
    dim: int
    dtype: str
    error: float
    tokenizer: Path


def extract_embedding(
    checkpoint: str | Path,
    *,
    tokenizer: Path | None = None,
    tensor: str | None = None,
    dtype: str = "float16",
) -> Extracted:
    """Read the input embeddings and the tokenizer of a language model.

    Args:
        checkpoint: folder or file in any layout above, also in shards, or `hf:ORG/NAME`.
        tokenizer: a tokenizer.model or tokenizer.json, or a folder with one; None: the
            checkpoint's own folder.
        tensor: name of the embeddings, where the checkpoint has several.
        dtype: of the table: "float16" or "float32".

    Raises:
        UsageError: no such checkpoint, none or several embeddings in it, no tokenizer, or one of
            another model.
    """
    if dtype not in ("float16", "float32"):
        raise UsageError(f"a table is of float16 or float32, not '{dtype}'")
    path = resolve(checkpoint)
    file = _tokenizer_file(tokenizer or (path if path.is_dir() else path.parent))
    content = read_limited(file, _MAX_TOKENIZER_BYTES, "the tokenizer")
    kind = _kind_of(file)
    pieces = tokens_from(content, kind, f"tokenizer '{file}'")
    name, found = _embedding(path, tensor, pieces)
    if found.ndim != 2 or len(found) < pieces.count:
        raise UsageError(
            f"'{file}' is no tokenizer of '{path}': it has {pieces.count:,} pieces, and {name} is "
            f"{tuple(found.shape)}; name the model's own with --tokenizer"
        )
    kept = found[: pieces.count].float()
    vectors = _rounded(kept, dtype, name)
    error = float((torch.from_numpy(vectors).float() - kept).abs().max())
    return Extracted(
        table_bytes("llama_embedding", vectors, {"tokenizer": content}, {"tokenizer": kind}),
        name,
        len(kept),
        len(found) - len(kept),
        kept.shape[1],
        str(found.dtype).removeprefix("torch."),
        error,
        file,
    )


def _rounded(vectors: Tensor, dtype: str, name: str) -> NDArray[np.float16 | np.float32]:
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError(f"{name} holds numbers that are not finite: the checkpoint is damaged")
    if dtype == "float16" and float(vectors.abs().max()) > _LARGEST_HALF:
        raise UsageError(f"{name} holds numbers that float16 cannot; write it with --dtype float32")
    table: NDArray[np.float16 | np.float32] = vectors.numpy().astype(dtype)
    return table


def _embedding(path: Path, tensor: str | None, pieces: Tokens) -> tuple[str, Tensor]:
    """Name and values of the input embeddings."""
    parts = sorted(path.glob(_META)) if path.is_dir() else []
    if parts:
        return _joined([read_file(each, lazily=True) for each in parts], path, tensor, pieces)
    state = read_folder(path)
    name = _name(state, path, tensor)
    return name, state[name]


def _joined(
    tables: Sequence[Mapping[str, Tensor]], path: Path, tensor: str | None, pieces: Tokens
) -> tuple[str, Tensor]:
    """Meta's parts, one per GPU: LLaMA 1 and 2 cut each vector, Llama 3 the vocabulary."""
    names = [_name(each, path, tensor) for each in tables]
    found = [table[name] for table, name in zip(tables, names, strict=True)]
    whole = all(each.ndim == 2 and len(each) >= pieces.count for each in found)
    return names[0], torch.cat(found, dim=1 if whole else 0)


def _name(state: Mapping[str, Tensor], path: Path, tensor: str | None) -> str:
    names = [tensor] if tensor else sorted(each for each in state if _EMBEDDING.fullmatch(each))
    if len(names) == 1 and names[0] in state:
        return names[0]
    if not names or tensor:
        wanted = tensor or "embed_tokens.weight"
        raise UsageError(
            f"'{path}' holds no tensor {wanted}, so it is no language model that is known; it "
            f"holds {some(sorted(state), _SHOWN) or 'nothing'}; name its embeddings with --tensor"
        )
    raise UsageError(f"'{path}' holds several embeddings: {some(names)}; choose one with --tensor")


def _tokenizer_file(place: Path) -> Path:
    if not place.is_dir():
        return place
    found = next((place / name for name in _TOKENIZERS if (place / name).is_file()), None)
    if found is None:
        raise UsageError(
            f"folder '{place}' holds no {' or '.join(_TOKENIZERS)}; name the tokenizer of this "
            "model with --tokenizer"
        )
    return found


def _kind_of(file: Path) -> str:
    """By the ending: a copy may be called otherwise."""
    return _TOKENIZERS[1] if file.suffix == ".json" else _TOKENIZERS[0]
