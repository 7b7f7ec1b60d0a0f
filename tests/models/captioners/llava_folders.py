"""Folders of a tiny LLaVA in both layouts, with the weights and the tokenizer of the goldens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

TOWER = "model.vision_tower.vision_tower."


def vision_config(dims: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": dims["v_dim"],
        "intermediate_size": dims["v_ffn"],
        "num_hidden_layers": dims["v_layers"],
        "num_attention_heads": dims["v_heads"],
        "image_size": dims["image"],
        "patch_size": dims["patch"],
        "hidden_act": dims["vision_act"],
        "layer_norm_eps": dims["vision_ln_eps"],
        "projection_dim": dims["v_dim"],
    }


def text_config(dims: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": dims["vocab"],
        "hidden_size": dims["dim"],
        "intermediate_size": dims["ffn"],
        "num_hidden_layers": dims["layers"],
        "num_attention_heads": dims["heads"],
        "max_position_embeddings": dims["max_position_embeddings"],
        "rms_norm_eps": dims["rms_norm_eps"],
        "rope_theta": dims["rope_theta"],
        "hidden_act": "silu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }


def own_config(dims: Mapping[str, Any], tower: Path | str) -> dict[str, Any]:
    """config.json of liuhaotian/llava-v1.5-*: it says `llava`, as llava-hf's does."""
    return {
        **text_config(dims),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": dims["v_dim"],
        "mm_projector_type": dims["mm_projector_type"],
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": dims["mm_vision_select_feature"],
        "mm_vision_select_layer": dims["mm_vision_select_layer"],
        "mm_vision_tower": str(tower),
        "tie_word_embeddings": False,
    }


def write_tower(folder: Path, meta: Mapping[str, Any], state: State, whole: bool = True) -> Path:
    """A folder of CLIP, as openai/clip-vit-large-patch14-336: with the half that reads."""
    folder.mkdir(parents=True)
    seen = {
        name.removeprefix(TOWER): value.clone()
        for name, value in state.items()
        if name.startswith(TOWER)
    }
    seen["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if whole:
        seen |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(3)}
        seen["visual_projection.weight"] = torch.ones(3, 3)
    torch.save(seen, folder / "pytorch_model.bin")
    config = {"model_type": "clip", "vision_config": vision_config(meta["dims"])}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_own(
    folder: Path,
    meta: Mapping[str, Any],
    state: State,
    tokenizer: Path,
    tower: Path,
    with_tower: bool = True,
) -> Path:
    """The layout of liuhaotian: two shards of torch.save, tokenizer.model."""
    folder.mkdir(parents=True)
    held = {
        name: value for name, value in state.items() if with_tower or not name.startswith(TOWER)
    }
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    names = sorted(held)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: held[name] for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    # Beside the shards lies the projector alone, which they hold, too.
    torch.save({}, folder / "mm_projector.bin")
    (folder / "config.json").write_text(json.dumps(own_config(meta["dims"], tower)))
    shutil.copy(tokenizer, folder / "tokenizer.model")
    return folder


def hf_state(state: State) -> State:
    """Names as transformers wrote them until 4.51."""

    def renamed(name: str) -> str:
        if name.startswith(TOWER):
            return "vision_tower." + name.removeprefix(TOWER)
        for own, theirs in (("0", "linear_1"), ("2", "linear_2")):
            if name.startswith(f"model.mm_projector.{own}."):
                return f"multi_modal_projector.{theirs}." + name.rpartition(".")[2]
        return "language_model." + name

    return {renamed(name): value.clone() for name, value in state.items()}


def write_hf(
    folder: Path,
    meta: Mapping[str, Any],
    state: State,
    tokenizer: Path,
    extra_rows: int = 0,
) -> Path:
    """The layout of llava-hf: safetensors, `extra_rows` more words for pictures and padding."""
    folder.mkdir(parents=True)
    held = hf_state(state)
    dims = dict(meta["dims"])
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        # One of the two kinds is likelier than every word, whatever was seen.
        more = torch.full((extra_rows, dims["dim"]), 30.0)
        more[::2] = -30.0
        held[name] = torch.cat([held[name], more])
    dims["vocab"] += extra_rows
    save_file(held, folder / "model.safetensors")
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": meta["dims"]["vocab"],
        "projector_hidden_act": "gelu",
        "text_config": {**text_config(dims), "model_type": "llama"},
        "vision_config": vision_config(dims),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, folder / "tokenizer.model")
    return folder
