"""A few layers of a LLaMA as one small file: read strictly from 13 GB, written once.

Two public layouts are read: the folder of Hugging Face (`config.json`, safetensors or
`pytorch_model.bin`, whole or in shards) and that of Meta (`params.json`,
`consolidated.00.pth`). Only the nine tensors of each wanted layer and the gain of the last norm
are touched.

Meta interleaves the two halves of a head's features where Hugging Face has one after the other
(`convert_llama_weights_to_hf.py` of transformers); without rotary positions that changes nothing,
with them it does. The file always has Hugging Face's order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.errors import UsageError, some
from data.foreign import json_object, read_limited
from models.safetensors_files import SafetensorsFile, safetensors_bytes
from models.shards import TensorFiles, read_folder
from models.weight_files import read_file
from models.zoo import resolve

__all__ = [
    "NORM",
    "LlamaLayers",
    "LlamaSpec",
    "extract_layers",
    "layers_bytes",
    "layers_file_sha256",
    "meta_name",
    "name_of_layers_file",
    "read_layers",
    "tensor_shapes",
]

NORM = "norm"
"""Name of the gain of the norm after the last layer."""

_MARK = "llama_layers"
_MAX_SETTINGS_BYTES = 1 << 20
_META_FILE, _META_SECOND, _META_SETTINGS = (
    "consolidated.00.pth",
    "consolidated.01.pth",
    "params.json",
)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_HOW = "write one with `trainer llm-layers`"

# Our name -> (Hugging Face's, Meta's), after the number of the layer.
_PARTS = {
    "q": ("self_attn.q_proj.weight", "attention.wq.weight"),
    "k": ("self_attn.k_proj.weight", "attention.wk.weight"),
    "v": ("self_attn.v_proj.weight", "attention.wv.weight"),
    "o": ("self_attn.o_proj.weight", "attention.wo.weight"),
    "gate": ("mlp.gate_proj.weight", "feed_forward.w1.weight"),
    "up": ("mlp.up_proj.weight", "feed_forward.w3.weight"),
    "down": ("mlp.down_proj.weight", "feed_forward.w2.weight"),
    "attention_norm": ("input_layernorm.weight", "attention_norm.weight"),
    "ffn_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
}


@dataclass(frozen=True)
class LlamaSpec:
    """Sizes of a LLaMA's layers.

    Args:
        width: features of a token.
        heads: attention heads.
        kv_heads: heads of keys and values, each shared by `heads / kv_heads` (GQA).
        hidden: features inside the feed-forward.
        eps: of the norms.
        rope_theta: base of the rotary positions.
        rope_kind: `default`, or the name of a scaling of them.
    """

    width: int
    heads: int
    kv_heads: int
    hidden: int
    eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_kind: str = "default"

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.width // self.heads


@dataclass(frozen=True)
class LlamaLayers:
    """Some layers of a LLaMA.

    Args:
        spec: their sizes.
        layers: tensors of each layer by its zero-based number, in order; the names are those of
            `tensor_shapes`.
        norm: (width,) gain of the norm after the last layer of the whole network.
        source: what they were read from.
        sums: sha256 of each layer.
    """

    spec: LlamaSpec
    layers: Mapping[int, Mapping[str, Tensor]]
    norm: Tensor
    source: str
    sums: Mapping[int, str]

    @property
    def sha256(self) -> str:
        """Of all of it."""
        return _whole(asdict(self.spec), {str(k): v for k, v in self.sums.items()}, self.norm)


def tensor_shapes(spec: LlamaSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of the nine tensors of a layer."""
    kv = spec.kv_heads * spec.head
    return {
        "q": (spec.width, spec.width),
        "k": (kv, spec.width),
        "v": (kv, spec.width),
        "o": (spec.width, spec.width),
        "gate": (spec.hidden, spec.width),
        "up": (spec.hidden, spec.width),
        "down": (spec.width, spec.hidden),
        "attention_norm": (spec.width,),
        "ffn_norm": (spec.width,),
    }


def meta_name(part: str) -> str:
    """What Meta calls a tensor of `tensor_shapes`, after the number of the layer."""
    return _PARTS[part][1]


