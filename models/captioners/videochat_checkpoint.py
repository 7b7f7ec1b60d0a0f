"""VideoChat's weights from the files that its authors and those of BLIP-2 published.

A folder:

    eva_vit_g.pth                    ViT-g of BLIP-2 (LAVIS)
    blip2_pretrained_flant5xxl.pth   Q-Former of BLIP-2 for Flan-T5-XXL (LAVIS)
    videochat_7b.pth | videochat_13b.pth
    llm/                             Vicuna-7B-v0 | StableVicuna-13B, as transformers saves it
    sizes.json                       `VisionSizes`, for a network of one's own of other sizes

Every tensor of the network comes from exactly one of them, and what a file holds beyond that is
known by name: anything missing, left over or of another shape is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UsageError, some
from data.foreign import json_object, read_limited
from models.captioners.videochat_network import PUBLISHED, SIZES, VideoChatEyes, VisionSizes
from models.checkpoints import Checkpoint, State
from models.large import build_empty, fill_from
from models.shards import TensorFiles, read_folder
from models.weights import Weights
from models.zoo import resolve

__all__ = ["Files", "find_files", "llm_config", "load_eyes", "own_names"]

_ENDINGS = ("safetensors", "pth", "pt", "bin")
_MAX_CONFIG_BYTES = 1 << 20
_LLM_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
_XXL_DIM = 4096
"""Width of Flan-T5-XXL; 2048 is XL, whose Q-Former is another one."""

_SOURCES = {
    "eva_vit_g": "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
    "eva_vit_g.pth",
    "blip2_pretrained_flant5xxl": "https://storage.googleapis.com/sfr-vision-language-research/"
    "LAVIS/models/BLIP2/blip2_pretrained_flant5xxl.pth",
    "videochat_7b or videochat_13b": "https://github.com/OpenGVLab/Ask-Anything/blob/main/"
    "video_chat/README.md",
}
"""Where the README of the public code says that the files are."""


@dataclass(frozen=True)
class Files:
    """The files of one VideoChat.

    Args:
        vit: of BLIP-2.
        qformer: of BLIP-2.
        own: what VideoChat trained.
        llm: folder of the language model.
        sizes: of what is before it, where the folder says so.
    """

    vit: Path
    qformer: Path
    own: Path
    llm: Path
    sizes: VisionSizes | None = None


def find_files(checkpoint: Checkpoint) -> Files:
    """The files in a folder.

    Raises:
        UsageError: no folder, a file that is not there, or several that could be meant.
    """
    if isinstance(checkpoint, Mapping):
        raise UsageError(
            "captioner videochat reads its weights from a folder of files, got a table of tensors"
        )
    folder = resolve(checkpoint)
    if not folder.is_dir():
        raise UsageError(
            f"captioner videochat reads its weights from a folder, got the file '{folder}'; give "
            f"the folder with {_wanted()}"
        )
    llm = _llm_folder(folder)
    size = {4096: "7b", 5120: "13b"}.get(llm_config(llm)["hidden_size"], "")
    return Files(
        _one(folder, "eva_vit_g", ["eva_vit_g"]),
        _one(folder, "blip2_pretrained_flant5xxl", ["blip2_pretrained_flant5xxl"]),
        _one(folder, "videochat_7b or videochat_13b", [f"videochat_{size}", "videochat*"]),
        llm,
        _told_sizes(folder / "sizes.json"),
    )


def _told_sizes(path: Path) -> VisionSizes | None:
    if not path.is_file():
        return None
    told = json_object(read_limited(path, _MAX_CONFIG_BYTES, "the sizes"), f"'{path}'")
    names = [each.name for each in fields(VisionSizes)]
    wrong = sorted({*names} ^ told.keys()) or [
        name for name in names if type(told[name]) is not int or told[name] < 1
    ]
    wrong = wrong or [f"{a} by {b}" for a, b in _WHOLE if told[a] % told[b]]
    if wrong:
        raise UsageError(
            f"'{path}' has to hold {', '.join(names)}, each a number above 0, of which "
            f"{', '.join(f'{a} is divided by {b}' for a, b in _WHOLE)}; wrong: {some(wrong, 4)}"
        )
    return VisionSizes(**told)


_WHOLE = (("dim", "heads"), ("q_dim", "q_heads"), ("side", "patch"))


def _wanted() -> str:
    return f"{', '.join(f'{name}.pth' for name in _SOURCES)} and llm/"


def _one(folder: Path, what: str, patterns: Iterable[str]) -> Path:
    """The file of the first pattern that any has; safetensors before what is unpickled."""
    for pattern in patterns:
        for ending in _ENDINGS:
            found = sorted(folder.glob(f"{pattern}.{ending}"))
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(each.name for each in found)
                raise UsageError(
                    f"folder '{folder}' holds several files that could be VideoChat's ({names}), "
                    "and none of them is named after the size of llm/; leave only one there"
                )
    raise UsageError(
        f"folder '{folder}' holds no {what} (.{', .'.join(_ENDINGS)}); captioner videochat needs "
        f"{_wanted()}. It is published at {_SOURCES[what]}"
    )


def _llm_folder(folder: Path) -> Path:
    """`llm/`, or the only folder with a configuration, whatever it is called."""
    if (folder / "llm" / "config.json").is_file():
        return folder / "llm"
    found = sorted(each.parent for each in folder.glob("*/config.json"))
    if len(found) == 1:
        return found[0]
    held = f"several: {some([each.name for each in found], 4)}" if found else "none"
    raise UsageError(
        f"folder '{folder}' must hold one language model (a folder llm/ with config.json, weights "
        f"and tokenizer: StableVicuna-13B or Vicuna-7B-v0), found {held}"
    )


def llm_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the language model.

    Raises:
        UsageError: unreadable, or no LLaMA.
    """
    path = folder / "config.json"
    content = read_limited(path, _MAX_CONFIG_BYTES, "the configuration")
    config = json_object(content, f"'{path}'")
    kind = config.get("model_type")
    if kind != "llama" or not all(type(config.get(each)) is int for each in _LLM_SIZES):
        raise UsageError(
            f"'{path}' is no configuration of a LLaMA (model_type 'llama' with "
            f"{', '.join(_LLM_SIZES)}), its model_type is {kind!r}; VideoChat was trained with "
            "StableVicuna-13B and Vicuna-7B-v0"
        )
    return config


