"""Our CLIP beside transformers' CLIPModel with the same weights, read from the Hugging Face layout.

The weights are random: what is compared is the architecture, the key map and the tap of the token
states (`ln_final` of all tokens, specs/feature_extractors.md §2.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.clip_config import TINY, TINY_MODEL
from models.compat import ensure_torchvision


@pytest.fixture(scope="module")
def reference() -> Any:
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel

    vision, text = TINY["vision_cfg"], TINY["text_cfg"]
    config = CLIPConfig(
        projection_dim=TINY["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "quick_gelu",
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "hidden_act": "quick_gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        },
    )
    torch.manual_seed(5)
    return CLIPModel(config).eval()


def test_picture_features_equal_those_of_transformers(reference: Any) -> None:
    from models import backbones

    ours = backbones.create("clip", dict(reference.state_dict()), model=TINY_MODEL)
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        want = reference.get_image_features(pixel_values=pixels)
        want = getattr(want, "pooler_output", want)  # transformers 5 wraps it
        got = ours(pixels)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert ours.weights.kind == "file"


def test_token_states_and_pooled_text_equal_those_of_transformers(reference: Any) -> None:
    from models import text

    ours = text.create("clip", dict(reference.state_dict()), model=TINY_MODEL)
    states = ours.encode(["a red circle moves to the left"])[0]
    import open_clip

    words = open_clip.tokenizer.SimpleTokenizer().encode("a red circle moves to the left")
    ids = torch.tensor([[49406, *words, 49407]])
    with torch.no_grad():
        want = reference.text_model(input_ids=ids).last_hidden_state[0]
        pooled = reference.get_text_features(input_ids=ids)
        pooled = getattr(pooled, "pooler_output", pooled)[0]
    np.testing.assert_allclose(states.tokens, want.numpy(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(states.pooled, pooled.numpy(), atol=1e-5, rtol=1e-4)
