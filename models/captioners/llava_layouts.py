"""What is in a folder of LLaVA: its own layout (liuhaotian's) or that of llava-hf, without torch.

The two differ in config.json and in the names of tensors; the numbers are the same. transformers
reads only the second one: given the first, whose config also says `model_type: llava`, it builds a
default 7B and returns it with random weights (specs/captioners.md §1.3, trap A).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.errors import UsageError
from data.foreign import brief, json_object, read_limited
from models.captioners.colours import CLIP_MEAN, CLIP_STD, colours_of
from models.captioners.llava_names import hf_name, own_name
from models.zoo import resolve

__all__ = ["SIZES", "LlavaPlan", "plan_of"]

Fit = Literal["padded", "cropped"]

_MAX_CONFIG_BYTES = 1 << 20

# What transformers takes for fields that a config leaves out.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}

_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "clip-vit-large-patch14-336": _LARGE,
    "clip-vit-large-patch14": {**_LARGE, "image_size": 224},
}
"""OpenAI's towers by the last part of their names: where a folder names one and holds its tensors,
nothing else is needed."""

_OF_LLAMA = (
    *_LLAMA,
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)
"""Fields that change numbers; ids of markers come from the tokenizer."""

MOST_PIXELS = 4096
"""Of a picture's side; CLIP has 224 and 336."""

_MOST_SIZE = 1 << 20
_MOST: Mapping[str, int] = {"num_hidden_layers": 1024, "image_size": MOST_PIXELS}
"""Largest sizes that are believed; LLaVA 1.5 has 40 layers and 32,000 tokens."""

_OF_CLIP = (*_CLIP, "projection_dim", "num_channels", "hidden_act", "layer_norm_eps")
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


@dataclass(frozen=True)
class LlavaPlan:
    """What has to be built, and how its files name it.

    Args:
        layout: "llava-hf" or "liuhaotian"; "" for random weights.
        text: fields of a `LlamaConfig`.
        vision: fields of a `CLIPVisionConfig`.
        folder: where files are; None for random weights.
        layer: hidden state of the vision tower that is taken; -2 is the one before the last layer.
        select: "default" leaves its class token out, "full" keeps it.
        fit: how the model was shown its pictures.
        mean: of pixels in [0, 1], per colour.
        std: the same.
        dtype: of the numbers, by the config; "" where it says nothing.
        tower: folder or name with the weights of the vision tower, where the model's own files
            have none.
        tower_asked: whether option `vision` named it, and not config.json.
        tied: whether the words that are read and written share a table.
        rename: a name in the files to one of transformers' `LlavaForConditionalGeneration`; None
            for what is no weight.
    """

    layout: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    folder: Path | None = None
    layer: int = -2
    select: Literal["default", "full"] = "default"
    fit: Fit = "padded"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    dtype: str = ""
    tower: str = ""
    tower_asked: bool = False
    tied: bool = False
    rename: Callable[[str], str | None] = field(default=lambda name: name)

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return int(self.vision["image_size"])

    @property
    def picture_tokens(self) -> int:
        """Tokens that a picture becomes: 576 for 336 pixels in patches of 14."""
        patches = (self.side // int(self.vision["patch_size"])) ** 2
        return patches + (self.select == "full")


def _sized(text: Mapping[str, Any], vision: Mapping[str, Any]) -> LlavaPlan:
    return LlavaPlan("", {**_LLAMA, "rms_norm_eps": 1e-5, **text}, {**_LARGE, **vision})


SIZES: Mapping[str, LlavaPlan] = {
    "tiny": _sized(
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
        },
    ),
    "7b": _sized({"max_position_embeddings": 4096}, {}),
    "13b": _sized(
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "max_position_embeddings": 4096,
        },
        {},
    ),
}
"""Architectures of random weights: a narrow one, and those of LLaVA 1.5."""


