"""A tiny random LLaMA in both public layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.llama_files import meta_name

__all__ = [
    "HEADS",
    "KV_HEADS",
    "LAYERS",
    "WIDTH",
    "hugging_face_folder",
    "interleaved",
    "meta_folder",
    "tensors",
    "transformers_llama",
]

WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS = 64, 4, 2, 96, 4

_SETTINGS = {
    "vocab_size": 16,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}

_KV = WIDTH // HEADS * KV_HEADS
_PARTS = {
    "q": ("self_attn.q_proj", (WIDTH, WIDTH)),
    "k": ("self_attn.k_proj", (_KV, WIDTH)),
    "v": ("self_attn.v_proj", (_KV, WIDTH)),
    "o": ("self_attn.o_proj", (WIDTH, WIDTH)),
    "gate": ("mlp.gate_proj", (HIDDEN, WIDTH)),
    "up": ("mlp.up_proj", (HIDDEN, WIDTH)),
    "down": ("mlp.down_proj", (WIDTH, HIDDEN)),
    "attention_norm": ("input_layernorm", (WIDTH,)),
    "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
}


def tensors() -> dict[str, Tensor]:
    """All tensors under the names of Hugging Face, the same in every call."""
    rng = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        if len(shape) == 1:
            return 1 + 0.1 * torch.randn(shape, generator=rng)
        return torch.randn(shape, generator=rng) / shape[-1] ** 0.5

    layers = {
        f"layers.{i}.{theirs}.weight": drawn(*shape)
        for i in range(LAYERS)
        for theirs, shape in _PARTS.values()
    }
    return {"embed_tokens.weight": drawn(16, WIDTH), **layers, "norm.weight": drawn(WIDTH)}


def transformers_llama() -> Any:
    """The model of transformers."""
    from transformers import LlamaConfig, LlamaModel

    model = LlamaModel(LlamaConfig(**_SETTINGS, attn_implementation="eager")).eval()
    model.load_state_dict(tensors())
    return model


def hugging_face_folder(folder: Path) -> Path:
    """Two shards with an index, as a causal language model is published."""
    whole = {f"model.{key}": x for key, x in tensors().items()}
    whole["lm_head.weight"] = torch.zeros(16, WIDTH)
    names, files = list(whole), ("model-00001-of-00002", "model-00002-of-00002")
    placed = {name: f"{files[2 * i // len(names)]}.safetensors" for i, name in enumerate(names)}
    folder.mkdir(exist_ok=True)
    for file in set(placed.values()):
        held = {name: whole[name] for name in names if placed[name] == file}
        save_file(held, folder / file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_SETTINGS))
    return folder


def meta_folder(folder: Path) -> Path:
    """The same model as Meta publishes it: other names, halves of a head's features interleaved."""
    state = tensors()
    made: dict[str, Tensor] = {"norm.weight": state["norm.weight"]}
    for i in range(LAYERS):
        for part, (theirs, _) in _PARTS.items():
            value = state[f"layers.{i}.{theirs}.weight"]
            made[f"layers.{i}.{meta_name(part)}"] = interleaved(value) if part in "qk" else value
        made[f"layers.{i}.attention.inner_attention.rope.freqs"] = torch.ones(8)
    folder.mkdir(exist_ok=True)
    torch.save(made, folder / "consolidated.00.pth")
    settings = {
        "dim": WIDTH,
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "n_layers": LAYERS,
        "norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(settings))
    return folder


def interleaved(weight: Tensor) -> Tensor:
    """Rows of `weight` in Meta's order: feature 2i and 2i + 1 of a head are turned together."""
    head = WIDTH // HEADS
    halves = weight.view(-1, 2, head // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)
