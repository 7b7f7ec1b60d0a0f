from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import parse_config
from data.errors import InputError, UsageError
from data.store.types import ItemKey, Row
from models.text import create
from models.word_tables import table_bytes
from pipeline.stage import Item, StageContext
from pipeline.stages.queries import QueriesOptions, QueriesStage

KEY = ItemKey("q", "0" * 64)


class Nothing:
    def row(self, stage: str) -> Row:
        raise AssertionError(f"queries read no rows, asked for {stage}")


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    blobs = {"words": b".\na\nred\nsquare", "unknown": b"zzyx"}
    (tmp_path / "glove.safetensors").write_bytes(table_bytes("glove", vectors, blobs))
    return tmp_path / "glove.safetensors"


def encoded(text: str, **options: Any) -> Row:
    stage = QueriesStage(StageContext(1.0), QueriesOptions(**options))
    stage.setup()
    row = stage.process(Item(KEY, text=text), Nothing())
    assert row["tokens"].shape[1:] == stage.schema.arrays["tokens"].shape
    assert row["pooled"].shape[1:] == stage.schema.arrays["pooled"].shape
    assert {name: array.shape[1:] for name, array in row.arrays.items()} == {
        name: spec.shape for name, spec in stage.schema.arrays.items()
    }
    return row


def recipe(**options: Any) -> str:
    return QueriesStage(StageContext(2.0), QueriesOptions(**options)).recipe({}).id


def test_a_query_of_glove_keeps_its_signs_and_counts_its_unknown_words(glove: Path) -> None:
    row = encoded("A zzyx red square.", encoder="glove", checkpoint=glove)
    assert row["tokens"].tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11], [0, 1, 2]]
    assert row["pooled"].tolist() == [[4.5, 5.5, 6.5]]
    assert row.facts == {"sentences": 1, "truncated": 0, "tokens": 4, "unknown_words": 1}


def test_an_unknown_word_may_keep_its_place(glove: Path) -> None:
    row = encoded("a zzyx", encoder="glove", checkpoint=glove, options={"unknown": "zero"})
    assert row["tokens"].tolist() == [[3, 4, 5], [0, 0, 0]]


def test_a_query_with_words_that_nobody_looked_up_is_refused(glove: Path) -> None:
    with pytest.raises(InputError, match="without looking up: green"):
        encoded("a green square", encoder="glove", checkpoint=glove)


def test_a_query_beyond_the_context_says_so() -> None:
    row = encoded("word " * 76)
    assert row.facts == {"sentences": 1, "truncated": 1, "tokens": 77, "unknown_words": 0}


def test_states_are_those_of_the_encoder_that_narratives_have(
    word_tables: dict[str, Path],
) -> None:
    for name in ("hash", "llama_embedding"):
        row = encoded("a red dog .", encoder=name, checkpoint=word_tables.get(name))
        (states,) = create(name, word_tables.get(name), preset="tiny").encode(["a red dog ."])
        np.testing.assert_array_equal(row["tokens"], states.tokens.astype(np.float16))


def test_further_encoders_write_their_own_states_beside_those_of_the_main_one(
    glove: Path, word_tables: dict[str, Path]
) -> None:
    text = "a red square ."
    others = {
        "llama": {"encoder": "llama_embedding", "checkpoint": word_tables["llama_embedding"]},
        "words": {"encoder": "glove", "checkpoint": glove},
    }
    alone, row = encoded(text), encoded(text, others=others)
    for name in ("tokens", "pooled"):
        np.testing.assert_array_equal(row[name], alone[name])
    (llama,) = create("llama_embedding", word_tables["llama_embedding"]).encode([text])
    np.testing.assert_array_equal(row["tokens_llama"], llama.tokens.astype(np.float16))
    assert row["tokens_words"].tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11], [0, 1, 2]]
    assert len(row["tokens"]) == 6  # CLIP's, with start and end
    assert row.arrays.keys() == {"tokens", "pooled", "tokens_llama", "tokens_words"}


def test_what_further_encoders_lose_is_counted_apart(glove: Path) -> None:
    others = {
        "words": {"encoder": "glove", "checkpoint": glove},
        "short": {"encoder": "clip"},
    }
    row = encoded("a zzyx " + "red " * 80, encoder="hash", others=others)
    counted = {"sentences": 1, "truncated": 0, "tokens": 82, "unknown_words": 0}
    # GloVe has 81 of the 82 words and cuts nothing, CLIP takes 77 tokens
    further = {"sentences": 2, "truncated": 1, "tokens": 81 + 77, "unknown_words": 1}
    assert row.facts == counted | {f"other_{name}": n for name, n in further.items()}
    assert QueriesStage.remarks(row.facts) == [
        "50 % queries truncated by further encoders",
        f"{100 / 159:.3g} % words unknown to further encoders",
    ]


def test_a_sentence_that_a_further_encoder_cannot_read_is_refused(glove: Path) -> None:
    with pytest.raises(InputError, match="without looking up: green"):
        encoded("a green square", others={"words": {"encoder": "glove", "checkpoint": glove}})


def test_a_store_without_further_encoders_keeps_its_recipe_and_its_facts() -> None:
    # ids of commit a036ed6, before there were further encoders
    assert recipe() == "dbdb04056433d235"
    assert recipe(encoder="hash") == "9e3e375aaf94efad"
    assert recipe(preset="full", others={}) == "c0e955576ca0afd7"
    row = encoded("a red square")
    assert row.arrays.keys() == {"tokens", "pooled"}
    assert row.facts.keys() == {"sentences", "truncated", "tokens", "unknown_words"}


def test_a_changed_further_encoder_is_another_recipe(tmp_path: Path, glove: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(
        table_bytes("glove", np.ones((1, 3), np.float16), {"words": b"red", "unknown": b""})
    )
    made = [
        recipe(),
        recipe(others={"words": {"encoder": "hash"}}),
        recipe(others={"other": {"encoder": "hash"}}),
        recipe(others={"words": {"encoder": "hash", "seed": 1}}),
        recipe(others={"words": {"encoder": "glove", "checkpoint": glove}}),
        recipe(others={"words": {"encoder": "glove", "checkpoint": tmp_path / "b.safetensors"}}),
    ]
    assert len(set(made)) == len(made)
    two = {"a": {"encoder": "hash"}, "b": {"encoder": "clip"}}
    assert recipe(others=two) == recipe(others=dict(reversed(two.items())))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"LLaMA": {}}, r"others\.LLaMA.*pattern"),
        ({"llama": {"gpus": 1}}, r"gpus: all encoders .* same workers; say it of the stage"),
        ({"llama": {"encodr": "hash"}}, r"others\.llama\.encodr'; did you mean 'encoder'"),
    ],
)
def test_wrong_further_encoders_are_named(others: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(QueriesOptions, {"others": others}, source="test")


def test_a_further_encoder_without_its_table_ends_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="pipeline weights extract-embedding"):
        recipe(others={"llama": {"encoder": "llama_embedding"}})
