"""Narratives and queries in the real engine: what another encoder costs, and what status says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from grey_films import film
from rich.console import Console
from toy_captioners import ASKED, toys_registered
from typer.testing import CliRunner

from data.store import Store
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline

Go = Callable[..., Result]
QUERY = {"qid": 1, "query": "The level is zzyx.", "duration": 4, "vid": "film"}


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys_registered():
        yield


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four seconds of grey."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "film.mp4", [100] * 4)
    return folder


@pytest.fixture
def go(tmp_path: Path, films: Path) -> Go:
    """`go(queries={…}, encoder=…)`: one run with these options of narratives; clips of 0.5 s."""

    def go(
        queries: dict[str, Any] | None = None,
        captions: dict[str, Any] | None = None,
        **narratives: Any,
    ) -> Result:
        row = QUERY | {"relevant_windows": [[0, 2]]}
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        config = {
            "videos": {"root": str(films)},
            "store": "store",
            "clip_len_s": 0.5,
            "annotations": {"train": "train.jsonl"},
            "engine": {"executor": "inline"},
            "stages": {
                "captions": captions or {"captioner": "toy"},
                "narratives": narratives,
                "queries": queries or {"encoder": "hash"},
            },
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
        quiet = Progress(Console(quiet=True))
        made = Run(loaded, look(loaded, (), None), ray_or_inline(loaded), quiet, StopFlag())
        ASKED.clear()
        return made.run(retry_failed=False)

    return go


def glove_file(folder: Path, *words: str) -> Path:
    """Vectors of four numbers, as GloVe is published."""
    random = np.random.default_rng(0)
    lines = [" ".join([word, *(f"{x:.4f}" for x in random.normal(size=4))]) for word in words]
    (folder / "glove.4d.txt").write_text("\n".join(lines) + "\n")
    return folder / "glove.4d.txt"


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_no_encoder_and_no_policy_captions_anything_again(
    tmp_path: Path, go: Go, word_tables: dict[str, Path]
) -> None:
    assert go(encoder="hash").exit_code == 0
    assert len(ASKED) == 4
    store = Store.open(tmp_path / "store")
    captions, narratives = store.current["captions"], {store.current["narratives"]}
    changes: list[dict[str, Any]] = [
        {"encoder": "hash", "preset": "full"},
        {"encoder": "hash", "seed": 1},
        {"encoder": "hash", "fill": "hold"},
        {"encoder": "hash", "flagged": "skip"},
        {"encoder": "hash", "keep_punct": True},
        {"encoder": "clip"},
        *({"encoder": name, "checkpoint": str(file)} for name, file in word_tables.items()),
    ]
    for change in changes:
        assert go(**change).exit_code == 0, change
        assert ASKED == [], change
        narratives.add(Store.open(tmp_path / "store").current["narratives"])
    assert len(narratives) == 1 + len(changes)
    assert Store.open(tmp_path / "store").current["captions"] == captions


def test_events_with_times_count_for_the_clips_that_they_touch(tmp_path: Path, go: Go) -> None:
    # ActivityNet Captions' form: dense captions with spans
    events = {"timestamps": [[0, 1.5], [2.2, 4.0]], "sentences": ["A dog runs.", "It sleeps."]}
    (tmp_path / "dense.json").write_text(json.dumps({"film": events}))
    captions = {"captioner": "precomputed", "options": {"path": "dense.json"}}
    for spans, coverage in (
        ("use", [1, 1, 1, 0, 1, 1, 1, 1]),
        ("ignore", [1, 0, 0, 0, 1, 0, 0, 0]),
    ):
        assert go(captions=captions, encoder="hash", spans=spans).exit_code == 0
        row = Store.open(tmp_path / "store").reader("narratives").row("film")
        assert row["coverage"].tolist() == coverage
        assert row.texts["paragraph"] == ["0: A dog runs.", "2.2: It sleeps."]


def test_glove_from_the_texts_of_a_store_to_narratives_and_queries(tmp_path: Path, go: Go) -> None:
    go(encoder="hash")
    known = ["level", "100", "the", "is", "this", "one", "image", "frame", "of", "from", "a"]
    vectors = glove_file(tmp_path, *known)
    table, store = tmp_path / "glove.safetensors", tmp_path / "store"
    told = json.loads(
        command("weights", "glove", vectors, table, "--words-from", store, "--dim", 4, "--json")
    )
    assert told["texts"] == 5  # four captions, one query
    assert told["most frequent unknown"]["zzyx"] == 1
    glove = {"encoder": "glove", "checkpoint": str(table)}
    assert go(queries=glove, **glove).exit_code == 0
    assert ASKED == []
    (query,) = Store.open(store).reader("queries").ids()
    row = Store.open(store).reader("queries").row(query)
    assert row["tokens"].shape == (3, 4)
    assert row.facts["unknown_words"] == 1
    status = json.loads(command("status", "--store", store, "--json"))["stages"]
    remarks = {each["stage"]: each["remarks"] for each in status}
    share = 100 * (told["unknown words"] - 1) / (told["words"] - 4)  # without the query's
    assert remarks["narratives"][:2] == [
        "50 % clips without a caption",
        f"{share:.3g} % words unknown",
    ]
    assert remarks["queries"][0] == "25 % words unknown"


def test_a_further_encoder_of_the_queries_is_another_recipe_and_the_old_rows_stay(
    tmp_path: Path, go: Go, word_tables: dict[str, Path]
) -> None:
    llama = {"encoder": "llama_embedding", "checkpoint": str(word_tables["llama_embedding"])}
    both = {"encoder": "hash", "others": {"llama": llama}}

    def shards() -> dict[str, list[str]]:
        recipes = (tmp_path / "store" / "queries").iterdir()
        return {each.name: sorted(file.name for file in each.glob("*.h5")) for each in recipes}

    assert go(encoder="hash").exit_code == 0
    alone = Store.open(tmp_path / "store").current["queries"]
    before = shards()
    assert go(queries=both, encoder="hash").exit_code == 0
    store = Store.open(tmp_path / "store")
    assert store.current["queries"] != alone
    (query,) = store.reader("queries").ids()
    row = store.reader("queries").row(query)
    assert row["tokens_llama"].shape == (5, 8)  # the level is zzyx .
    np.testing.assert_array_equal(
        row["tokens"], store.reader("queries", alone).row(query)["tokens"]
    )

    after = shards()
    assert after[alone] == before[alone]
    assert go(queries=both, encoder="hash").exit_code == 0  # nothing is left to do
    assert go(encoder="hash").exit_code == 0
    assert shards() == after
    assert Store.open(tmp_path / "store").current["queries"] == alone


def test_captions_with_words_that_the_table_was_not_asked_for_wait_in_quarantine(
    tmp_path: Path, go: Go
) -> None:
    (tmp_path / "words.txt").write_text("the level is zzyx\n")
    vectors = glove_file(tmp_path, "the", "level", "is")
    table = tmp_path / "glove.safetensors"
    command(
        "weights", "glove", vectors, table, "--words-from", tmp_path / "words.txt", "--dim", "4"
    )
    result = go(encoder="glove", checkpoint=str(table))
    assert result.exit_code == 3
    assert [each.reason for each in result.failures] == ["words-not-looked-up"]
    assert len(ASKED) == 4
    command("weights", "glove", vectors, table, "--words-from", tmp_path / "store", "--dim", "4")
    assert go(encoder="glove", checkpoint=str(table)).exit_code == 0
    assert ASKED == []
