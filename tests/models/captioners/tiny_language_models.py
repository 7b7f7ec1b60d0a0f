"""Small random language models of transformers, and prompts for them.

A model is built once for all tests, which leave it as it is; `copy.deepcopy` gives one to change.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from models.compat import ensure_torchvision

VOCAB, DIM = 64, 32
EOS = (2, 3, 4, 5)
"""So many that rows of a random model end at different steps."""


@cache
def llama(heads: int = 4, kv_heads: int = 4) -> Any:
    """LLaMA with weights so large that it does not say the same word for ever."""
    ensure_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        initializer_range=0.25,
    )
    return LlamaForCausalLM(config).eval()


@cache
def opt(projected: int = DIM) -> Any:
    """OPT; with `projected` other than its width, built like the 350M one."""
    ensure_torchvision()
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=DIM,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=projected,
        do_layer_norm_before=projected == DIM,
        tie_word_embeddings=False,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        init_std=0.25,
    )
    return OPTForCausalLM(config).eval()


def prompts(lengths: list[int], dim: int = DIM, seed: int = 0) -> list[Tensor]:
    """Embeddings (T_i, D): of no word, as those of pictures are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, dim, generator=generator) for length in lengths]


def keys(count: int) -> list[str]:
    """Of `count` rows."""
    return [f"video/{index}" for index in range(count)]


def public(lm: Any, prompt: Tensor, **settings: Any) -> tuple[int, ...]:
    """What `generate()` of transformers writes for one prompt, its end token left out."""
    ids = lm.generate(
        inputs_embeds=prompt.unsqueeze(0),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        **{"do_sample": False, "eos_token_id": list(EOS), "pad_token_id": 0, **settings},
    )[0].tolist()
    return tuple(ids[:-1] if ids[-1] in EOS else ids)