def extract_layers(
    checkpoint: str | Path, layers: Sequence[int], *, dtype: str = "bfloat16"
) -> LlamaLayers:
    """Read some layers of a LLaMA.

    Args:
        checkpoint: folder in the layout of Hugging Face or Meta, or `hf:ORG/NAME`.
        layers: zero-based numbers, ascending.
        dtype: `bfloat16`, `float16` or `float32`.

    Raises:
        UsageError: no such folder or settings, layers that the network does not have, tensors
            that are missing, of another shape or not finite; all missing ones are named.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'; give one of {', '.join(_DTYPES)}")
    path = resolve(checkpoint)
    folder = path if path.is_dir() else path.parent
    layout: Literal["hf", "meta"] = "meta" if (folder / _META_FILE).is_file() else "hf"
    files = _meta_file(folder) if layout == "meta" else read_folder(path)
    spec, count = _settings(folder, layout)
    spec = _with_hidden(spec, files, layout)
    _check_numbers(layers, count, str(path))
    named = _named(layers, layout)
    missing = [theirs for theirs in named.values() if theirs not in files]
    if missing:
        raise UsageError(
            f"'{path}' lacks {len(missing)} of {len(named)} tensors of layers "
            f"{_range(layers)} ({layout} layout): {some(missing, 4)}; it has "
            f"{some(sorted(files), 3)}. Nothing was written: these layers would be random"
        )
    chosen = _DTYPES[dtype]
    found = {
        i: {
            part: _tensor(files, named[i, part], shape, chosen, spec if layout == "meta" else None)
            for part, shape in tensor_shapes(spec).items()
        }
        for i in layers
    }
    norm = _tensor(files, named[-1, NORM], (spec.width,), chosen, None)
    return LlamaLayers(spec, found, norm, path.name, {i: _sum(each) for i, each in found.items()})


def layers_bytes(layers: LlamaLayers) -> bytes:
    """The file of the layers: safetensors, with sizes and checksums in its metadata."""
    tensors = {f"{i}.{key}": x for i, each in layers.layers.items() for key, x in each.items()}
    about = {
        "spec": asdict(layers.spec),
        "layers": list(layers.layers),
        "sums": {str(i): each for i, each in layers.sums.items()},
        "sha256": layers.sha256,
        "source": layers.source,
    }
    told = json.dumps(about, sort_keys=True)
    return safetensors_bytes(tensors | {NORM: layers.norm}, {_MARK: told})


def name_of_layers_file(layers: LlamaLayers) -> str:
    """`llama_layers_<hash>_<layers>.safetensors`."""
    return f"llama_layers_{layers.sha256[:8]}_{_range(list(layers.layers))}.safetensors"


def read_layers(path: str | Path, layers: Sequence[int] | None = None) -> LlamaLayers:
    """Some layers of a file of `layers_bytes`.

    Args:
        path: the file.
        layers: zero-based numbers in the whole network, ascending; None for all.

    Raises:
        UsageError: no such file, damaged (a checksum differs), or without one of these layers.
    """
    about = _about(path)
    spec = LlamaSpec(**{f.name: about["spec"][f.name] for f in fields(LlamaSpec)})
    held = [int(each) for each in about["layers"]]
    wanted = held if layers is None else list(layers)
    absent = [i for i in wanted if i not in held]
    if absent or not wanted:
        raise UsageError(
            f"'{path}' holds layers {_range(held)}, and asked for are {_range(wanted)}; set the "
            f"refiner's layers to some of those it holds, or {_HOW} that has them"
        )
    table = read_file(Path(path))
    found = {i: {part: table[f"{i}.{part}"] for part in tensor_shapes(spec)} for i in wanted}
    sums = {i: _sum(each) for i, each in found.items()}
    changed = [str(i) for i in wanted if sums[i] != about["sums"][str(i)]]
    if _whole(about["spec"], about["sums"], table[NORM]) != about["sha256"]:
        changed.append("the whole")
    if changed:
        raise UsageError(f"'{path}' is damaged: other checksums of {some(changed)}; {_HOW}")
    return LlamaLayers(spec, found, table[NORM], str(about["source"]), sums)


def layers_file_sha256(path: str | Path) -> str:
    """What a file of layers says is its hash; its numbers are not read.

    Raises:
        UsageError: no such file, or another kind of file.
    """
    return str(_about(path)["sha256"])


def _about(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UsageError(f"no file of LLaMA layers at '{path}'; {_HOW}")
    try:
        told = SafetensorsFile(Path(path)).metadata.get(_MARK)
    except (ValueError, OSError) as error:
        raise UsageError(f"'{path}' cannot be read as safetensors ({error}); {_HOW}") from None
    if told is None:
        raise UsageError(f"'{path}' is safetensors, but no file of LLaMA layers; {_HOW}")
    return json_object(told.encode(), f"the metadata of '{path}'")


def _meta_file(folder: Path) -> TensorFiles:
    if (folder / _META_SECOND).exists():
        raise UsageError(
            f"'{folder}' is cut across several devices ({_META_SECOND}); each file holds a part of "
            "every tensor. Convert it to the layout of Hugging Face first "
            "(convert_llama_weights_to_hf.py of transformers)"
        )
    table = read_file(folder / _META_FILE, lazily=True)
    return TensorFiles.of(str(folder / _META_FILE), table)


def _settings(folder: Path, layout: Literal["hf", "meta"]) -> tuple[LlamaSpec, int]:
    """Sizes, and how many layers the whole network has; `hidden` is 0 where no file says it."""
    file = folder / (_META_SETTINGS if layout == "meta" else "config.json")
    if not file.is_file():
        raise UsageError(f"'{folder}' has no {file.name}, which says how many heads there are")
    about = json_object(
        read_limited(file, _MAX_SETTINGS_BYTES, "the settings"), f"the settings '{file}'"
    )
    try:
        return (_meta_settings if layout == "meta" else _hf_settings)(about)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"'{file}' is not of a LLaMA: {type(error).__name__} {error}") from None


def _hf_settings(about: Mapping[str, Any]) -> tuple[LlamaSpec, int]:
    rope = about.get("rope_scaling") or about.get("rope_parameters") or {}
    heads = int(about["num_attention_heads"])
    spec = LlamaSpec(
        width=int(about["hidden_size"]),
        heads=heads,
        kv_heads=int(about.get("num_key_value_heads") or heads),
        hidden=int(about["intermediate_size"]),
        eps=float(about.get("rms_norm_eps", 1e-6)),
        rope_theta=float(about.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        rope_kind=str(rope.get("rope_type") or rope.get("type") or "default"),
    )
    if about.get("head_dim") not in (None, spec.head):
        raise ValueError(f"head_dim {about['head_dim']} is not hidden_size / heads")
    return spec, int(about["num_hidden_layers"])


def _meta_settings(about: Mapping[str, Any]) -> tuple[LlamaSpec, int]:
    heads = int(about["n_heads"])
    spec = LlamaSpec(
        width=int(about["dim"]),
        heads=heads,
        kv_heads=int(about.get("n_kv_heads") or heads),
        hidden=0,
        eps=float(about.get("norm_eps", 1e-6)),
        rope_theta=float(about.get("rope_theta") or 10000.0),
        rope_kind="scaled" if about.get("use_scaled_rope") else "default",
    )
    return spec, int(about["n_layers"])


def _with_hidden(spec: LlamaSpec, files: Mapping[str, Tensor], layout: str) -> LlamaSpec:
    """Meta's settings leave the feed-forward to a formula; the tensors say it."""
    if layout == "hf":
        return spec
    first = next((name for name in files if name.endswith("feed_forward.w1.weight")), None)
    hidden = 0 if first is None else int(files[first].shape[0])
    return LlamaSpec(**(asdict(spec) | {"hidden": hidden}))