def plan_of(checkpoint: Path | str, vision: str | None = None) -> LlavaPlan:
    """What the folder of a checkpoint holds, from its config.json alone.

    Args:
        checkpoint: a folder, or `hf:ORG/NAME`.
        vision: the vision tower, a folder or `hf:ORG/NAME`; where config.json names one and None
            is given, that one.

    Raises:
        UsageError: no LLaVA, or one that is built otherwise; it says which captioner reads it.
    """
    folder = resolve(checkpoint)
    if folder.is_file():
        raise UsageError(
            f"'{folder}' is a file; captioner llava reads the folder of a whole model, with its "
            f"config.json and tokenizer: give '{folder.parent}'"
        )
    if not (folder / "config.json").is_file():
        lora = (folder / "adapter_config.json").is_file()
        raise UsageError(
            f"'{folder}' is no folder of LLaVA: no config.json in it; "
            + (
                "it is a LoRA: merge it into its base model first"
                if lora
                else "give the folder of a whole model, of llava-hf or liuhaotian"
            )
        )
    config = _json(folder / "config.json")
    if config.get("quantization_config"):
        raise UsageError(
            f"'{folder}' is quantised ({brief(config['quantization_config'])}), which 'llava' does "
            "not read; give the model in float16 or bfloat16, or serve it and use 'openai'"
        )
    # Not by model_type: liuhaotian's own config says `llava`, too.
    if "mm_vision_tower" in config or "mm_projector_type" in config:
        return _own(folder, config, vision)
    if isinstance(config.get("vision_config"), dict):
        return _hf(folder, config, vision)
    raise UsageError(
        f"'{folder / 'config.json'}' is no LLaVA's: it has neither `vision_config` (llava-hf) nor "
        f"`mm_vision_tower` (liuhaotian), model_type is {brief(config.get('model_type'))}; other "
        "models are for captioner 'vlm'"
    )


def _json(file: Path) -> dict[str, Any]:
    return json_object(read_limited(file, _MAX_CONFIG_BYTES, "the configuration"), str(file))


def _refuse(folder: Path, what: str, instead: str = "use captioner 'vlm'") -> UsageError:
    return UsageError(f"'{folder}' is a LLaVA of another build: {what}; {instead}")


# --- the layout of llava-hf


def _hf(folder: Path, config: Mapping[str, Any], vision: str | None) -> LlavaPlan:
    if vision is not None:
        raise UsageError(
            f"option `vision` is for checkpoints without a vision tower; '{folder}' is in the "
            "layout of llava-hf, which holds one: leave `vision` out"
        )
    text, seen = config.get("text_config") or {}, config["vision_config"]
    expected = {
        "model_type": (config, "llava"),
        "text_config.model_type": (text, "llama"),
        "vision_config.model_type": (seen, "clip_vision_model"),
    }
    for name, (part, kind) in expected.items():
        found = part.get("model_type", kind)
        if found != kind:
            raise _refuse(folder, f"{name} is {brief(found)}, 'llava' builds {kind}")
    built: Mapping[str, Any] = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
    for name, wanted in built.items():
        if config.get(name, wanted) != wanted:
            raise _refuse(folder, f"{name} is {brief(config[name])}, 'llava' builds {wanted}")
    layer = config.get("vision_feature_layer", -2)
    select = config.get("vision_feature_select_strategy", "default")
    if type(layer) is not int or select not in ("default", "full"):
        raise _refuse(folder, f"it takes layers {brief(layer)}, {brief(select)} tokens")
    mean, std = colours_of(folder)
    return LlavaPlan(
        "llava-hf",
        _text_of(folder, {**_LLAMA, "tie_word_embeddings": False, **text}),
        _vision_of(folder, seen),
        folder,
        layer,
        select,
        # Its own image processor crops for the sake of old users; the model was trained on the
        # whole picture (huggingface/transformers #33191).
        "padded",
        mean,
        std,
        _dtype_of(config) or _dtype_of(text),
        tied=bool(config.get("tie_word_embeddings", False)),
        rename=hf_name,
    )


# --- the layout of liuhaotian


