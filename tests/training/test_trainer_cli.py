"""The `trainer` command as a user meets it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_store import Annotations
from trainer_calls import call, good

from data.annotations import save_jsonl
from data.store import Store
from models.retrieval.parts.distill import UNKNOWN
from training.batch import numbers_of
from training.run import Run

WriteConfig = Callable[..., Path]
TRAINER = [sys.executable, "-c", "from training.cli import main; main()"]


@pytest.fixture
def run(tmp_path: Path, config_file: WriteConfig) -> Path:
    """A finished run of two epochs."""
    good("fit", "--config", config_file(), "--out", tmp_path / "run")
    return tmp_path / "run"


def test_fit_writes_what_the_run_directory_promises_and_shows_it(
    tmp_path: Path, config_file: WriteConfig
) -> None:
    result = good("fit", "--config", config_file(), "--out", tmp_path / "run")
    run = tmp_path / "run"
    for name in ("config.yaml", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (run / name).is_file()
    assert list((run / "tensorboard").glob("events*"))
    assert set(json.loads((run / "environment.json").read_text())["features"]) == {
        "clip",
        "slowfast",
        "queries",
    }
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in records] == [1, 2]
    assert {"epoch", "step", "lr", "losses", "seconds", "val"} == set(records[0])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["selected_by"] == "MR-full-mAP"
    assert metrics["last"]["brief"] == records[-1]["val"]
    best = records[metrics["epoch_best"] - 1]["val"]
    assert metrics["best"]["brief"] == best
    assert best["MR-full-mAP"] == max(each["val"]["MR-full-mAP"] for each in records)
    assert "epoch 2/2 | total" in result.output
    assert "s/epoch, ETA 0:00" in result.output
    assert "last (epoch 2)" in result.output


def test_the_predictions_of_the_best_epoch_have_its_scores(
    tmp_path: Path, run: Path, splits: Annotations
) -> None:
    save_jsonl(splits["val"], tmp_path / "val.jsonl")
    good(
        *("evaluate", "--dataset", "qvhighlights", "--json", tmp_path / "out.json"),
        *("--predictions", run / "predictions" / "val-best.jsonl"),
        *("--annotations", tmp_path / "val.jsonl"),
    )
    best = json.loads((run / "metrics.json").read_text())["best"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["brief"].items() >= best["brief"].items()
    assert {key: found[key] for key in best if key != "brief"} == {
        key: best[key] for key in best if key != "brief"
    }
    assert (found["mode"], found["metrics"]) == ("official", "mr_hd")


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_is_evaluated_again_to_the_same_scores(
    tmp_path: Path, run: Path, store: Store, which: str
) -> None:
    out = tmp_path / "again.json"
    result = good("evaluate", "--run", run, "--which", which, "--json", out)
    expected = json.loads((run / "metrics.json").read_text())[which]
    found = json.loads(out.read_text())
    assert {key: found[key] for key in expected} == expected
    assert (found["mode"], found["checkpoint"], found["split"]) == ("official", which, "val")
    truth = (Path(str(store.path)) / "annotations" / "val.jsonl").read_bytes()
    assert found["annotations"] == {"sha256": hashlib.sha256(truth).hexdigest()}
    assert "MR-full-R1@0.5" in result.output


def test_the_blind_baseline_reads_no_features(
    tmp_path: Path, config_file: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("data.dataset.MomentDataset.__getitem__")
    good("evaluate", "--config", config_file(), "--blind", "--json", tmp_path / "blind.json")
    assert json.loads((tmp_path / "blind.json").read_text())["brief"]


def test_both_modes_are_wired_and_named(tmp_path: Path, run: Path) -> None:
    good("evaluate", "--run", run, "--mode", "strict", "--json", tmp_path / "strict.json")
    assert json.loads((tmp_path / "strict.json").read_text())["mode"] == "strict"


def test_baselines_are_scored_without_a_run(tmp_path: Path, config_file: WriteConfig) -> None:
    scores = {}
    for name in ("untrained", "blind"):
        out = tmp_path / f"{name}.json"
        good("evaluate", "--config", config_file(), f"--{name}", "--json", out)
        scores[name] = json.loads(out.read_text())["brief"]
    assert scores["blind"] != scores["untrained"]
    assert not (tmp_path / "runs").exists()


def test_predict_writes_a_submission_for_every_query_of_a_split(
    tmp_path: Path, run: Path, splits: Annotations
) -> None:
    good("predict", "--run", run, "--split", "test", "--out", tmp_path / "test.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [row["qid"] for row in rows] == [each.qid for each in splits["test"]]
    assert all(len(row["pred_relevant_windows"]) == 4 for row in rows)
    assert all(len(row["pred_saliency_scores"]) == 12 for row in rows)


def test_narratives_are_a_switch_that_reaches_the_model(
    tmp_path: Path, config_file: WriteConfig
) -> None:
    config = config_file(loop__epochs=1)
    switch = ["--set", "data.narratives=true", "--set", "model.plugins={tea: {}}"]
    good("fit", "--config", config, "--out", tmp_path / "plain")
    good("fit", "--config", config, "--out", tmp_path / "tea", *switch)
    losses = [
        json.loads((tmp_path / name / "history.jsonl").read_text())["losses"]
        for name in ("plain", "tea")
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "override",
    [
        "data.streams=[clip]",
        "data.max_clips=6",
        "data.max_tokens=1",
        "optim.lr=0.01",
        "optim.weight_decay=0.9",
        "optim.clip_grad=0.001",
        "optim.warmup_steps=5",
        "optim.schedule={name: step, every: 1}",
        "loop.batch_size=4",
        "loop.seed=5",
        "loop.precision=bfloat16",
        "model.options.dropout=0.7",
        "eval.nms_iou=0.01",
        "eval.round_to_clip=false",
        "eval.mode=strict",
    ],
)
def test_every_option_changes_the_result(
    tmp_path: Path, config_file: WriteConfig, reference: dict[str, str], override: str
) -> None:
    good("fit", "--config", config_file(), "--out", tmp_path / "run", "--set", override)
    assert outcome(tmp_path / "run") != reference


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, store: Store, request: pytest.FixtureRequest
) -> dict[str, str]:
    """The outcome without any change."""
    import yaml
    from small_store import small_values

    folder = tmp_path_factory.mktemp("reference")
    (folder / "c.yaml").write_text(yaml.safe_dump(small_values(store)))
    good("fit", "--config", folder / "c.yaml", "--out", folder / "run")
    return outcome(folder / "run")


def outcome(run: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return {
        "history": json.dumps([{**each, "seconds": None} for each in lines]),
        "predictions": (run / "predictions" / "val-best.jsonl").read_text(),
        "mode": json.loads((run / "metrics.json").read_text())["mode"],
    }


def test_a_run_directory_is_never_overwritten(tmp_path: Path, run: Path) -> None:
    before = {each: each.stat().st_mtime_ns for each in run.rglob("*")}
    result = call("fit", "--config", tmp_path / "config.yaml", "--out", run)
    assert result.exit_code == 2
    assert "exists already and nothing in it is deleted; continue it with --resume" in result.stderr
    assert {each: each.stat().st_mtime_ns for each in run.rglob("*")} == before


def test_what_a_run_was_trained_as_cannot_be_overridden(run: Path) -> None:
    for override in ("data.train=val", "data.streams=[clip, slowfast]", "model.preset=release"):
        result = call("evaluate", "--run", run, "--set", override)
        assert result.exit_code == 2
        key = override.partition("=")[0]
        assert f"--set cannot change what '{run}' was trained as: {key} was" in result.stderr


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, run: Path, config_file: WriteConfig
) -> None:
    other = tmp_path / "other"
    config = config_file(data__streams=["clip", "slowfast"], loop__epochs=1)
    good("fit", "--config", config, "--out", other)
    for which in ("best", "last"):
        shutil.copy(other / "checkpoints" / f"{which}.pt", run / "checkpoints")
    for command in (["evaluate", "--run", run], ["fit", "--resume", "--out", run]):
        result = call(*command)
        assert result.exit_code == 2
        assert "is a checkpoint of another run: data.streams was ('clip', 's" in result.stderr


def test_a_run_that_no_longer_says_its_features_is_refused(run: Path) -> None:
    for text in ("{", "{}", "[]"):
        (run / "environment.json").write_text(text)
        result = call("evaluate", "--run", run)
        assert result.exit_code == 2
        assert "should say which features the run was trained on" in result.stderr


def test_a_split_that_shares_videos_with_training_is_refused_unless_allowed(
    tmp_path: Path, config_file: WriteConfig
) -> None:
    config, out = config_file(eval__split="train", loop__epochs=1), tmp_path / "run"
    result = call("fit", "--config", config, "--out", out)
    assert result.exit_code == 2
    assert "24 videos of split 'train' are in the training split too" in result.stderr
    assert not out.exists()
    allowed = good("fit", "--config", config, "--out", out, "--allow-overlap")
    assert "allowed by --allow-overlap" in allowed.output
    assert call("evaluate", "--run", out, "--split", "train").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "fit needs --config FILE"),
        (["fit", "--config", "none.yaml"], "cannot read the configuration file 'none.yaml'"),
        (["fit", "--config", "C", "--set", "loop.epoch=1"], "did you mean 'epochs'?"),
        (["fit", "--config", "C", "--set", "data.store=none"], "none"),
        (["fit", "--config", "C", "--set", "data.train=trian"], "trian"),
        (["fit", "--config", "C", "--set", "data.streams=[clap]"], "clap"),
        (
            ["fit", "--config", "C", "--set", "eval.select=MR-full-MAP"],
            "unknown metric 'MR-full-MAP'; did you mean 'MR-full-mAP'?",
        ),
        (
            ["fit", "--config", "C", "--set", "eval.select=MR-long-mAP"],
            "no query of split 'val' counts in this metric",
        ),
        (["fit", "--config", "C", "--set", "eval.metrics=tvsum"], "unknown metric 'tvsum'"),
        (["fit", "--resume", "--out", "none"], "'none' is not the folder of a run"),
        (
            ["evaluate", "--run", "r", "--json", "."],
            "--json: '.' is a folder; name a file to write",
        ),
        (["evaluate", "--run", "r", "--json", "config.yaml/x"], "config.yaml is a file"),
        (["predict", "--run", "r", "--split", "val", "--out", "."], "--out: '.' is a folder"),
        (["evaluate"], "needs one of --predictions FILE, --run RUN and --config FILE, got none"),
        (["evaluate", "--config", "C"], "needs one of --untrained and --blind"),
        (["evaluate", "--run", "r", "--blind"], "--blind goes with --config, not with --run"),
        (["evaluate", "--predictions", "p", "--split", "val"], "--split goes with --run or"),
        (["evaluate", "--run", "none"], "'none' is not the folder of a run"),
        (["evaluate", "--predictions", "p"], "needs --annotations FILE and --dataset NAME"),
        (
            ["evaluate", "--predictions", "p", "--annotations", "a", "--dataset", "qvh"],
            "unknown dataset 'qvh'",
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_wrong_use_is_answered_with_a_sentence_and_exit_code_2(
    config_file: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    config = str(config_file())
    monkeypatch.chdir(tmp_path)
    result = call(*[config if each == "C" else each for each in arguments])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_terminated_fit_exits_75_and_continues_to_the_same_end(
    tmp_path: Path, config_file: WriteConfig
) -> None:
    config = config_file(loop__epochs=15, eval__every=15)
    command = [*TRAINER, "fit", "--config", str(config), "--out"]
    fitting = subprocess.Popen(
        [*command, str(tmp_path / "cut")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / "history.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(fitting.pid, signal.SIGTERM)
    _, stderr = fitting.communicate(timeout=60)
    assert fitting.returncode == 75, stderr
    assert f"to continue:\n  trainer fit --resume --out {tmp_path / 'cut'}" in stderr
    assert not (tmp_path / "cut" / "metrics.json").exists()

    good("fit", "--resume", "--out", tmp_path / "cut")
    good("fit", "--config", config, "--out", tmp_path / "whole")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def fit_in_two_processes(config: Path, out: Path) -> str:
    """What `trainer fit` printed under `torchrun`, where it must succeed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--no-python", *TRAINER),
            *("fit", "--config", str(config), "--out", str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path, config_file: WriteConfig) -> None:
    printed = fit_in_two_processes(config_file(loop__batch_size=4), tmp_path / "two")
    lines = (tmp_path / "two" / "history.jsonl").read_text().splitlines()
    # 24 queries, 4 for each of 2 processes
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert printed.count("epoch 2/2") == 1
    alone = call("fit", "--resume", "--out", tmp_path / "two", "--set", "loop.epochs=3")
    assert alone.exit_code == 2
    assert "written by 2 processes and this run has 1" in alone.stderr


