"""Features that are read while the model works: damage, replaced shards, missing rows, memory."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_store import Annotations, small_values, write_store
from typer.testing import CliRunner, Result

from data.dataset import MomentDataset
from data.errors import DamageError
from data.store import Store
from training.batch import Draw
from training.cli import app
from training.data import Order, ResidentQueries, StreamedQueries

CPU = torch.device("cpu")


@pytest.fixture
def own(store: Store, tmp_path: Path) -> Store:
    """A copy of the store that a test may spoil."""
    shutil.copytree(store.path, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def call(own: Store, tmp_path: Path) -> Callable[..., Result]:
    """Calls the trainer with a config over `own`, features read for each batch by two workers."""
    values: dict[str, Any] = small_values(own)
    values["data"] |= {"cache": "none", "workers": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return run


def spoil(store: Store, stage: str) -> Path:
    """Flip a bit of a row of the training split."""
    (path,) = map(Path, store.shards(stage))
    rows = store.reader(stage).array("train-9", stage)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(rows.tobytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    return path


def remake(store: Store, stage: str, keep: int) -> None:
    """Replace all shards of a stage by others, of `keep` rows each."""
    old, reader = store.shards(stage), store.reader(stage)
    rows = [reader.row(id) for id in reader.ids()]
    writer = store.writer(reader.recipe)
    for number, row in enumerate(rows, start=1):
        writer.add(row)
        if number % keep == 0:
            writer.flush()
    writer.flush()
    for path in set(old):
        path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_arrives_as_it_was_raised_and_no_batch_holds_anything_of_it(
    own: Store, workers: int
) -> None:
    whole = MomentDataset(own, "train")
    good = {sample.annotation.qid: sample.video for sample in whole}
    shard = spoil(own, "clip")
    split = MomentDataset(own, "train")
    batches = Order(len(split), 1, shuffle=False).batches(0)
    read = StreamedQueries(split, CPU, workers).read(batches, Draw())
    with pytest.raises(DamageError, match="damaged rows of 'train-9'") as caught:
        list(read)
    assert caught.value.shard == str(shard)
    for batch in StreamedQueries(split, CPU, workers).read(batches[:9], Draw()):
        expected = good[batch.queries[0].qid]
        np.testing.assert_array_equal(batch.tensors.video[0].numpy(), expected)


def test_the_trainer_answers_damage_with_one_sentence_and_exit_code_1(
    own: Store, tmp_path: Path, call: Callable[..., Result]
) -> None:
    shard = spoil(own, "slowfast")
    result = call("fit", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert f"trainer: shard {shard} has damaged rows of" in result.output
    assert "`pipeline repair`" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_were_replaced_meanwhile_do_not_disturb_a_trainer(
    own: Store, workers: int
) -> None:
    split = MomentDataset(own, "train", narratives=True, events=True)
    batches = Order(len(split), 5).batches(0)
    expected = list(ResidentQueries(split, CPU).read(batches, Draw()))
    fresh: MomentDataset = pickle.loads(pickle.dumps(split))  # its files are closed
    read = StreamedQueries(fresh, CPU, workers).read(batches, Draw())
    found = [next(read)]
    for stage in ("clip", "slowfast", "queries", "narratives", "events"):
        remake(own, stage, keep=4)
    found += read
    again: MomentDataset = pickle.loads(pickle.dumps(fresh))
    for stage in ("clip", "slowfast", "queries", "narratives", "events"):
        remake(own, stage, keep=100)
    once_more = list(StreamedQueries(again, CPU, workers).read(batches, Draw()))
    for one, other, third in zip(expected, found, once_more, strict=True):
        assert one.queries == other.queries == third.queries
        for each in (other, third):
            assert torch.equal(one.tensors.video, each.tensors.video)
            assert torch.equal(one.tensors.text, each.tensors.text)


def test_batches_that_somebody_keeps_are_not_written_over(store: Store) -> None:
    split = MomentDataset(store, "train")
    batches = Order(len(split), 3).batches(0)
    kept = list(StreamedQueries(split, CPU, 2).read(batches, None))
    for one, other in zip(kept, ResidentQueries(split, CPU).read(batches, None), strict=True):
        assert torch.equal(one.tensors.video, other.tensors.video)


def test_texts_of_a_batch_are_normalised_as_those_of_a_sample(store: Store) -> None:
    split = MomentDataset(store, "train")
    for row, sample in enumerate(split.together(range(len(split))).samples):
        np.testing.assert_array_equal(sample.text, split[row].text)
        np.testing.assert_array_equal(sample.video, split[row].video)


def test_a_reader_who_stops_early_leaves_no_thread_behind(store: Store) -> None:
    split = MomentDataset(store, "train")
    read = StreamedQueries(split, CPU, 2).read(Order(len(split), 1).batches(0), None)
    next(read)
    assert any(each.name.startswith("reader") for each in threading.enumerate())
    del read
    assert not any(each.name.startswith("reader") for each in threading.enumerate())


@pytest.fixture
def gappy(tmp_path: Path, splits: Annotations) -> Path:
    """A config over a store whose training split names videos that were never extracted."""
    store = write_store(tmp_path / "gappy", splits)
    strangers = [
        each.__class__(f"s{n}", each.query, f"stranger{n:02}", each.duration_s, each.windows)
        for n, each in enumerate(splits["train"][:12])
    ]
    store.save_annotations("train", [*splits["train"], *strangers])
    path = tmp_path / "gappy.yaml"
    path.write_text(yaml.safe_dump(small_values(store)))
    return path


def test_require_any_trains_on_the_rest_and_lists_everything_that_was_left_out(
    gappy: Path, tmp_path: Path
) -> None:
    refused = CliRunner().invoke(app, ["fit", "-c", str(gappy), "--out", str(tmp_path / "run")])
    assert refused.exit_code == 1
    assert "stage 'clip' lacks 12: stranger00" in refused.output
    assert "and 2 more" in refused.output
    assert "--require any" in refused.output
    assert not (tmp_path / "run").exists()

    run = tmp_path / "run"
    fitted = CliRunner().invoke(
        app, ["fit", "-c", str(gappy), "--out", str(run), "--require", "any"]
    )
    assert fitted.exit_code == 0, fitted.output
    assert "12 queries left out" in fitted.output
    assert "stage 'slowfast' lacks 12: stranger00" in fitted.output
    listed = json.loads((run / "left_out.json").read_text())
    ids = [f"stranger{n:02}" for n in range(12)]
    assert listed == {"train": {"clip": ids, "slowfast": ids}, "val": {}}
    about = json.loads((run / "environment.json").read_text())
    assert about["queries_left_out"] == {"train": 12, "val": 0}

    scores = tmp_path / "scores.json"
    arguments = ["evaluate", "--run", str(run), "--split", "train", "--allow-overlap"]
    arguments += ["--require", "any", "--json", str(scores)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    found = json.loads(scores.read_text())
    assert (found["queries_left_out"], found["left_out"]["clip"]) == (12, ids)

    out = tmp_path / "predictions.jsonl"
    arguments = ["predict", "--run", str(run), "--split", "train", "--out", str(out)]
    arguments += ["--allow-overlap"]
    assert CliRunner().invoke(app, [*arguments, "--require", "all"]).exit_code == 1
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(out.read_text().splitlines()) == 24


def test_require_goes_with_what_reads_a_store(gappy: Path, tmp_path: Path) -> None:
    made_up = tmp_path / "predictions.jsonl"
    made_up.write_text("")
    arguments = ["evaluate", "--predictions", str(made_up), "--require", "any"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--require goes with --run or --config" in result.output
