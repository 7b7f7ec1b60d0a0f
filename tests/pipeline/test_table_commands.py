"""`pipeline weights glove` and `extract-embedding` on files as users have them."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from data.errors import UsageError
from models.word_tables import open_table
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.doctor import Check, examine
from pipeline.table_commands import texts_of

VECTORS = {
    "the": [0.5, 1.0, -2.0],
    "dog": [0.25, 0.0, 4.0],
    "runs": [1.0, 2.0, 3.0],
    ".": [8.0, 8.0, 8.0],
    "café": [0.125, 0.5, 1.5],
}
LINES = [f"{word} {' '.join(map(str, numbers))}" for word, numbers in VECTORS.items()]


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["weights", *map(str, words)], env={"COLUMNS": "200"})


def told(*words: object) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.output)
    return content


def problem(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "glove.3d.txt").write_text("\n".join(LINES) + "\n")
    return tmp_path / "glove.3d.txt"


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("The dog runs. The zzyx.\n\nA café!\n")
    return tmp_path / "words.txt"


def test_a_table_has_the_vectors_of_the_words_and_says_what_it_lacks(
    tmp_path: Path, text: Path, words: Path
) -> None:
    out = tmp_path / "out.safetensors"
    figures = told("glove", text, out, "--words-from", words, "--dim", 3)
    table = open_table(out, "glove")
    assert table.words == [".", "café", "dog", "runs", "the"]
    for index, word in enumerate(table.words):
        assert table.row(index).tolist() == VECTORS[word]
    assert {"zzyx", "a", "!"} < table.unknown
    assert not table.unknown & set(VECTORS)
    assert figures["words"] == 7
    assert figures["most frequent unknown"] == {"a": 1, "zzyx": 1}
    assert figures["share of unknown words"] == pytest.approx(2 / 7)
    assert not table.whole


def test_plain_gzip_and_zip_give_the_same_table(tmp_path: Path, text: Path, words: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    with zipfile.ZipFile(tmp_path / "glove.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("glove.50d.txt", "the 1 2\n")
        archive.write(text, "glove.3d.txt")
    tables = []
    for source in (text, packed, tmp_path / "glove.zip"):
        out = tmp_path / f"{source.suffix[1:]}.safetensors"
        told("glove", source, out, "--words-from", words, "--dim", 3)
        tables.append(out.read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_lines_of_another_length_are_left_out_and_the_last_of_two_counts(
    tmp_path: Path, words: Path
) -> None:
    odd = ["5 3", ". . 1 1 1", *LINES, "dog 7 7 7", "at name@domain.com 1 2 3", "cut 1 2"]
    (tmp_path / "odd.txt").write_text("\n".join(odd) + "\n")
    out = tmp_path / "out.safetensors"
    figures = told("glove", tmp_path / "odd.txt", out, "--words-from", words, "--dim", 3)
    assert (figures["lines of the file"], figures["lines left out"]) == (10, 4)
    assert figures["words that came twice"] == 1
    table = open_table(out, "glove")
    assert table.row(table.words.index("dog")).tolist() == [7, 7, 7]


def test_without_texts_the_whole_file_becomes_a_table(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "all.safetensors"
    told("glove", text, out, "--dim", 3, "--dtype", "float32")
    table = open_table(out, "glove")
    assert table.whole
    assert sorted(VECTORS) == table.words


def test_a_table_is_made_again_and_no_other_file_is_written_over(
    tmp_path: Path, text: Path, words: Path
) -> None:
    out = tmp_path / "out.safetensors"
    told("glove", text, out, "--words-from", words, "--dim", 3)
    before = out.read_bytes()
    (tmp_path / "more.txt").write_text("a dog and a cat\n")
    both = ("--words-from", words, "--words-from", tmp_path / "more.txt")
    told("glove", text, out, *both, "--dim", 3)
    assert "cat" in open_table(out, "glove").unknown
    assert out.read_bytes() != before
    assert "is not written over" in problem("glove", text, text, *both, "--dim", 3)
    assert text.read_text().startswith("the ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no vectors of 3 numbers"),
        (b"<html>\n<body>no\n</html>\n", "no vectors of 3 numbers"),
        (b"the 1 2\ndog 3 4\n", "most have 2; say --dim"),
        (b"the 1 nan 2\n", "the vector of 'the' is not made of finite numbers"),
        (b"the 1 x 2\n", "the vector of 'the' is not made of finite numbers"),
        (gzip.compress(b"the 1 2 3\n" * 1000)[:40], "damaged or cut off"),
        (b"PK\x03\x04 and no more", "damaged or cut off"),
        (b"the" * 500_000, "a line has more than"),
        (b"the 1 2 1e6\n", "--dtype float32"),
    ],
    ids=["empty", "page", "other size", "nan", "word", "cut gz", "cut zip", "no lines", "large"],
)
def test_a_file_that_is_no_vectors_is_a_sentence(
    tmp_path: Path, words: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad").write_bytes(content)
    out = tmp_path / "out.safetensors"
    said = problem("glove", tmp_path / "bad", out, "--words-from", words, "--dim", 3)
    assert message in " ".join(said.split())
    assert not out.exists()


def test_several_files_in_an_archive_are_named(tmp_path: Path, words: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("one.txt", "the 1 2 3\n")
        archive.writestr("other.txt", "the 1 2 3\n")
    said = problem("glove", tmp_path / "two.zip", tmp_path / "o", "--words-from", words, "--dim", 3)
    assert "several files (one.txt, other.txt)" in " ".join(said.split())


def test_texts_come_from_annotations_captions_and_lines(tmp_path: Path) -> None:
    rows = [
        {"qid": 1, "query": "a dog", "duration": 4, "vid": "v", "relevant_windows": [[0, 2]]},
        {"qid": 2, "query": "a cat", "duration": 4, "vid": "v", "relevant_windows": [[0, 2]]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "captions.jsonl").write_text(
        '{"video_id": "v", "time_s": 0, "caption": "A red bird."}\n'
    )
    (tmp_path / "sta.txt").write_text("AAAAA 0.0 4.0##a person runs.\n")
    assert list(texts_of(str(tmp_path / "train.jsonl"))) == ["a dog", "a cat"]
    assert list(texts_of(str(tmp_path / "captions.jsonl"))) == ["A red bird."]
    assert list(texts_of(str(tmp_path / "sta.txt"))) == ["a person runs."]
    with pytest.raises(UsageError, match="neither a file nor a store"):
        list(texts_of(str(tmp_path)))


def test_an_embedding_is_extracted_by_a_command(tmp_path: Path, shared: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(shared / "golden/extractors/llama_sp_tiny.model", model / "tokenizer.model")
    rows = torch.arange(640 * 2).reshape(640, 2).half()
    torch.save({"model.embed_tokens.weight": rows}, model / "pytorch_model.bin")
    out = tmp_path / "llama.safetensors"
    figures = told("extract-embedding", model, out)
    assert (figures["rows"], figures["numbers of a row"]) == (640, 2)
    table = open_table(out, "llama_embedding")
    np.testing.assert_array_equal(table.row(639), rows[639].numpy())
    said = problem("extract-embedding", tmp_path / "none", tmp_path / "o.safetensors")
    assert "does not exist" in said
    assert "it is the table of llama_embedding" in problem("glove", model, out)


def test_doctor_looks_for_the_table_of_a_text_encoder(tmp_path: Path, text: Path) -> None:
    def found(*settings: str) -> Check:
        config = load_pipeline_config(Path("tiny"), ["stages.narratives.encoder=glove", *settings])
        (check,) = (each for each in examine(config) if "text encoder of" in each.name)
        return check

    assert found().state == "fail"
    assert "pipeline weights glove" in found().advice
    out = tmp_path / "glove.safetensors"
    told("glove", text, out, "--dim", 3)
    assert found(f"stages.narratives.checkpoint={out}").found == (
        f"glove: 5 vectors of 3 numbers, {out}"
    )


def test_a_table_of_a_further_encoder_lies_beside_the_config_and_doctor_looks_for_it(
    tmp_path: Path, text: Path
) -> None:
    others = {"words": {"encoder": "glove", "checkpoint": "glove.safetensors"}}
    config = {"extends": "tiny", "stages": {"queries": {"others": others}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "glove.safetensors"

    def found() -> Check:
        checks = examine(load_pipeline_config(tmp_path / "pipeline.yaml"))
        return next(each for each in checks if "queries.others.words" in each.name)

    assert found().state == "fail"
    told("glove", text, out, "--dim", 3)
    assert found().found == f"glove: 5 vectors of 3 numbers, {out}"