@pytest.mark.slow
def test_the_queue_of_two_processes_holds_every_query_of_an_epoch(
    tmp_path: Path, config_file: WriteConfig, splits: Annotations
) -> None:
    """Fifty places: 24 queries of each of two epochs, and two that nobody wrote."""
    narrow = {"hidden": 16, "heads": 2, "feedforward": 32, "conv_blocks": 1, "queue_length": 50}
    model = {"name": "ld_detr", "options": narrow}
    fit_in_two_processes(config_file(loop__batch_size=5, model=model), tmp_path / "two")
    held = Run.open(tmp_path / "two").checkpoint("last")["model"]
    ids = held["criterion.terms.distill_align.queue.ids"].tolist()
    every = sorted(numbers_of([str(each.qid) for each in splits["train"]]).tolist())
    assert len(every) == 24
    assert [sorted(ids[:24]), sorted(ids[24:48])] == [every, every]
    assert ids[48] == ids[49] == UNKNOWN


def test_a_dataset_of_ones_own_name_trains_and_the_user_is_told_how_it_is_scored(
    tmp_path: Path, store: Store, config_file: WriteConfig
) -> None:
    shutil.copytree(store.path, tmp_path / "own")
    facts = json.loads((tmp_path / "own/store.json").read_text())
    (tmp_path / "own/store.json").write_text(json.dumps(facts | {"dataset": "kitchen"}))
    settings = ["--set", f"data.store={tmp_path / 'own'}"]
    result = good("fit", "--config", config_file(), *settings, "--out", tmp_path / "run")
    assert "dataset 'kitchen' has no scoring of its own" in result.output
    assert json.loads((tmp_path / "run/metrics.json").read_text())["best"]["brief"]
