"""Which CLIP a name or a checkpoint means: architecture, activation, and how it wants its pictures.

Three sources, the surest first: a configuration beside the weights (`open_clip_config.json`, or
`config.json` of Hugging Face), open_clip's own table of models and trainings, and the shapes of the
tensors, from which OpenAI's code, too, tells the architecture (openai/CLIP clip/model.py,
`build_model`). open_clip's table is read as files here: neither open_clip nor torch is imported for
a plan that only wants a dimension.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UsageError, nearest
from data.foreign import read_limited, strict_json
from models.zoo import resolve

if TYPE_CHECKING:
    from models.checkpoints import Checkpoint

__all__ = [
    "DEFAULT_MODEL",
    "TINY",
    "TINY_MODEL",
    "Origin",
    "Pictures",
    "model_config",
    "model_names",
    "origin_of",
    "other_activation",
    "pictures_of",
    "same_shapes_other_function",
]

DEFAULT_MODEL = "ViT-B-32-quickgelu"
TINY_MODEL = "tiny"
"""The narrow ViT of the embedded default; open_clip has no model of this name."""

TINY: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}

_MAX_CONFIG_BYTES = 1 << 20
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_QUICK = "-quickgelu"


@dataclass(frozen=True)
class Pictures:
    """How a model wants its pictures.

    Args:
        mean: of each channel of RGB in 0..1, subtracted.
        std: of each channel, divided by.
        interpolation: of the scaling: "bicubic" or "bilinear".
        resize_mode: "shortest" (short side scaled, centre cropped), "squash" (both sides scaled,
            the whole picture) or "longest" (long side scaled, padded).
    """

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def updated(self, told: Mapping[str, Any]) -> Pictures:
        """With what a configuration in the words of open_clip says; other keys are left alone."""
        known = {key: told[key] for key in self.__dataclass_fields__ if told.get(key) is not None}
        for key in ("mean", "std"):
            if key in known:
                each = known[key] if isinstance(known[key], list | tuple) else [known[key]] * 3
                known[key] = tuple(float(value) for value in each)
        return replace(self, **known)


@dataclass(frozen=True)
class Origin:
    """What is known about weights besides their tensors.

    Args:
        source: where it is said, for messages.
        quick_gelu: the activation they were trained with; None if nothing tells.
        pictures: preprocessing in open_clip's words.
        model: open_clip's configuration of the architecture.
        heads: attention heads of the picture and the text side; None if nothing tells.
        hint: the activation that the file's name tells. It can contradict, and changes nothing: a
            file may be renamed, and must give the same features then.
    """

    source: str = ""
    quick_gelu: bool | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    heads: tuple[int, int] | None = None
    hint: bool | None = None


def origin_of(checkpoint: Checkpoint | None, model: str | None, tag: str | None) -> Origin:
    """What a configuration beside the weights, or the name of their training, tells.

    Args:
        checkpoint: the weights.
        model: name of open_clip, if the user gave one.
        tag: name of the training, if the user gave one.

    Raises:
        UsageError: a configuration of something else, or an unknown tag.
    """
    path = None if checkpoint is None or isinstance(checkpoint, Mapping) else resolve(checkpoint)
    found = Origin()
    if path is not None and (path / _OPEN_CLIP_CONFIG).is_file():
        found = _of_open_clip(path / _OPEN_CLIP_CONFIG)
    elif path is not None and (path / "config.json").is_file():
        found = _of_hugging_face(path)
    if tag is not None:
        found = _of_training(found, model, tag)
    if path is None or found.quick_gelu is not None:
        return found
    return replace(found, hint=_hint_in(path, _trainings(model)))


def _of_training(found: Origin, model: str | None, tag: str) -> Origin:
    trainings = _trainings(model)
    if tag not in trainings:
        raise UsageError(
            f"open_clip knows no training '{tag}' of model '{model or DEFAULT_MODEL}'; "
            f"{nearest(tag, trainings)}"
        )
    told = trainings[tag]
    quick = found.quick_gelu if found.quick_gelu is not None else bool(told.get("quick_gelu"))
    source = found.source or f"the training '{tag}'"
    return replace(found, quick_gelu=quick, source=source, pictures={**told, **found.pictures})


def pictures_of(model: str | None, origin: Origin, filled: bool) -> Pictures:
    """The preprocessing of a model.

    Args:
        model: name of open_clip; None for an architecture that was told from the tensors.
        origin: of the weights.
        filled: whether there are weights, for which a wrong guess would matter.

    Raises:
        UsageError: the trainings of this model differ, and nothing tells which this is.
    """
    if origin.pictures:
        return Pictures().updated(origin.pictures)
    tags = _pretrained().get(model or "", {})
    kinds = {tag: Pictures().updated(told) for tag, told in tags.items()}
    if len(set(kinds.values())) <= 1:
        return next(iter(kinds.values()), Pictures())
    if filled:
        raise UsageError(
            f"the trainings of CLIP '{model}' want different pictures, and nothing tells which "
            f"these weights are; say it with option `tag`: {', '.join(tags)}"
        )
    return Pictures()


def model_names() -> list[str]:
    """All names of open_clip."""
    return sorted(each.stem for each in _configs().glob("*.json"))


@cache
def model_config(model: str) -> Mapping[str, Any]:
    """open_clip's configuration of a model.

    Raises:
        UsageError: unknown name, with the nearest.
    """
    if model == TINY_MODEL:
        return TINY
    file = _configs() / f"{model}.json"
    known = model_names()
    if model not in known:
        raise UsageError(f"unknown CLIP model '{model}'; {nearest(model, [*known, TINY_MODEL])}")
    return _json(file)


def same_shapes_other_function(told: Mapping[str, Any]) -> list[str]:
    """Models of open_clip whose tensors have the shapes of `told`, but which compute otherwise.

    Neither heads nor activation are in a tensor: ViT-H-14 would load by OpenAI's rules and give
    other features. Empty where some model with these shapes computes as `told` does, or where none
    has the shapes.
    """
    configs = {name: model_config(name) for name in model_names()}
    alike = {name: each for name, each in configs.items() if _shape(each) == _shape(told)}
    if any(_function(each) == _function(told) for each in alike.values()):
        return []
    return list(alike)


def _shape(config: Mapping[str, Any]) -> tuple[str, ...]:
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return (
        repr(config.get("embed_dim")),
        *(repr(vision.get(key)) for key in ("width", "layers", "patch_size")),
        *(repr(text.get(key)) for key in ("width", "layers", "context_length", "vocab_size")),
    )


def _function(config: Mapping[str, Any]) -> tuple[Any, ...]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    # Of a ResNet the rule is the same everywhere.
    heads = vision["width"] // vision.get("head_width", 64) if vision.get("patch_size") else None
    return heads, text.get("heads"), bool(config.get("quick_gelu", False))


def other_activation(model: str, quick_gelu: bool) -> str:
    """The name of the same model with this activation."""
    return model.removesuffix(_QUICK) + (_QUICK if quick_gelu else "")


def _configs() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UsageError("CLIP needs open_clip: pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs"


@cache
def _pretrained() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    from models.compat import ensure_torchvision

    ensure_torchvision()
    from open_clip.pretrained import _PRETRAINED

    table: Mapping[str, Mapping[str, Mapping[str, Any]]] = _PRETRAINED
    return table


def _trainings(model: str | None) -> dict[str, Mapping[str, Any]]:
    """The trainings of a model with either activation: a tag tells which one is right."""
    base = (model or DEFAULT_MODEL).removesuffix(_QUICK)
    table = _pretrained()
    return {**table.get(f"{base}{_QUICK}", {}), **table.get(base, {})}


def _hint_in(path: Path, trainings: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """The activation of the training that a file is named after, by its publisher or open_clip."""
    for told in trainings.values():
        if path.name.lower() == str(told.get("url") or "?").rsplit("/", 1)[-1].lower():
            return bool(told.get("quick_gelu"))
    if "openai" in path.name.lower():
        return True
    name = re.sub(r"[^a-z0-9]+", "_", path.name.lower())
    fitting = [tag for tag in trainings if f"_{tag}_" in f"_{name}_"]
    if not fitting:
        return None
    return bool(trainings[max(fitting, key=len)].get("quick_gelu"))


def _of_open_clip(file: Path) -> Origin:
    told = _json(file)
    model, pictures = told.get("model_cfg"), told.get("preprocess_cfg", {})
    if not isinstance(model, dict) or not isinstance(pictures, dict):
        raise UsageError(f"'{file}' has no table `model_cfg`, so it is no configuration of a CLIP")
    return Origin(file.name, bool(model.get("quick_gelu", False)), pictures, model)


def _of_hugging_face(folder: Path) -> Origin:
    told = _json(folder / "config.json")
    vision, text = told.get("vision_config"), told.get("text_config", {})
    if not isinstance(vision, dict) or not isinstance(text, dict):
        return Origin()
    kind = told.get("model_type", "clip")
    if kind != "clip":
        raise UsageError(
            f"'{folder / 'config.json'}' is of a model of type '{kind}', and only 'clip' is read "
            "in the layout of Hugging Face; use the file that open_clip publishes for this model"
        )
    acts = {str(each.get("hidden_act", "quick_gelu")) for each in (vision, text)}
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise UsageError(
            f"'{folder / 'config.json'}' wants the activations {', '.join(sorted(acts))}; a CLIP "
            "has quick_gelu, or gelu, on both sides"
        )
    # transformers' own defaults, which it leaves out of the file
    heads = (
        int(vision.get("num_attention_heads", 12)),
        int(text.get("num_attention_heads", 8)),
    )
    return Origin("config.json", acts == {"quick_gelu"}, _hub_pictures(folder), heads=heads)


def _hub_pictures(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    told = _json(file)
    interpolation = {2: "bilinear", 3: "bicubic"}.get(told.get("resample", 3), "of another kind")
    mode = "shortest" if told.get("do_center_crop", True) else "squash"
    return {
        "mean": told.get("image_mean"),
        "std": told.get("image_std"),
        "interpolation": interpolation,
        "resize_mode": mode,
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        value = strict_json(read_limited(file, _MAX_CONFIG_BYTES, "the configuration"))
    except ValueError as error:
        raise UsageError(f"'{file}' beside the checkpoint is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
