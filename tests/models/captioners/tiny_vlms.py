"""Tiny random vision-language models of six families, in folders as their publishers have them.

No file is downloaded: networks are transformers' own classes at narrow widths with seeded weights,
tokenizers are trained on three sentences, chat templates have the shape of the families' own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.compat import ensure_torchvision

ensure_torchvision()  # before transformers is imported

_TEXTS = (
    "a man opens the door and walks into the kitchen",
    "describe what happens in the video",
    "system user assistant image frame",
)

_CHAT = (
    "{% set eol = '\\n' %}"  # template engines drop the line's end after a block
    "{% for m in messages %}<s>{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}PICTURE{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ eol }}{% endfor %}{% if add_generation_prompt %}assistant:"
    "{% if thinking %}<think>{{ eol }}{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One tiny model and what lies beside it.

    Args:
        model: with random weights.
        image_processor: PIL's.
        tokenizer: with the family's special tokens.
        processor: name of the family's processor class.
        picture: what the chat template writes for a picture.
        options: of the processor.
    """

    model: Any
    image_processor: Any
    tokenizer: Any
    processor: str
    picture: str
    options: dict[str, Any] = field(default_factory=dict)


def tokenizer(*specials: str, **named: str) -> Any:
    """A byte-level tokenizer; `named` become attributes such as `image_token`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", *specials, *named.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )


def _text(words: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}

_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen_ids(words: Any) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image", "video")
    return {
        f"{n}_token_id": words.convert_tokens_to_ids(t) for n, t in zip(names, _QWEN, strict=True)
    }


def _rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}


def qwen2_5_vl() -> Family:
    """Positions in three dimensions; as many tokens as the picture is large."""
    import transformers as hf

    words = tokenizer(*_QWEN)
    vision = {"depth": 2, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    config = hf.Qwen2_5_VLConfig(
        text_config=_text(words, rope_parameters=_rope([1, 1, 2])),
        vision_config={
            **vision,
            "out_hidden_size": 32,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        **_qwen_ids(words),
    )
    pixels = hf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 28**2, "longest_edge": 64 * 28**2}
    )
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    picture = "".join((_QWEN[0], _QWEN[2], _QWEN[1]))
    return Family(model, pixels, words, "Qwen2_5_VLProcessor", picture)


def qwen3_vl() -> Family:
    """As `qwen2_5_vl`, and features of the picture are added to deeper layers."""
    import transformers as hf

    words = tokenizer(*_QWEN)
    config = hf.Qwen3VLConfig(
        text_config=_text(words, head_dim=8, rope_parameters=_rope([2, 1, 1])),
        vision_config={
            "depth": 2,
            "num_heads": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "patch_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(words),
    )
    pixels = hf.Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, size={"shortest_edge": 32**2, "longest_edge": 64 * 32**2}
    )
    model = hf.Qwen3VLForConditionalGeneration(config)
    picture = "".join((_QWEN[0], _QWEN[2], _QWEN[1]))
    return Family(model, pixels, words, "Qwen3VLProcessor", picture)


def llava_next() -> Family:
    """Tiles of the picture and the whole of it; the number of tokens follows its shape."""
    import transformers as hf

    words = tokenizer("<image>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaNextConfig(
        text_config={"model_type": "llama", **_text(words)},
        vision_config={
            "model_type": "clip_vision_model",
            **_VISION,
            "num_hidden_layers": 3,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    pixels = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=pinpoints,
    )
    options = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    model = hf.LlavaNextForConditionalGeneration(config)
    return Family(model, pixels, words, "LlavaNextProcessor", "<image>\n", options)


def llava_onevision() -> Family:
    """SigLIP and Qwen2; one picture in tiles, several as one tile each."""
    import transformers as hf

    words = tokenizer("<image>", "<video>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(words)},
        vision_config={
            "model_type": "siglip_vision_model",
            **_VISION,
            "num_hidden_layers": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    pixels = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    options = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    return Family(model, pixels, words, "LlavaOnevisionProcessor", "<image>\n", options)


def internvl() -> Family:
    """InternViT with pixels shuffled into channels."""
    import transformers as hf

    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **_text(words)},
        vision_config={
            **_VISION,
            "num_hidden_layers": 2,
            "image_size": [28, 28],
            "patch_size": [7, 7],
        },
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    pixels = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    model = hf.InternVLForConditionalGeneration(config)
    return Family(
        model, pixels, words, "InternVLProcessor", "<IMG_CONTEXT>\n", {"image_seq_length": 4}
    )


def idefics3() -> Family:
    """Rows and columns of tiles named by tokens (SmolVLM is its descendant)."""
    import transformers as hf

    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    words = tokenizer(*marks, *places)
    config = hf.Idefics3Config(
        text_config={"model_type": "llama", **_text(words)},
        vision_config={**_VISION, "num_hidden_layers": 2, "image_size": 28, "patch_size": 7},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    model = hf.Idefics3ForConditionalGeneration(config)
    return Family(model, pixels, words, "Idefics3Processor", "<image>", {"image_seq_len": 4})


def gemma3() -> Family:
    """Tokens of a picture see each other in both directions; a window slides in some layers."""
    import transformers as hf

    words = tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    config = hf.Gemma3Config(
        text_config=_text(
            words,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config={
            **_VISION,
            "num_hidden_layers": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
    )
    pixels = hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    model = hf.Gemma3ForConditionalGeneration(config)
    return Family(
        model, pixels, words, "Gemma3Processor", "<start_of_image>", {"image_seq_length": 4}
    )


FAMILIES: dict[str, Callable[[], Family]] = {
    each.__name__: each
    for each in (qwen2_5_vl, qwen3_vl, llava_next, llava_onevision, internvl, idefics3, gemma3)
}


def write(name: str, folder: Path) -> Path:
    """The files of a family's tiny model in `folder`."""
    family = FAMILIES[name]()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in family.model.parameters():
            if parameter.dim() > 1:  # norms keep their ones: the text then follows the picture
                parameter.normal_(0.0, 0.25, generator=generator)
    family.model.generation_config.eos_token_id = 2
    family.model.save_pretrained(folder)
    family.image_processor.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_CHAT.replace("PICTURE", family.picture))
    about = {"processor_class": family.processor, **family.options}
    (folder / "processor_config.json").write_text(json.dumps(about))
    return folder
