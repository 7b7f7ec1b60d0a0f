"""What cannot be learned or cannot be scored is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_store import CLIPS, Annotations, annotation, small_values, write_store
from typer.testing import CliRunner, Result

from data.annotations.types import Annotation
from training.cli import app

Rows = list[Annotation]


def rated(rows: Rows, labels: list[float]) -> Rows:
    """The rows with ratings of all clips and without moments."""
    ids, saliency = tuple(range(len(labels))), tuple((each,) for each in labels)
    return [replace(row, windows=None, clip_ids=ids, saliency=saliency) for row in rows]


def moments(rows: Rows, *windows: tuple[float, float]) -> Rows:
    """The rows with these moments and without ratings."""
    return [replace(row, windows=windows, clip_ids=None, saliency=None) for row in rows]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Result]:
    """`trainer fit` on made-up splits."""
    rng = np.random.default_rng(3)
    splits: Annotations = {
        split: [annotation(split, i, rng) for i in range(count)]
        for split, count in {"train": 6, "val": 3}.items()
    }

    def call(change: Callable[[Rows, Rows], tuple[Rows, Rows]], **data: Any) -> Result:
        train, val = change(splits["train"], splits["val"])
        store = write_store(tmp_path / "store", {"train": train, "val": val}, "kitchen")
        values = small_values(store)
        values["data"] |= data
        values["loop"]["epochs"] = 1
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        return CliRunner().invoke(
            app, ["fit", "--config", str(config), "--out", str(tmp_path / "run")]
        )

    return call


GOOD = [0.0, 4.0] * (CLIPS // 2)


@pytest.mark.parametrize(
    "labels",
    [[2.0] * CLIPS, [0.0] * CLIPS, [3.0]],
    ids=["all equal", "all zero", "one clip"],
)
def test_ratings_that_rank_no_clip_above_another_teach_nothing(
    labels: list[float], fit: Callable[..., Result], tmp_path: Path
) -> None:
    done = fit(lambda train, val: (rated(train, labels), rated(val, GOOD)))
    assert done.exit_code == 2, done.output
    assert "or rated clips of different labels; nothing can be learned" in done.output
    assert not (tmp_path / "run").exists()


def test_moments_that_all_begin_after_the_cut_teach_nothing(
    fit: Callable[..., Result], tmp_path: Path
) -> None:
    cut = fit(lambda train, val: (moments(train, (20.0, 24.0)), val), max_clips=5)
    assert cut.exit_code == 2, cut.output
    assert "no query of split 'train' has a moment on the grid of its video" in cut.output
    assert "data.max_clips" in cut.output
    assert not (tmp_path / "run").exists()


def test_one_query_that_can_be_learned_is_enough(fit: Callable[..., Result]) -> None:
    done = fit(
        lambda train, val: ([*rated(train[1:], [0.0] * CLIPS), *rated(train[:1], GOOD)],
                            rated(val, GOOD))
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_moments_cannot_be_scored_with_a_model_that_was_shown_ratings_alone(
    fit: Callable[..., Result], tmp_path: Path
) -> None:
    done = fit(lambda train, val: (rated(train, GOOD), moments(val, (2.0, 8.0))))
    assert done.exit_code == 2, done.output
    assert "split 'train' rates clips and has no moments, so that its model predicts" in done.output
    assert "split 'val' cannot be scored without: 3 queries have no predicted window" in done.output
    # it used to be found after the first epoch
    assert not (tmp_path / "run").exists()


def test_a_model_that_was_shown_ratings_alone_says_so_of_a_split_with_moments(
    fit: Callable[..., Result], tmp_path: Path
) -> None:
    assert fit(lambda train, val: (rated(train, GOOD), rated(val, GOOD))).exit_code == 0
    rng = np.random.default_rng(4)
    store = write_store(tmp_path / "other", {"test": [annotation("test", 0, rng)]}, "kitchen")
    arguments = ["predict", "--run", tmp_path / "run", "--split", "test"]
    more = ["--set", f"data.store={store.path}", "--out", tmp_path / "found.jsonl"]
    done = CliRunner().invoke(app, [str(each) for each in [*arguments, *more]])
    assert done.exit_code == 0, done.output
    assert "was trained on ratings of clips alone: it predicts no moments" in done.output