def _check_numbers(layers: Sequence[int], count: int, where: str) -> None:
    wrong = [i for i in layers if not 0 <= i < count]
    if wrong or not layers or list(layers) != sorted(set(layers)):
        raise UsageError(
            f"layers are zero-based numbers, ascending, each once; got {list(layers)}, and "
            f"'{where}' has {count}: 0 to {count - 1}"
        )


def _named(layers: Sequence[int], layout: Literal["hf", "meta"]) -> dict[tuple[int, str], str]:
    """Their name of every tensor that is wanted; the last norm is (−1, NORM)."""
    column, prefix = (0, "model.") if layout == "hf" else (1, "")
    named = {
        (i, part): f"{prefix}layers.{i}.{names[column]}"
        for i in layers
        for part, names in _PARTS.items()
    }
    return named | {(-1, NORM): f"{prefix}norm.weight"}


def _tensor(
    files: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    interleaved: LlamaSpec | None,
) -> Tensor:
    value = files[name]
    if tuple(value.shape) != shape:
        raise UsageError(
            f"tensor {name} is {tuple(value.shape)} and should be {shape} by the settings; the "
            "settings are of another model"
        )
    made = value.to(dtype, copy=True)
    if not bool(torch.isfinite(made).all()):
        raise UsageError(f"tensor {name} is not finite as {dtype}; the file is damaged")
    if interleaved is not None and re.search(r"\.w[qk]\.", name):
        halves = made.view(-1, interleaved.head // 2, 2, interleaved.width)
        made = halves.transpose(1, 2).reshape(shape).contiguous()
    return made


def _sum(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{x.dtype}|{tuple(x.shape)}|".encode())
        sha.update(x.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _whole(spec: Mapping[str, Any], sums: Mapping[str, str], norm: Tensor) -> str:
    """The hash of a file: of its sizes, the checksums of its layers, and the last norm."""
    content = [dict(spec), dict(sums), _sum({NORM: norm})]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _range(layers: Sequence[int]) -> str:
    """`13-16`, or `8,31`."""
    whole = list(layers) == list(range(layers[0], layers[-1] + 1)) if layers else False
    if whole and len(layers) > 1:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers)) or "none"