def load_eyes(
    files: Files, llm_dim: int, *, dtype: torch.dtype, device: str | torch.device
) -> tuple[VideoChatEyes, Weights]:
    """Everything before the language model.

    Args:
        files: where the weights are.
        llm_dim: width of the language model.
        dtype: of multiplications.
        device: where it computes.

    Raises:
        UsageError: a file that is not what its name says, or does not fit the others.
    """
    vit, qformer, own = (read_folder(path) for path in (files.vit, files.qformer, files.own))
    _check_qformer(qformer, files.qformer)
    _check_own(own, files.own, llm_dim)
    sizes = files.sizes or _sizes(vit, files.vit)
    merged = {
        **{f"visual_encoder.{key}": vit[key] for key in vit if not _cut_off(key, sizes.depth)},
        **{key: qformer[key] for key in qformer if not _surplus_of_blip2(key)},
        **{key: own[key] for key in own if not _surplus_of_training(key)},
    }
    source = f"{files.vit.name}, {files.qformer.name}, {files.own.name}"
    eyes = build_empty(lambda: VideoChatEyes(sizes, llm_dim).compute_in(dtype))
    table = TensorFiles.of(source, own_names(merged))
    weights = fill_from(
        eyes, table, "VideoChat", dtype=eyes.dtypes, device=device, layout="OpenGVLab's"
    )
    return eyes, weights


def _sizes(vit: Mapping[str, Tensor], path: Path) -> VisionSizes:
    places = vit.get("pos_embed")
    if places is None or places.ndim != 3:
        raise UsageError(
            f"'{path}' is not BLIP-2's ViT-g: it has no pos_embed; its tensors are called "
            f"{some([*vit], 4)}"
        )
    for sizes in SIZES:
        if sizes.dim == places.shape[-1]:
            return sizes
    raise UsageError(
        f"'{path}' is not BLIP-2's ViT-g: it is {places.shape[-1]} wide, expected {PUBLISHED.dim}; "
        "beside a network of other sizes lies a sizes.json"
    )


