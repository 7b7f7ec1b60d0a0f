"""The networks and the tokenizer of a VideoChat: from its files, or a tiny one from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data.errors import UsageError
from models.captioners.videochat_checkpoint import find_files, llm_config, load_eyes
from models.captioners.videochat_network import TINY, VideoChatEyes
from models.checkpoints import Checkpoint
from models.compat import ensure_torchvision
from models.large import build_empty, fill_from, fill_uniform, spread
from models.shards import read_folder
from models.tokens import ByteTokens, Tokens, read_tokens
from models.weights import Weights

__all__ = ["Parts", "load_parts", "random_parts"]


@dataclass(frozen=True)
class Parts:
    """What a VideoChat is made of.

    Args:
        eyes: frames to soft tokens.
        lm: LlamaForCausalLM of transformers.
        words: its tokenizer.
        weights: of the eyes.
        language: name and weights of the language model, for reports.
    """

    eyes: VideoChatEyes
    lm: Any
    words: Tokens
    weights: Weights
    language: dict[str, Any]


def load_parts(checkpoint: Checkpoint, *, dtype: torch.dtype, device: str | torch.device) -> Parts:
    """From a folder of files (`models.captioners.videochat_checkpoint`).

    Raises:
        UsageError: a file is missing or does not fit.
    """
    files = find_files(checkpoint)
    words = read_tokens(files.llm)
    config = llm_config(files.llm)
    if words.count > config["vocab_size"]:
        raise UsageError(
            f"the tokenizer in '{files.llm}' has {words.count:,} pieces and the language model "
            f"knows {config['vocab_size']:,}; copy the tokenizer of this model"
        )
    eyes, weights = load_eyes(files, config["hidden_size"], dtype=dtype, device=device)
    lm, language = _language_model(files.llm, config, dtype, device)
    return Parts(eyes, lm, words, weights, {"name": files.llm.name, **asdict(language)})


def _language_model(
    folder: Path, config: Mapping[str, Any], dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, Weights]:
    lm = build_empty(lambda: _llama(config))
    # Angles of positions are computed; old files hold them, too.
    files = read_folder(folder).renamed(lambda key: None if key.endswith("inv_freq") else key)
    weights = fill_from(lm, files, "the language model", dtype=dtype, device=device)
    _check_no_delta(lm, folder)
    return lm, weights


_DELTA_NORM = 0.05


def _check_no_delta(lm: Any, folder: Path) -> None:
    """Vicuna and StableVicuna were published as differences from LLaMA, which load and babble
    (Ask-Anything #38). The last norm of a LLaMA scales by 1 and more; a difference of two by 0.
    """
    scale = float(lm.model.norm.weight.float().abs().mean())
    if scale < _DELTA_NORM:
        raise UsageError(
            f"'{folder}' holds no whole language model but a delta (its last norm scales by "
            f"{scale:.1e}): add it to LLaMA's weights first, with `apply_delta.py` of its authors"
        )


def _llama(config: Mapping[str, Any]) -> Any:
    ensure_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        made = LlamaConfig.from_dict(dict(config))
    except Exception as error:  # transformers has an error of its own for each kind of field
        raise UsageError(
            f"the configuration of the language model is not allowed by transformers: {error}"
        ) from error
    return LlamaForCausalLM(made)


_TINY_LLM = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def random_parts(seed: int, *, dtype: torch.dtype, device: str | torch.device) -> Parts:
    """A tiny VideoChat that was never trained: the whole way runs, and it says nonsense."""
    words = ByteTokens()
    config = {**_TINY_LLM, "vocab_size": words.count, "model_type": "llama"}
    eyes = build_empty(lambda: VideoChatEyes(TINY, 64).compute_in(dtype))
    weights = fill_uniform(eyes, seed, spread, dtype=eyes.dtypes, device=device)
    lm = build_empty(lambda: _llama(config))
    language = fill_uniform(lm, seed, spread, dtype=dtype, device=device)
    return Parts(eyes, lm, words, weights, {"name": "tiny", **asdict(language)})
