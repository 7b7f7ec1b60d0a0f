from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
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
    return row


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
