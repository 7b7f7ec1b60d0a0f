"""A public checkpoint becomes a run that predicts what the model itself does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from public_checkpoints import trained, write
from small_store import Annotations
from trainer_calls import call, good

from data.annotations import save_jsonl
from data.store import Store
from models.retrieval import load_official
from training.predictions import read_predictions
from training.run import Run
from training.session import Session


@pytest.mark.parametrize("name", ["qd_detr", "moment_detr"])
def test_a_public_checkpoint_predicts_and_is_scored_as_a_run(
    name: str, tmp_path: Path, store: Store, splits: Annotations
) -> None:
    file, run, found = (
        write(tmp_path / "best.ckpt", trained(name)),
        tmp_path / "run",
        tmp_path / "p",
    )
    told = good("import-checkpoint", name, file, "--out", run).output
    assert "--set data.store=STORE" in told
    assert "slowfast, clip" in told
    on = ["--run", run, "--split", "val", "--set", f"data.store={store.path}"]
    good("predict", *on, "--out", found)
    good("evaluate", *on, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["brief"]["MR-full-R1@0.5"] is not None

    predictions = read_predictions(found, splits["val"])
    session = Session(Run.open(run, [f"data.store={store.path}"]).config, lambda sentence: None)
    (batch,) = session.hold(session.split("val")).read([np.arange(10)], None)
    model = load_official(name, file).to(session.device)
    with torch.no_grad():
        saliency = model(batch.tensors).saliency
    for row, each in zip(saliency.tolist(), predictions, strict=True):
        assert each.saliency == pytest.approx(row[: len(each.saliency)], abs=1e-3)


def test_the_run_says_where_it_comes_from_and_what_the_options_were(
    tmp_path: Path, store: Store
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr"), max_v_l=-1), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--store", store.path)
    opened = Run.open(run)
    assert opened.config.model.preset == "release"
    assert opened.config.data.max_clips is None
    assert opened.config.data.max_tokens == 32
    assert str(opened.config.data.store) == str(store.path)
    assert opened.imported == "best.ckpt"
    assert opened.about["imported"]["options"]["lr"] == "0.0001"
    told = good("evaluate", "--run", run).output
    assert "was imported, and nobody said what it was trained on" in told
    assert "trained elsewhere (best.ckpt)" in told


def test_what_it_was_trained_on_is_remembered(
    tmp_path: Path, store: Store, splits: Annotations
) -> None:
    file, rows = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "val.jsonl"
    save_jsonl(splits["val"], rows)
    arguments = ["import-checkpoint", "qd_detr", file, "--store", store.path]
    known = ["--trained-on", rows, "--dataset", "qvhighlights"]
    told = good(*arguments, "--out", tmp_path / "known", *known).output
    assert "nobody said" not in told
    refused = call("evaluate", "--run", tmp_path / "known", "--split", "val")
    assert refused.exit_code == 2
    assert "10 videos of split 'val' are in the training split too" in refused.output
    good("evaluate", "--run", tmp_path / "known", "--split", "test")


def test_streams_can_be_named(tmp_path: Path, store: Store) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    streams = ["--stream", "clip", "--stream", "slowfast"]
    told = good("import-checkpoint", "qd_detr", file, "--out", run, *streams).output
    assert "as its options name them" not in told
    assert Run.open(run).config.data.streams == ("clip", "slowfast")


def test_an_imported_run_is_not_continued(tmp_path: Path, store: Store) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--store", store.path)
    found = call("fit", "--resume", "--out", run)
    assert found.exit_code == 2
    assert "imported from best.ckpt and has no optimiser to continue with" in found.output


def test_features_of_another_width_are_explained(tmp_path: Path, store: Store) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--stream", "clip")
    found = call("evaluate", "--run", run, "--set", f"data.store={store.path}")
    assert found.exit_code == 2
    assert "does not fit the model of its configuration and these features" in found.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 32}, "does not fit the model that its options describe"),
        ({"no_norm_vfeat": True}, "no_norm_vfeat=True, which is not supported"),
        ({"ctx_mode": "video"}, "ctx_mode='video', which is not supported"),
        ({"dropout": 2.0}, "dropout"),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr"), **change), tmp_path / "run"
    found = call("import-checkpoint", "qd_detr", file, "--out", run)
    assert found.exit_code == 2
    assert message in found.output
    assert not run.exists()


def test_wrong_use_is_answered_before_anything_is_written(tmp_path: Path) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    for arguments, message in (
        (["qd_det", file], "did you mean 'qd_detr'"),
        (["qd_detr", tmp_path / "none.ckpt"], "no checkpoint at"),
        (["moment_detr", file], "unexpected"),
        (["lmr", file], "LMR has no public code"),
    ):
        found = call("import-checkpoint", *arguments, "--out", run)
        assert found.exit_code == 2
        assert message in found.output
        assert not run.exists()
    run.mkdir()
    (run / "mine.txt").write_text("")
    taken = call("import-checkpoint", "qd_detr", file, "--out", run)
    assert taken.exit_code == 2
    assert "exists already" in taken.output


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.ckpt"
    torch.save({"model": {}, "opt": pytest.raises}, file)
    found = call("import-checkpoint", "qd_detr", file, "--out", tmp_path / "run")
    assert found.exit_code == 2
    assert "cannot be read safely" in found.output
