"""From videos and a highlight dataset's own annotation file to scores, with the real commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from every_dataset import CORPORA, clips_of
from typer.testing import CliRunner

from data.annotations import load_annotations
from pipeline.cli import app as pipeline
from training.cli import app as trainer

pytest.importorskip("av")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainer" / "qd_detr"
SMALL = ["hidden=16", "heads=2", "feedforward=32", "queries=4"]


def call(app: typer.Typer, *arguments: object) -> None:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 24 seconds, `train-0000` and `val-0000`."""
    from data.synthetic import render_corpus

    folder = tmp_path_factory.mktemp("films")
    sizes: dict[str, Any] = {"train": 1, "val": 1, "test": 0, "clips": 24, "fps": 4}
    render_corpus(folder / "corpus", **sizes, size=(64, 64))
    return folder / "corpus" / "videos"


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["tvsum", "youtube_highlights"])
def test_videos_and_a_file_of_highlights_become_a_model_and_its_scores(
    dataset: str, films: Path, tmp_path: Path
) -> None:
    names = {path.stem.split("-")[0]: path.stem for path in sorted(films.glob("*.mp4"))}
    for split, name in names.items():
        (tmp_path / f"{split}.jsonl").write_text(CORPORA[dataset].text([name], 24.0))
    config = {
        "extends": "tiny",
        "videos": {"root": str(films)},
        "store": str(tmp_path / "store"),
        "dataset": dataset,
        "clip_len_s": clips_of(dataset),
        "annotations": {split: str(tmp_path / f"{split}.jsonl") for split in names},
        "engine": {"executor": "inline"},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    stages = ["--stage", "clip", "--stage", "queries"]
    call(pipeline, "run", "--config", tmp_path / "pipeline.yaml", *stages)

    values = [f"model.options.{each}" for each in SMALL]
    values += [f"data.store={tmp_path / 'store'}", "data.streams=[clip]", "loop.device=cpu"]
    changes = [part for value in [*values, "loop.epochs=2"] for part in ("--set", value)]
    call(
        trainer, "fit", "--config", CONFIGS / f"{dataset}.yaml", *changes, "--out", tmp_path / "run"
    )
    call(trainer, "evaluate", "--run", tmp_path / "run", "--json", tmp_path / "scores.json")
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["brief"]["mAP"] <= 1
    call(
        trainer, "predict", "--run", tmp_path / "run", "--split", "val", "--out", tmp_path / "found"
    )
    (row,) = load_annotations(dataset, tmp_path / "val.jsonl")
    found = json.loads((tmp_path / "found").read_text())
    assert len(found["pred_saliency_scores"]) == len(row.saliency or ())
    # the file that was written scores as the run did
    file = ["--predictions", tmp_path / "found", "--annotations", tmp_path / "val.jsonl"]
    again = tmp_path / "again.json"
    call(trainer, "evaluate", *file, "--dataset", dataset, "--json", again)
    scores = [json.loads(path.read_text())["brief"] for path in (tmp_path / "scores.json", again)]
    assert scores[0] == scores[1]
