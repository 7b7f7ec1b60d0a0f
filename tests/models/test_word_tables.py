from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from data.errors import UsageError
from models.text import create
from models.word_tables import KINDS, open_table, table_bytes

VECTORS: NDArray[np.float16] = np.arange(12, dtype=np.float16).reshape(3, 4)
BLOBS = {"words": "a\nnaïve\nc".encode(), "unknown": b"zzyx"}


def written(folder: Path, kind: str = "glove", **about: str) -> Path:
    file = folder / "table.safetensors"
    file.write_bytes(table_bytes(kind, VECTORS, BLOBS, about))
    return file


def test_a_table_gives_back_what_was_put_in(tmp_path: Path) -> None:
    table = open_table(written(tmp_path), "glove")
    assert table.shape == (3, 4)
    assert table.words == ["a", "naïve", "c"]
    assert table.unknown == {"zzyx"}
    assert not table.whole
    assert table.row(2).dtype == np.float32
    assert [table.row(i).tolist() for i in range(3)] == VECTORS.tolist()


def test_the_same_content_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "other"
    first.mkdir()
    second.mkdir()
    one, other = (open_table(written(each, whole="0"), "glove") for each in (first, second))
    assert one.sha256 == other.sha256
    assert open_table(written(second, whole="1"), "glove").sha256 != one.sha256


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_no_table_is_told_with_the_command_that_makes_one(
    kind: str, tmp_path: Path
) -> None:
    save_file({"vectors": VECTORS}, tmp_path / "plain.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    for given, problem in (
        (None, "`checkpoint` names none"),
        ({}, "state dict is no checkpoint"),
        (tmp_path, "is a folder and no checkpoint"),
        (tmp_path / "none.safetensors", "does not exist"),
        (tmp_path / "plain.safetensors", "without the mark of a table"),
        (tmp_path / "junk.safetensors", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=problem) as raised:
            open_table(given, kind)
        if problem != "does not exist":
            assert KINDS[kind] in str(raised.value)


def test_the_table_of_another_encoder_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is the table of glove; say `encoder: glove`"):
        create("llama_embedding", written(tmp_path))


def test_vectors_without_as_many_words_are_damage(tmp_path: Path) -> None:
    file = tmp_path / "table.safetensors"
    file.write_bytes(table_bytes("glove", VECTORS, {"words": b"a\nb", "unknown": b""}))
    with pytest.raises(UsageError, match="2 different words for 3 vectors"):
        create("glove", file)
    file.write_bytes(table_bytes("glove", VECTORS, {}))
    with pytest.raises(UsageError, match="holds no 'words'"):
        create("glove", file)


@pytest.mark.parametrize("name", ["words", "unknown"])
def test_words_that_are_no_text_are_damage(tmp_path: Path, name: str) -> None:
    file = tmp_path / "table.safetensors"
    file.write_bytes(table_bytes("glove", VECTORS, BLOBS | {name: b"a\n\xff\nc"}))
    with pytest.raises(UsageError, match=f"damaged: its '{name}' are not text.*weights glove"):
        getattr(open_table(file, "glove"), name)


def test_only_matrices_of_two_types_are_written() -> None:
    with pytest.raises(ValueError, match="float64"):
        table_bytes("glove", VECTORS.astype(np.float64), BLOBS)
    with pytest.raises(ValueError, match="did you mean 'glove'"):
        table_bytes("glov", VECTORS, BLOBS)
