"""The network of LLaVA 1.5: strictly from files of either layout, or from a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UsageError, how_to_install
from models.captioners.llava_layouts import LlavaPlan
from models.captioners.llava_names import vision_name
from models.large import build_empty, fill_from, fill_uniform
from models.shards import TensorFiles, read_folder
from models.weights import Weights

__all__ = ["language_model", "network_of", "require_transformers"]


def require_transformers() -> None:
    """UsageError with the command that installs it, if transformers cannot be imported."""
    from models.compat import ensure_torchvision

    ensure_torchvision()
    try:
        import transformers  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise UsageError(
            f"captioner llava needs the Python package 'transformers', which cannot be imported "
            f"({error}); install it: {how_to_install('pipeline')}"
        ) from error


def network_of(
    plan: LlavaPlan, seed: int, dtype: torch.dtype, device: str
) -> tuple[nn.Module, Weights]:
    """The network with its weights, on its device."""
    net = build_empty(lambda: _empty_network(plan))
    if plan.folder is None:
        return net, fill_uniform(net, seed, _scale, dtype=dtype, device=device, threads=8)
    files = read_folder(plan.folder).renamed(plan.rename)
    if plan.layout == "liuhaotian" and not any("vision_tower" in name for name in files):
        files = files.joined(_tower(plan))
    what = f"a LLaVA of the sizes in its config.json ({plan.layout} layout)"
    return net, fill_from(net, files, what, dtype=dtype, device=device, layout=plan.layout)


def _empty_network(plan: LlavaPlan) -> nn.Module:
    require_transformers()
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    try:
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**plan.vision),
            text_config=LlamaConfig(**plan.text),
            vision_feature_layer=plan.layer,
            vision_feature_select_strategy=plan.select,
            image_seq_length=plan.picture_tokens,
        )
        net: nn.Module = LlavaForConditionalGeneration(config)
    except Exception as error:  # transformers checks fields with errors of its own
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the config.json of '{plan.folder}' describes no model that can be built ({reason}); "
            "use the one that the model was published with"
        ) from error
    return net


def _tower(plan: LlavaPlan) -> TensorFiles:
    """The vision tower's own files."""
    try:
        return read_folder(plan.tower).renamed(vision_name)
    except UsageError as error:
        raise UsageError(
            f"'{plan.folder}' holds no vision tower and names '{plan.tower}': {error}. Give its "
            "folder with option `vision`"
        ) from error


def language_model(net: Any) -> Any:
    """The same layers as a model of language alone, for the loop."""
    from transformers import LlamaForCausalLM

    lm = build_empty(lambda: LlamaForCausalLM(net.config.text_config))
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
