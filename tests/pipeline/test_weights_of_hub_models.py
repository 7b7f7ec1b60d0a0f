"""Which files of a model on Hugging Face are fetched: lists of files as they are published."""

from __future__ import annotations

import pytest

from data.errors import UsageError
from pipeline.weights_command import files_of_model

# https://huggingface.co/liuhaotian/llava-v1.5-13b: shards of torch, the projector once more.
LIUHAOTIAN = [
    ".gitattributes",
    "README.md",
    "config.json",
    "generation_config.json",
    "mm_projector.bin",
    "pytorch_model-00001-of-00003.bin",
    "pytorch_model-00002-of-00003.bin",
    "pytorch_model-00003-of-00003.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
]


def test_shards_come_with_their_index_and_tokenizer_and_nothing_twice() -> None:
    wanted = files_of_model("liuhaotian/llava-v1.5-13b", LIUHAOTIAN)
    assert sorted(wanted) == sorted(
        set(LIUHAOTIAN) - {".gitattributes", "README.md", "mm_projector.bin"}
    )


def test_of_weights_in_two_formats_one_is_fetched() -> None:
    both = [
        *LIUHAOTIAN,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "onnx/config.json",
        "flax_model.msgpack",
    ]
    wanted = files_of_model("org/name", both)
    assert not [each for each in wanted if each.startswith("pytorch_model")]
    assert {"model-00002-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        *wanted
    }
    assert not {"onnx/config.json", "flax_model.msgpack"} & {*wanted}


def test_one_file_of_weights_is_enough() -> None:
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "merges.txt", "README.md"]
    assert files_of_model("openai/clip", files) == [
        "model.safetensors",
        "config.json",
        "merges.txt",
    ]


def test_a_repository_without_weights_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"'org/lora' publishes none of: .*model\.safetensors"):
        files_of_model("org/lora", ["adapter_model.safetensors", "config.json"])