def _own(folder: Path, config: Mapping[str, Any], vision: str | None) -> LlavaPlan:
    _check_own(folder, config)
    missing = [name for name in _NEEDED if name not in config]
    if missing:
        raise UsageError(
            f"'{folder / 'config.json'}' lacks {', '.join(missing)}; it must be the one that the "
            "model was published with"
        )
    tower = vision or _named_tower(folder, config)
    select = config.get("mm_vision_select_feature", "patch")
    return LlavaPlan(
        "liuhaotian",
        _text_of(folder, {name: config[name] for name in _OF_LLAMA if name in config}),
        _tower_config(folder, tower, given=vision is not None),
        folder,
        int(config.get("mm_vision_select_layer", -2)),
        "default" if select == "patch" else "full",
        "padded" if config.get("image_aspect_ratio") == "pad" else "cropped",
        dtype=_dtype_of(config),
        tower=tower,
        tower_asked=vision is not None,
        tied=bool(config.get("tie_word_embeddings", False)),
        rename=own_name,
    )


def _named_tower(folder: Path, config: Mapping[str, Any]) -> str:
    """What config.json calls it: a name, a path, or a folder within the model's own."""
    named = str(config.get("mm_vision_tower") or "")
    return str(folder / named) if named and (folder / named / "config.json").is_file() else named


def _check_own(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what other members of the family do otherwise."""
    kinds = config.get("architectures") or ["LlavaLlamaForCausalLM"]
    if kinds != ["LlavaLlamaForCausalLM"]:
        raise _refuse(folder, f"it is a {brief(kinds)}, 'llava' builds LlavaLlamaForCausalLM")
    allowed: Mapping[str, tuple[Any, ...]] = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", "cls_patch"),
        "image_aspect_ratio": ("pad", "square", None),
        "mm_patch_merge_type": ("flat", None),
        "mm_use_im_start_end": (False, None),
        "mm_use_im_patch_token": (False, None),
        "mm_resampler_type": (None,),
    }
    for name, values in allowed.items():
        if name in config and config[name] not in values:
            raise _refuse(
                folder,
                f"{name} is {brief(config[name])}, 'llava' builds {brief(values[0])} (LLaVA 1.5)",
                "LLaVA 1.6: give llava-hf/llava-v1.6-* to captioner 'vlm'",
            )
    if config.get("mm_projector_type") is None:
        raise _refuse(
            folder,
            "mm_projector_type is not stated, which means a linear one (LLaVA 1.0)",
            "give a LLaVA 1.5",
        )


def _tower_config(folder: Path, tower: str, given: bool) -> dict[str, Any]:
    """Sizes of the vision tower: from its own folder if that is here, else by its name."""
    name = tower.rstrip("/").rpartition("/")[2]
    try:
        place = resolve(tower) if tower else None
    except UsageError:
        if given:
            raise
        place = None
    if place is not None:
        config = _json(place / "config.json") if (place / "config.json").is_file() else {}
        seen = config.get("vision_config", config)
        if not isinstance(seen, dict) or "image_size" not in seen:
            raise UsageError(
                f"'{place}' is no folder of a CLIP: its config.json has no `vision_config`; give "
                "that of openai/clip-vit-large-patch14-336"
            )
        return _vision_of(place, seen)
    if name in _TOWERS:
        return dict(_TOWERS[name])
    raise UsageError(
        f"'{folder}' looks through the vision tower '{tower}', which is not on this machine and "
        "whose sizes are not known; give its folder with option `vision` (captioner `llava`)"
    )


def _text_of(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    return _fields(folder, text, _OF_LLAMA, _LLAMA)


def _vision_of(folder: Path, vision: Mapping[str, Any]) -> dict[str, Any]:
    # Old configurations of CLIP hold fifty fields of generation, too.
    return _fields(folder, vision, _OF_CLIP, _CLIP)


def _fields(
    folder: Path, told: Mapping[str, Any], names: tuple[str, ...], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The named fields, where they are told, and sizes, which must be numbers that a network can
    have: it is built before its weights are looked at.
    """
    kept = {name: told[name] for name in names if told.get(name) is not None}
    for name in sizes:
        most = _MOST.get(name, _MOST_SIZE)
        if type(kept.get(name, 1)) is not int or not 1 <= kept.get(name, 1) <= most:
            raise UsageError(
                f"'{folder / 'config.json'}': {name} is {brief(kept[name])}, expected a number "
                f"from 1 to {most:,}"
            )
    return {**sizes, **kept}


def _dtype_of(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "")
