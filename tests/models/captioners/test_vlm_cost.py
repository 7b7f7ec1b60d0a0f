"""What a caption of a vision-language model costs, against torch's counters and true sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.errors import UsageError
from models.captioners.limits import Work
from models.captioners.vlm import VlmCaptioner
from models.captioners.vlm_cost import _language, _vision
from models.captioners.vlm_files import load_config, load_model, load_processor
from tests.models.captioners.tiny_vlms import FAMILIES, write


@pytest.fixture(scope="module", params=[*FAMILIES])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param, tmp_path_factory.mktemp(request.param))


def cost(folder: Path, **options: Any) -> Work:
    work = VlmCaptioner.work(folder, {"side": 112, **options})
    assert work is not None
    return work


def test_tokens_of_pictures_are_those_of_the_processor(folder: Path) -> None:
    from PIL import Image

    one, two = cost(folder), cost(folder, frames=2)
    processor = load_processor(folder, load_config(folder))
    made = processor(
        text=processor.image_token, images=[Image.new("RGB", (112, 63))], return_tensors="pt"
    )
    pictures = made["input_ids"].shape[1]
    assert one.prompt_tokens == pictures + 40  # and the words of the prompt
    # In Gemma's and Idefics' words of a picture neighbours share blank lines and marks.
    assert two.prompt_tokens - one.prompt_tokens == pytest.approx(pictures, abs=2)
    assert two.prompt_flops > one.prompt_flops
    assert cost(folder, max_new_tokens=7).new_tokens == 7


def test_operations_of_the_language_model_are_those_that_torch_counts(folder: Path) -> None:
    config = load_config(folder)
    model = load_model(folder, config, device="cpu", dtype=torch.float32, attention="eager")
    sizes = _language(config.get_text_config())
    assert sizes is not None
    ids = torch.arange(3, 131)[None]
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=ids, logits_to_keep=1)
    # torch counts attention to tokens that come later, too: with 128 of them it weighs.
    seen_later = 2 * sizes.layers * sizes.dim * 128 * 128
    expected = sizes.flops(128) + seen_later + 2 * sizes.dim * sizes.vocab
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.02)


def qwen2_5_vl_7b() -> Any:
    """config.json of Qwen/Qwen2.5-VL-7B-Instruct, as far as sizes go."""
    import transformers as hf

    return hf.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    )


def llava_next_7b() -> Any:
    """transformers' defaults: CLIP ViT-L/14-336 and LLaMA 7B."""
    import transformers as hf

    return hf.LlavaNextConfig()


def internvl() -> Any:
    """transformers' defaults: InternViT-300M and Qwen2 7B."""
    import transformers as hf

    return hf.InternVLConfig()


@pytest.mark.parametrize("make", [qwen2_5_vl_7b, llava_next_7b, internvl])
def test_weights_are_those_of_the_networks_at_true_size(make: Any) -> None:
    import transformers as hf

    config = make()
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(config).model
    tower = getattr(model, "visual", None) or model.vision_tower
    merger = getattr(tower, "merger", None)
    seen = _count(tower) - (_count(merger) if merger is not None else 0)
    sizes, vision = _language(config.get_text_config()), _vision(config.vision_config, 336 * 336)
    assert sizes is not None
    assert vision is not None
    assert vision[1] == pytest.approx(seen, rel=0.01)
    assert sizes.layer_weights == pytest.approx(_count(model.language_model.layers), rel=0.01)


def _count(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


def test_of_a_network_with_experts_no_cost_is_claimed() -> None:
    import transformers as hf

    assert _language(hf.Qwen3VLMoeTextConfig()) is None


def test_an_option_that_the_processor_does_not_stand_is_told(tmp_path: Path) -> None:
    folder = write("qwen2_5_vl", tmp_path)
    with pytest.raises(UsageError, match="makes nothing of 1 pictures"):
        cost(folder, processor={"size": "large"})
