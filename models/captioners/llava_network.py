"""The network of LLaVA 1.5: strictly from files of either layout, or from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.captioners.llava_layouts import LlavaPlan
from models.captioners.llava_names import vision_name
from models.captioners.vlm_files import transformers
from models.large import build_empty, fill_from, fill_uniform
from models.shards import read_folder, tensor_names, weights_files
from models.weights import Weights
from models.zoo import resolve

__all__ = ["language_model", "network_of", "tower_of"]

_IN_FILES = ".vision_tower."


def network_of(
    plan: LlavaPlan, seed: int, dtype: torch.dtype, device: str
) -> tuple[nn.Module, Weights]:
    """The network with its weights, on its device."""
    net = build_empty(lambda: _empty_network(plan))
    if plan.folder is None:
        return net, fill_uniform(net, seed, _scale, dtype=dtype, device=device, threads=8)
    files = read_folder(plan.folder).renamed(plan.rename)
    tower = tower_of(plan)
    if tower is not None:
        files = files.joined(read_folder(tower).renamed(vision_name))
    what = f"a LLaVA of the sizes in its config.json ({plan.layout} layout)"
    return net, fill_from(net, files, what, dtype=dtype, device=device, layout=plan.layout)


def _empty_network(plan: LlavaPlan) -> nn.Module:
    library = transformers()
    try:
        config = library.LlavaConfig(
            vision_config=library.CLIPVisionConfig(**plan.vision),
            text_config=library.LlamaConfig(**plan.text),
            vision_feature_layer=plan.layer,
            vision_feature_select_strategy=plan.select,
            image_seq_length=plan.picture_tokens,
            tie_word_embeddings=plan.tied,
        )
        net: nn.Module = library.LlavaForConditionalGeneration(config)
    except Exception as error:  # transformers checks fields with errors of its own
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the config.json of '{plan.folder}' describes no model that can be built ({reason}); "
            "use the one that the model was published with"
        ) from error
    return net


def tower_of(plan: LlavaPlan) -> Path | None:
    """The folder of the vision tower's own weights; None where the model's files hold them.

    Raises:
        UsageError: neither holds them, or both do, and it was asked for this one.
    """
    if plan.folder is None or plan.layout != "liuhaotian":
        return None
    held = any(_IN_FILES in name for name in tensor_names(plan.folder))
    if held and not plan.tower_asked:
        return None
    try:
        place = resolve(plan.tower)
        weights_files(place)
    except UsageError as error:
        if held:  # a folder with sizes alone
            return None
        raise UsageError(
            f"'{plan.folder}' holds no vision tower and names '{plan.tower}': {error}. Give its "
            "folder with option `vision`"
        ) from error
    if held:
        raise UsageError(
            f"'{plan.folder}' holds a vision tower, and so does '{place}' of option `vision`, "
            "which would not be used; leave `vision` out"
        )
    return place


def language_model(net: Any) -> Any:
    """The same layers as a model of language alone, for the loop."""
    lm = build_empty(lambda: transformers().LlamaForCausalLM(net.config.text_config))
    lm.model, lm.lm_head = net.model.language_model, net.lm_head
    return lm


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    """Amplitudes that keep numbers near 1 through every layer."""
    if tensor.dim() < 2:
        return (1.0, 0.0) if name.endswith("weight") else (0.0, 0.02)
    if "embed_tokens" in name:
        return 0.0, 1.0
    fan_in = tensor[0].numel()
    return 0.0, (3.0 / fan_in) ** 0.5
