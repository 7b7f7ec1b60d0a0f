"""The encoder, and its table out of checkpoints in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import UsageError
from models.text import create
from models.text.extract import extract_embedding

PIECES = 640  # of llama_sp_tiny.model
TEXT = "A man's dog runs. </s> Why, 3.5 m"


@pytest.fixture
def model_file(shared: Path) -> Path:
    return shared / "golden/extractors/llama_sp_tiny.model"


def rows(count: int = PIECES, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).half().float()


def folder_with(folder: Path, model_file: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    shutil.copy(model_file, folder / "tokenizer.model")
    save_file(tensors, folder / "model.safetensors")
    return folder


def table_of(folder: Path, checkpoint: Path, **options: object) -> Path:
    file = folder / "llama.safetensors"
    file.write_bytes(extract_embedding(checkpoint, **options).content)  # type: ignore[arg-type]
    return file


NAMES = [
    "model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "llama_model.model.embed_tokens.weight",
]


@pytest.mark.parametrize("name", NAMES)
def test_one_table_comes_out_of_every_layout(tmp_path: Path, model_file: Path, name: str) -> None:
    others = {"model.norm.weight": torch.ones(8), "lm_head.weight": rows(seed=2)}
    padded = torch.cat([rows(), torch.ones(4, 8)])  # LLaVA's <image> and padding
    plain = folder_with(tmp_path / "plain", model_file, {NAMES[0]: rows(), **others})
    other = folder_with(tmp_path / "other", model_file, {name: padded, **others})
    want, got = extract_embedding(plain), extract_embedding(other)
    assert got.content == want.content
    assert (got.tensor, got.rows, got.dropped, got.error) == (name, PIECES, 4, 0.0)


def test_shards_are_read_where_the_index_says(tmp_path: Path, model_file: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    shutil.copy(model_file, folder / "tokenizer.model")
    torch.save({"model.norm.weight": torch.ones(8)}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({NAMES[0]: rows()}, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = {
        "model.norm.weight": "pytorch_model-00001-of-00002.bin",
        NAMES[0]: "pytorch_model-00002-of-00002.bin",
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole = folder_with(tmp_path / "whole", model_file, {NAMES[0]: rows()})
    assert extract_embedding(folder).content == extract_embedding(whole).content


@pytest.mark.parametrize("dim", [0, 1], ids=["Llama 3: vocabulary cut", "LLaMA 1, 2: vectors cut"])
def test_parts_of_meta_are_put_together(tmp_path: Path, model_file: Path, dim: int) -> None:
    folder = tmp_path / "meta"
    folder.mkdir()
    shutil.copy(model_file, folder / "tokenizer.model")
    for index, part in enumerate(rows().chunk(2, dim)):
        state = {"tok_embeddings.weight": part.clone(), "norm.weight": torch.ones(8)}
        torch.save(state, folder / f"consolidated.{index:02}.pth")
    whole = folder_with(tmp_path / "whole", model_file, {NAMES[0]: rows()})
    assert extract_embedding(folder).content == extract_embedding(whole).content


def test_states_are_what_the_language_model_looks_up(tmp_path: Path, model_file: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PIECES,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    shutil.copy(model_file, tmp_path / "model/tokenizer.model")
    text = "A man's dog runs. Why, 3.5 m"
    ids = LlamaTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)(
        text, add_special_tokens=False
    ).input_ids
    with torch.no_grad():
        want = model.get_input_embeddings()(torch.tensor(ids))
    table = table_of(tmp_path, tmp_path / "model", dtype="float32")
    (states,) = create("llama_embedding", table).encode([text])
    np.testing.assert_array_equal(states.tokens, want.numpy())
    np.testing.assert_allclose(states.pooled, want.mean(0).numpy(), rtol=1e-5, atol=1e-6)


def test_ids_are_those_of_the_golden_prompts(
    tmp_path: Path, model_file: Path, shared: Path
) -> None:
    golden = json.loads((shared / "golden/extractors/llava_prompt.json").read_text())
    checkpoint = folder_with(
        tmp_path / "model",
        model_file,
        {NAMES[0]: torch.arange(PIECES).float()[:, None].expand(PIECES, 2).contiguous()},
    )
    encoder = create("llama_embedding", table_of(tmp_path, checkpoint))
    checked = 0
    for prompt in golden["prompts"]:
        first = prompt["chunks"][0]
        ids = prompt["input_ids"][1 : prompt["input_ids"].index(-200)]  # between BOS and <image>
        (states,) = encoder.encode([first])
        assert states.tokens[:, 0].astype(int).tolist() == ids
        checked += 1
    assert checked


def test_a_marker_that_is_spelt_out_is_text_in_both_kinds_of_tokenizer(
    tmp_path: Path, model_file: Path
) -> None:
    from transformers import LlamaTokenizer

    checkpoint = folder_with(tmp_path / "model", model_file, {NAMES[0]: rows()})
    LlamaTokenizer.from_pretrained(checkpoint, local_files_only=True).save_pretrained(
        tmp_path / "fast"
    )
    first = create("llama_embedding", table_of(tmp_path, checkpoint))
    fast = tmp_path / "fast/tokenizer.json"
    second = create("llama_embedding", table_of(tmp_path, checkpoint, tokenizer=fast))
    one, other = (each.encode([TEXT])[0].tokens for each in (first, second))
    np.testing.assert_array_equal(one, other)
    eos = rows()[2].numpy()
    assert not (one == eos).all(axis=1).any()


def test_signs_are_part_of_the_mean_unless_they_are_dropped(
    tmp_path: Path, model_file: Path
) -> None:
    checkpoint = folder_with(tmp_path / "model", model_file, {NAMES[0]: rows()})
    encoder = create("llama_embedding", table_of(tmp_path, checkpoint))
    whole, words = encoder.caption_vector("A dog."), encoder.caption_vector("A dog.", False)
    assert whole.words == words.words + 1
    assert not np.allclose(whole.vector, words.vector)


def test_what_does_not_fit_is_told(tmp_path: Path, model_file: Path) -> None:
    small = folder_with(tmp_path / "small", model_file, {NAMES[0]: rows(600)})
    with pytest.raises(UsageError, match=r"640 pieces, and model\.embed_tokens\.weight is \(600"):
        extract_embedding(small)
    two = folder_with(
        tmp_path / "two", model_file, {NAMES[0]: rows(), "x.embed_tokens.weight": rows()}
    )
    with pytest.raises(UsageError, match=r"several embeddings: .* choose one with --tensor"):
        extract_embedding(two)
    assert extract_embedding(two, tensor="x.embed_tokens.weight").rows == PIECES
    none = folder_with(tmp_path / "none", model_file, {"lm_head.weight": rows()})
    with pytest.raises(UsageError, match=r"no tensor embed_tokens\.weight"):
        extract_embedding(none)
    (none / "tokenizer.model").unlink()
    with pytest.raises(UsageError, match="name the tokenizer of this model with --tokenizer"):
        extract_embedding(none)
    (two / "tokenizer.model").write_bytes(b"no model at all")
    with pytest.raises(UsageError, match=r"tokenizer\.model' cannot be read"):
        extract_embedding(two)


def test_numbers_that_a_table_cannot_hold_are_refused(tmp_path: Path, model_file: Path) -> None:
    large = folder_with(tmp_path / "large", model_file, {NAMES[0]: rows() * 1e6})
    with pytest.raises(UsageError, match="--dtype float32"):
        extract_embedding(large)
    assert extract_embedding(large, dtype="float32").error == 0.0
    lost = rows()
    lost[3, 2] = torch.nan
    broken = folder_with(tmp_path / "broken", model_file, {NAMES[0]: lost})
    with pytest.raises(UsageError, match="not finite"):
        extract_embedding(broken)


def test_rounding_is_told(tmp_path: Path, model_file: Path) -> None:
    third = folder_with(tmp_path / "third", model_file, {NAMES[0]: torch.full((PIECES, 4), 1 / 3)})
    found = extract_embedding(third)
    assert 0 < found.error < 1e-3
    assert found.dtype == "float32"
    exact = folder_with(
        tmp_path / "exact", model_file, {NAMES[0]: torch.full((PIECES, 4), 0.25).bfloat16()}
    )
    assert (extract_embedding(exact).error, extract_embedding(exact).dtype) == (0.0, "bfloat16")
