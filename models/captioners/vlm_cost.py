"""What a caption of a vision-language model costs, without its weights.

Its own processor is run on one empty picture: that gives the exact number of tokens, and, by the
numbers that come out of it, how many patches the vision tower reads, for any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.captioners.limits import Transformer, Work
from models.captioners.vlm_files import load_config, load_processor, process_empty

__all__ = ["work_of"]

_PROMPT_TOKENS = 40
"""Of an instruction: the shipped ones have 10 to 40."""

_CHANNELS = 3


def work_of(folder: Path, options: Mapping[str, Any]) -> Work | None:
    """Cost of one caption; None for a network whose sizes are told otherwise (experts, no ViT).

    Args:
        folder: of the model.
        options: of the captioner, as the user gave them.
    """
    config = load_config(folder)
    text, vision = _language(config.get_text_config()), getattr(config, "vision_config", None)
    if text is None or vision is None:
        return None
    processor = load_processor(folder, config)
    side, frames = int(options.get("side", 672)), int(options.get("frames", 1))
    made = process_empty(processor, options.get("processor") or {}, side=side, frames=frames)
    tower = _vision(vision, made["pixel_values"].numel() // _CHANNELS)
    if tower is None:
        return None
    flops, weights = tower
    return Work.of(
        text,
        flops,
        weights,
        made["input_ids"].shape[1] + _PROMPT_TOKENS,
        int(options.get("max_new_tokens", 128)),
    )


def _language(config: Any) -> Transformer | None:
    if any("expert" in name for name in config.to_dict()):
        return None
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Transformer(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        gated=True,
        kv_dim=width * (getattr(config, "num_key_value_heads", None) or heads),
        vocab=config.vocab_size,
    )


def _vision(config: Any, pixels: int) -> tuple[float, int] | None:
    """FLOPs and weights of a vision transformer that reads `pixels` pixels, tile by tile."""
    told = config.to_dict()
    layers = told.get("num_hidden_layers") or told.get("depth")
    dim = told.get("hidden_size") or told.get("embed_dim")
    patch = told.get("patch_size")
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if not (layers and dim and patch):
        return None
    ffn = told.get("intermediate_size") or int(dim * (told.get("mlp_ratio") or 4))
    gated = told.get("hidden_act") == "silu"  # Qwen2.5-VL; all others have two multiplications
    tower = Transformer(layers, dim, ffn, gated=gated, causal=False)
    patches = pixels // (patch * patch * (told.get("temporal_patch_size") or 1))
    size = told.get("image_size")
    size = size[0] if isinstance(size, list | tuple) else size
    tile = min((size // patch) ** 2 if size else patches, patches) or 1
    first = _CHANNELS * patch * patch * (told.get("temporal_patch_size") or 1) * dim
    flops = patches / tile * tower.flops(tile) + 2.0 * patches * first
    return flops, tower.layer_weights + first