def _cut_off(key: str, depth: int) -> bool:
    """What BLIP-2 leaves of EVA's ViT: not the blocks beyond `depth`, the last norm, the head."""
    found = re.match(r"blocks\.(\d+)\.|(?:norm|fc_norm|head)\.", key)
    return found is not None and (found[1] is None or int(found[1]) >= depth)


def _check_qformer(state: Mapping[str, Tensor], path: Path) -> None:
    """VideoChat was trained on the frozen Q-Former of one of the BLIP-2s; all have its shapes."""
    queries, led = state.get("query_tokens"), state.get("t5_proj.weight")
    published = queries is not None and queries.shape[-1] == PUBLISHED.q_dim
    if published and (led is None or led.shape[0] != _XXL_DIM):
        found = "no t5_proj" if led is None else f"t5_proj to {led.shape[0]}"
        raise UsageError(
            f"'{path}' is not the BLIP-2 that VideoChat was trained with: it has {found}, and "
            f"that of Flan-T5-XXL has one to {_XXL_DIM}; get blip2_pretrained_flant5xxl.pth"
        )


def _check_own(state: Mapping[str, Tensor], path: Path, llm_dim: int) -> None:
    """All that was trained must be there: where `ln_vision` lacks, BLIP-2's would fit, too."""
    wanted = ("visual_encoder.gmhra_cls_token", "ln_vision.weight", "ln_vision.bias")
    missing = [key for key in (*wanted, "extra_query_tokens") if key not in state]
    led = state.get("llama_proj.weight")
    if missing or led is None:
        raise UsageError(
            f"'{path}' is no checkpoint of VideoChat: it lacks "
            f"{some([*missing, *(['llama_proj.weight'] if led is None else [])], 4)}; its tensors "
            f"are called {some([*state], 4)}"
        )
    if led.shape[0] != llm_dim:
        raise UsageError(
            f"'{path}' leads to a language model of width {led.shape[0]}, and llm/ is {llm_dim} "
            "wide; videochat_7b belongs to Vicuna-7B-v0 (4096), videochat_13b to StableVicuna-13B "
            "(5120)"
        )


def _surplus_of_blip2(key: str) -> bool:
    """The way to Flan-T5, and an index that is no weight."""
    return key.startswith("t5_proj.") or key == "Qformer.bert.embeddings.position_ids"


def _surplus_of_training(key: str) -> bool:
    """Tables that are computed, which the training program saved beside what it trained."""
    return key.endswith((".rotary_emb.inv_freq", ".position_ids"))


_Rename = str | Callable[[re.Match[str]], str]

_NAMES: tuple[tuple[str, _Rename], ...] = (
    (r"visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"visual_encoder\.gmhra_cls_token", "gather_query"),
    (r"visual_encoder\.gmhra\.", "gather."),
    (r"visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"ln_vision\.", "vision.post_layernorm."),
    (r"Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(cross)?attention\.self\.",
        lambda found: f"qformer.encoder.layer.{found[1]}.{found[2] or ''}attention.attention.",
    ),
    (r"Qformer\.bert\.", "qformer."),
)
"""Beginnings of official names; the first that fits."""


def _own_name(official: str) -> str:
    for pattern, own in _NAMES:
        renamed, count = re.subn(rf"^{pattern}", own, official)
        if count:
            return renamed
    return official


def own_names(state: Mapping[str, Tensor]) -> State:
    """The state dict of the public code under the names of `VideoChatEyes`.

    Args:
        state: `visual_encoder.*`, `ln_vision.*`, `Qformer.bert.*`, `query_tokens`,
            `extra_query_tokens`, `llama_proj.*`; what else there is keeps its name.
    """
    made = {_own_name(key): value for key, value in state.items()}
    for key in [key for key in made if key.endswith(".self_attn.q_bias")]:
        attention = key.removesuffix("q_bias")
        values = made.get(f"{attention}v_bias")
        if values is not None:  # keys have no bias
            q_bias = made.pop(key)
            del made[f"{attention}v_bias"]
            made[f"{attention}qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), values])
    patches = made.get("vision.embeddings.patch_embedding.weight")
    if patches is not None and patches.ndim == 5 and patches.shape[2] == 1:
        # VideoChat's own ViT has a Conv3d there, one frame deep.
        made["vision.embeddings.patch_embedding.weight"] = patches.squeeze(2)
    return made
