"""Parses of spaCy pipelines: a real one counts, one without a parser is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cqval_files import CONLLU, annotation_file, good, queries_of, refused

from data.errors import UsageError
from training.cqval.build import read_splits
from training.cqval.spacy_source import Spacy

spacy = pytest.importorskip("spacy", reason="spaCy is an extra of the trainer (cqval)")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose parser learned three sentences by heart; labels of ClearNLP."""
    from spacy.training import Example

    language = spacy.blank("en")
    # spaCy drops labels that are rarer than 30 by default
    language.add_pipe("parser", config={"min_action_freq": 1})
    examples = [Example.from_dict(*_example(language, rows)) for rows in CONLLU.values()]
    language.initialize(lambda: examples)
    for _ in range(60):
        language.update(examples, drop=0.0)
    folder = tmp_path_factory.mktemp("spacy") / "tiny"
    language.to_disk(folder)
    return folder


def _example(language: Any, rows: str) -> tuple[Any, dict[str, Any]]:
    columns = [row.split() for row in rows.split("|")]
    forms, heads, labels = zip(*columns, strict=True)
    document = spacy.tokens.Doc(
        language.vocab, words=forms, spaces=[True] * (len(forms) - 2) + [False] * 2
    )
    heads = [int(head) - 1 if head != "0" else i for i, head in enumerate(heads)]
    names = {"root": "ROOT", "acl:relcl": "relcl", "obj": "dobj"}
    return document, {"heads": heads, "deps": [names.get(each, each) for each in labels]}


def test_a_pipeline_with_a_parser_counts_clauses(tmp_path: Path, pipeline: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    found = Spacy()(rows, str(pipeline))
    assert found.clauses(None).tolist() == [2, 1, 0]
    assert found.clauses(["relcl"]).tolist() == [0, 1, 0]
    assert found.about["spacy"] == spacy.__version__
    assert found.about["components"] == ["parser"]
    assert len(found.about["meta_sha256"]) == len(found.about["files_sha256"]) == 64


def test_build_writes_which_pipeline_it_was(tmp_path: Path, pipeline: Path) -> None:
    rows = annotation_file(tmp_path / "rows.jsonl")
    good("build", rows, "--parser", "spacy", "--model", pipeline, "--out", tmp_path / "s.json")
    splits = read_splits(tmp_path / "s.json")
    assert splits.parser["name"] == "en_pipeline"  # spaCy's own default
    assert splits.clauses == (2, 1, 0)
    assert splits.name == "C-QVal (reconstructed)"


def test_what_spacy_warns_of_is_told_and_kept(tmp_path: Path, pipeline: Path) -> None:
    meta = pipeline / "meta.json"
    old = tmp_path / "old"
    spacy.load(pipeline).to_disk(old)
    text = meta.read_text()
    (old / "meta.json").write_text(
        text.replace('"spacy_version":"', '"spacy_version":">=3.0.0,<3.1.0","was":"')
    )
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = good("build", rows, "--parser", "spacy", "--model", old, "--out", tmp_path / "s.json")
    assert "note: spaCy says: [W095]" in told
    assert "W095" in read_splits(tmp_path / "s.json").remarks[0]


def saved(folder: Path, *components: str) -> Path:
    language = spacy.blank("en")
    for each in components:
        language.add_pipe(each)
    language.to_disk(folder)
    return folder


ROUTES = [
    "--model NAME_OR_FOLDER",
    "--parses FILE.conllu",
    "--counts FILE.json",
    "--parser heuristic",
]


@pytest.mark.parametrize("components", [(), ("sentencizer",)])
def test_a_pipeline_without_a_parser_is_refused_with_the_ways_out(
    tmp_path: Path, components: tuple[str, ...]
) -> None:
    rows = annotation_file(tmp_path / "rows.jsonl")
    blank = saved(tmp_path / "blank", *components)
    told = refused(
        "build", rows, "--parser", "spacy", "--model", blank, "--out", tmp_path / "s.json"
    )
    assert "has no active component 'parser'" in told
    assert all(each in told for each in ROUTES)
    assert not (tmp_path / "s.json").exists()


def test_a_parser_that_is_switched_off_is_refused(tmp_path: Path, pipeline: Path) -> None:
    language = spacy.load(pipeline, disable=["parser"])
    language.to_disk(tmp_path / "off")
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    with pytest.raises(UsageError, match="no active component 'parser'"):
        Spacy()(rows, str(tmp_path / "off"))


@pytest.mark.parametrize("component", ["tagger", "parser"])
def test_a_component_that_was_never_trained_is_refused(
    tmp_path: Path, pipeline: Path, component: str
) -> None:
    """Before, a KeyError or ValueError of thinc ended the program."""
    language = spacy.blank("en") if component == "parser" else spacy.load(pipeline)
    language.add_pipe(component).add_label("acl")
    language.to_disk(tmp_path / "raw")
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = refused("build", rows, "--model", tmp_path / "raw", "--out", tmp_path / "s.json")
    assert "cannot parse" in told
    assert f"is each of its components trained: {', '.join(language.pipe_names)}?" in told
    assert all(each in told for each in ROUTES)


def test_a_component_that_is_called_parser_and_is_none_is_refused(
    tmp_path: Path, pipeline: Path
) -> None:
    language = spacy.blank("en")
    language.add_pipe("sentencizer", name="parser")
    language.to_disk(tmp_path / "named")
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = refused("build", rows, "--model", tmp_path / "named", "--out", tmp_path / "s.json")
    assert "has no labels, it was never trained" in told


def test_a_folder_may_be_named_from_where_one_is(
    tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline.parent)
    rows = annotation_file(tmp_path / "rows.jsonl")
    for model in (pipeline.name, f"./{pipeline.name}"):
        good("build", rows, "--model", model, "--out", tmp_path / "s.json")
        assert read_splits(tmp_path / "s.json").clauses == (2, 1, 0)


@pytest.mark.parametrize("model", ["numpy", "", "/dev/null", "no\nsuch"])
def test_what_is_no_pipeline_is_refused(tmp_path: Path, model: str) -> None:
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = refused("build", rows, "--model", model, "--out", tmp_path / "s.json")
    assert "cannot be loaded" in told
    assert "en_core_web_sm' cannot" not in told


def test_a_pipeline_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = refused("build", rows, "--model", "en_no_such_model", "--out", tmp_path / "s.json")
    assert "'en_no_such_model' cannot be loaded" in told
    assert all(each in told for each in ROUTES)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    with pytest.raises(UsageError, match="cannot be loaded"):
        Spacy()(rows, str(tmp_path))


def test_a_parser_whose_labels_are_no_clauses_is_refused(tmp_path: Path, pipeline: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    found = Spacy()(rows, str(pipeline))
    with pytest.raises(UsageError, match="knows none of the labels xcomp"):
        found.clauses(["xcomp"])
