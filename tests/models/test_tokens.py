"""Tokenizers from their files: ids of LLaVA's own code (golden), markers, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from models.captioners.templates import TEMPLATES, chunks_of, template_text
from models.tokens import ByteTokens, Tokens, read_tokens


@pytest.fixture(scope="module")
def golden(goldens: Any) -> dict[str, Any]:
    found: dict[str, Any] = goldens.meta("llava_prompt")
    return found


@pytest.fixture(scope="module")
def folders(goldens: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden tokenizer as LLaVA has it, and as transformers converts it, in both its ways."""
    from transformers import LlamaTokenizer

    made = {"tokenizer.model": tmp_path_factory.mktemp("slow")}
    shutil.copy(goldens.folder / "llama_sp_tiny.model", made["tokenizer.model"] / "tokenizer.model")
    for legacy in (False, True):
        name = f"tokenizer.json, legacy {legacy}"
        made[name] = tmp_path_factory.mktemp("fast")
        tokenizer = LlamaTokenizer.from_pretrained(made["tokenizer.model"], legacy=legacy)
        tokenizer.save_pretrained(made[name])
    return made


KINDS = ("tokenizer.model", "tokenizer.json, legacy False", "tokenizer.json, legacy True")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_around_a_picture_are_those_of_llavas_own_code(
    kind: str, golden: dict[str, Any], folders: dict[str, Path]
) -> None:
    tokens, seen = read_tokens(folders[kind]), 0
    for each in golden["prompts"]:
        if isinstance(each["question"], list):  # a conversation: captions are one question
            continue
        before, after = chunks_of(template_text(each["template"]), each["question"])
        assert [before, after] == each["chunks"]
        ids = [tokens.bos, *tokens.encode(before), -200, *tokens.encode(after)]
        assert ids == each["input_ids"]
        seen += 1
    assert seen == 12
    assert (tokens.bos, tokens.eos, tokens.count) == (1, 2, golden["tokenizer"]["pieces"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_comes_back_from_its_ids_without_markers(
    kind: str, folders: dict[str, Path]
) -> None:
    tokens = read_tokens(folders[kind])
    for text in ("A dog runs.", "two  blanks", "café — 🐱", "line\nline"):
        ids = [tokens.bos, *tokens.encode(text), tokens.eos]
        assert tokens.decode(ids) == text
    assert tokens.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS[1:])
def test_both_files_of_a_tokenizer_give_the_same_texts_and_ids(
    kind: str, folders: dict[str, Path]
) -> None:
    """`tokenizers` alone loses all bytes beside one that is no UTF-8, and a leading blank."""
    one, other = read_tokens(folders[KINDS[0]]), read_tokens(folders[kind])
    random = np.random.default_rng(0)
    for length in (1, 2, 5, 30):
        for ids in random.integers(0, one.count, (300, length)).tolist():
            assert other.decode(ids) == one.decode(ids), ids
    parts = ["a ", "  ", "\n", "é", "日", "</s>", "<0x0A>", "Hello", " the", "\t", "▁"]
    for count in (0, 1, 2, 5):
        for chosen in random.integers(0, len(parts), (100, count)).tolist():
            text = "".join(parts[each] for each in chosen)
            assert other.encode(text) == one.encode(text), text
    assert [other.piece(each) for each in range(one.count)] == [
        one.piece(each) for each in range(one.count)
    ]


def test_the_end_of_a_text_may_be_written_where_it_lies_behind_the_pieces(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Llama 3 has 128,000 pieces, and its end is 128009."""
    file = json.loads((folders[KINDS[1]] / "tokenizer.json").read_text())
    added = {**file["added_tokens"][0], "id": 640, "content": "<|eot_id|>"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**file, "added_tokens": [*file["added_tokens"], added]})
    )
    assert read_tokens(tmp_path).writable == read_tokens(tmp_path).count == 640
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    tokens = read_tokens(tmp_path)
    assert (tokens.count, tokens.eos, tokens.writable) == (640, 640, 641)


@pytest.mark.parametrize("kind", KINDS)
def test_markers_spelt_out_in_a_text_are_text(kind: str, folders: dict[str, Path]) -> None:
    tokens = read_tokens(folders[kind])
    ids = tokens.encode("stop </s> here <s>")
    assert not {tokens.bos, tokens.eos} & {*ids}
    assert tokens.decode(ids) == "stop </s> here <s>"


def test_bytes_are_tokens_of_untrained_models() -> None:
    tokens: Tokens = ByteTokens()
    ids = tokens.encode("é")
    assert ids == [0xC3 + 3, 0xA9 + 3]
    assert tokens.decode([tokens.bos, *ids, tokens.eos]) == "é"
    assert tokens.decode(ids[:1]) == "\ufffd"
    assert max(tokens.encode("\xff")) < tokens.count


def test_pieces_that_were_added_for_pictures_are_not_counted(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """llava-hf's tokenizer.json has `<image>` and `<pad>` behind its 32,000 pieces."""
    file = json.loads((folders[KINDS[1]] / "tokenizer.json").read_text())
    added = {**file["added_tokens"][0], "id": 640, "content": "<image>"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**file, "added_tokens": [*file["added_tokens"], added]})
    )
    assert read_tokens(tmp_path).count == 640


def test_markers_are_spelt_as_the_folder_says(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders[KINDS[1]] / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<unk>"}, "eos_token": "<s>"})
    )
    tokens = read_tokens(tmp_path)
    assert (tokens.bos, tokens.eos) == (0, 1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    with pytest.raises(UsageError, match=r"no token that begins or ends a text: eos '<\|end\|>'"):
        read_tokens(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(
        UsageError, match=r"tokenizer_config.json: expected a JSON object, found a list"
    ):
        read_tokens(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.model", b"\0" * 9), ("tokenizer.json", b"{}")]
)
def test_a_damaged_tokenizer_is_a_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}' cannot be read \(.*download it again"):
        read_tokens(tmp_path)


# --- templates


def test_templates_are_the_texts_of_llavas_conversation(golden: dict[str, Any]) -> None:
    for each in golden["prompts"]:
        if isinstance(each["question"], list):
            continue
        text = template_text(each["template"]).replace("{question}", each["question"])
        assert text == each["prompt"]
    assert {each["template"] for each in golden["prompts"]} < TEMPLATES.keys()


def test_a_text_of_ones_own_is_a_template() -> None:
    text = "[INST] <image>\n{question} [/INST]"
    assert template_text(text) == text
    assert chunks_of(text, "{What}?") == ("[INST] ", "\n{What}? [/INST]")
