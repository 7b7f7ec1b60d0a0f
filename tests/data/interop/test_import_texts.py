"""Text features of queries, from the files of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_folders import annotation, new_store, rows

from data.errors import UsageError
from data.identity import query_id
from data.interop import import_texts, open_source
from data.interop.writing import Journey


def text_folder(folder: Path, qids: list[str], tokens: str = "last_hidden_state") -> Path:
    """As `qid7.npz` of Moment-DETR, or `s1_0.npz` of TACoS."""
    folder.mkdir(exist_ok=True)
    for number, qid in enumerate(qids):
        arrays = {tokens: rows(3 + number, number)}
        if tokens != "token":
            arrays["pooler_output"] = rows(1, 90 + number, width=4)[0]
        np.savez(folder / f"{qid}.npz", **arrays)
    return folder


def test_token_states_and_pooled_vectors_become_rows_of_their_sentences(tmp_path: Path) -> None:
    source = open_source(text_folder(tmp_path / "t", ["qid7", "qid8"]))
    store = new_store(tmp_path / "s")
    given = [annotation("v", 8.0, 7), annotation("v", 8.0, 8), annotation("w", 8.0, 9)]
    report = import_texts(store, source, given)
    assert (source.format, report.stage) == ("text", "queries")
    reader = store.reader("queries")
    np.testing.assert_array_equal(reader.array(query_id("sentence 7"), "tokens"), rows(3, 0))
    pooled = reader.array(query_id("sentence 8"), "pooled")
    np.testing.assert_array_equal(pooled, rows(1, 91, width=4))
    (note,) = report.notes
    assert note.startswith("1 sentences of the annotations have no file, for example 'sentence 9'")


def test_qids_that_are_words_and_files_without_pooled_vectors(tmp_path: Path) -> None:
    source = open_source(text_folder(tmp_path / "t", ["s30-d52_0"], tokens="token"))
    store = new_store(tmp_path / "s")
    report = import_texts(store, source, [annotation("v", 8.0, "s30-d52_0")])
    assert list(store.recipe("queries").schema.arrays) == ["tokens"]
    assert any("no pooled vectors" in note for note in report.notes)


def test_files_without_an_annotation_are_left_out_and_told(tmp_path: Path) -> None:
    source = open_source(text_folder(tmp_path / "t", ["qid7", "qid8"]))
    report = import_texts(new_store(tmp_path / "s"), source, [annotation("v", 8.0, 8)])
    assert [each.id for each in report.lines] == ["8"]
    assert "no query of the annotations has the qid 7" in report.left_out["qid7.npz"]


def test_a_qid_of_two_sentences_is_left_out(tmp_path: Path) -> None:
    from dataclasses import replace

    source = open_source(text_folder(tmp_path / "t", ["qid7", "qid8"]))
    other = replace(annotation("v", 8.0, 7), query="something else")
    given = [annotation("v", 8.0, 7), other, annotation("v", 8.0, 8)]
    report = import_texts(new_store(tmp_path / "s"), source, given)
    assert [each.id for each in report.lines] == ["8"]
    assert "has 2 different sentences" in report.left_out["qid7.npz"]


def test_two_queries_of_one_sentence_share_a_row(tmp_path: Path) -> None:
    from dataclasses import replace

    source = open_source(text_folder(tmp_path / "t", ["qid7", "qid8"]))
    same = replace(annotation("v", 8.0, 8), query="sentence 7")
    store = new_store(tmp_path / "s")
    import_texts(store, source, [annotation("v", 8.0, 7), same])
    np.testing.assert_array_equal(
        store.reader("queries").array(query_id("sentence 7"), "tokens"), rows(3, 0)
    )


def test_padding_of_zeros_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    padded = np.concatenate([rows(5), np.zeros((72, 6), np.float32)])
    np.savez(tmp_path / "t" / "qid7.npz", last_hidden_state=padded, pooler_output=rows(1)[0])
    store = new_store(tmp_path / "s")
    report = import_texts(store, open_source(tmp_path / "t"), [annotation("v", 8.0, 7)])
    assert report.lines[0].told == "72 rows of zeros at the end are padding: left out"
    np.testing.assert_array_equal(
        store.reader("queries").array(query_id("sentence 7"), "tokens"), rows(5)
    )


def test_wrong_text_files_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "t", ["qid1", "qid2"])
    np.savez(folder / "qid3.npz", last_hidden_state=rows(3), pooler_output=rows(1, width=9)[0])
    np.savez(folder / "qid4.npz", last_hidden_state=rows(3))
    (folder / "qid5.npz").write_bytes(b"no zip")
    store = new_store(tmp_path / "s")
    given = [annotation("v", 8.0, qid) for qid in range(1, 6)]
    report = import_texts(store, open_source(folder), given)
    assert {each.id: each.reason for each in report.refused} == {
        "3": "width",
        "4": "no-array",
        "5": "unreadable",
    }
    assert len(store.failures("queries").read()) == 3


def test_without_annotations_nobody_knows_the_sentences(tmp_path: Path) -> None:
    source = open_source(text_folder(tmp_path / "t", ["qid7"]))
    store = new_store(tmp_path / "s")
    with pytest.raises(UsageError, match="--annotations train=FILE"):
        import_texts(store, source, [])
    with pytest.raises(UsageError, match="none belongs to a query of the annotations"):
        import_texts(store, source, [annotation("v", 8.0, 1)])


def test_a_second_import_of_texts_has_nothing_to_do(tmp_path: Path) -> None:
    source = open_source(text_folder(tmp_path / "t", ["qid7"]))
    store = new_store(tmp_path / "s")
    for outcome in ("stored", "present"):
        report = import_texts(store, source, [annotation("v", 8.0, 7)], journey=Journey())
        assert [each.outcome for each in report.lines] == [outcome]
