"""Queries under two encoders, from the films to predictions, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from grey_films import film
from typer.testing import CliRunner

from data.store import Store
from pipeline.cli import app as pipeline
from training.cli import app as trainer

SECONDS = 4


def good(app: Any, *words: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path, word_tables: dict[str, Path]) -> Path:
    """Films and queries of two splits, and both configurations."""
    (tmp_path / "videos").mkdir()
    for split in ("train", "val"):
        rows = []
        for number in range(2):
            video = f"{split}{number}"
            film(tmp_path / "videos" / f"{video}.mp4", [60 * (1 + number)] * SECONDS)
            rows.append(
                {
                    "qid": number,
                    "query": f"The {'red' if number else 'blue'} dog moves.",
                    "duration": SECONDS,
                    "vid": video,
                    "relevant_windows": [[0, 2]],
                }
            )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    llama = {"encoder": "llama_embedding", "checkpoint": str(word_tables["llama_embedding"])}
    stages = {
        "clip": {},
        "captions": {"captioner": "pixel"},
        "narratives": llama,
        "queries": {"encoder": "clip", "others": {"llama": llama}},
    }
    config: dict[str, Any] = {
        "videos": {"root": "videos"},
        "store": "store",
        "clip_len_s": 1.0,
        "annotations": {split: f"{split}.jsonl" for split in ("train", "val")},
        "engine": {"executor": "inline"},
        "stages": stages,
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    data = {"streams": ["clip"], "other_texts": ["llama"], "narratives": True}
    options = {"hidden": 16, "heads": 2, "queries": 3, "description_query": "other"}
    config = {
        "data": {"store": str(tmp_path / "store"), **data},
        "model": {"name": "lmr", "options": options},
        "loop": {"epochs": 1, "batch_size": 2, "device": "cpu"},
    }
    (tmp_path / "trainer.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.parametrize("cache", ["device", "none"])
def test_a_model_of_two_embeddings_learns_from_what_the_pipeline_wrote(
    folder: Path, cache: str
) -> None:
    good(pipeline, "run", "--config", folder / "pipeline.yaml")
    arrays = Store.open(folder / "store").recipe("queries").schema.arrays
    assert {name: spec.shape for name, spec in arrays.items()} == {
        "tokens": (64,),
        "pooled": (128,),
        "tokens_llama": (8,),
    }
    run, found = folder / "run", folder / "found.jsonl"
    config = ["--config", folder / "trainer.yaml", "--set", f"data.cache={cache}"]
    good(trainer, "fit", *config, "--out", run)
    good(trainer, "predict", "--run", run, "--split", "val", "--out", found)
    assert len(found.read_text().splitlines()) == 2

    words = ["predict", "--run", run, "--split", "val", "--out", folder / "again.jsonl"]
    result = CliRunner().invoke(
        trainer, [str(each) for each in words] + ["--set", "data.other_texts=[]"]
    )
    assert result.exit_code == 2
    assert "data.other_texts was ('llama',) and is ()" in " ".join(result.output.split())
