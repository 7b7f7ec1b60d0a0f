from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from data.errors import UsageError
from data.grid import Grid
from data.store import Recipe, Row, Store
from data.store.diff import Side, StageDifference, diff, mean_cosine
from data.store.inspection import compare_rows

MakeRow = Callable[..., Row]


def store_of(where: str | Path, recipe: Recipe, rows: list[Row]) -> Store:
    store = Store.open_or_create(where, dataset="tiny", clip_len_s=2.0)
    with store.writer(recipe) as writer:
        for row in rows:
            writer.add(row)
    store.set_current({recipe.stage: recipe.id})
    return store


def moved(row: Row, by: float) -> Row:
    """The row with one number changed."""
    clip = row["clip"].copy()
    clip[0, 0] += np.float16(by)
    return replace(row, arrays={**row.arrays, "clip": clip})


@pytest.fixture
def compare(tmp_path: Path, recipe: Recipe) -> Callable[..., StageDifference]:
    """`compare(rows of A, rows of B)`; B is an object store."""

    def run(a: list[Row], b: list[Row], tolerance: float = 0.0) -> StageDifference:
        one = store_of(tmp_path / uuid4().hex, recipe, a)
        other = store_of(f"memory://diff-{uuid4().hex}/b", recipe, b)
        sides = [Side(each, each.current) for each in (one, other)]
        (found,) = diff(sides[0], sides[1], most=3, tolerance=tolerance)
        return found

    return run


def test_equal_stores_are_the_same_however_their_shards_are_cut(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row(f"v{n}") for n in range(4)] + [make_row("w", part=p, parts=2) for p in (0, 1)]
    one = store_of(tmp_path / "a", recipe, rows)
    for row in rows:
        other = store_of(tmp_path / "b", recipe, [row])
    (found,) = diff(Side.of(one.path), Side.of(str(other.path)))
    assert found.same
    assert (found.equal, found.differ, found.recipe) == (5, 0, "")


def test_missing_rows_and_other_content_are_listed_by_side(
    compare: Callable[..., StageDifference], make_row: MakeRow
) -> None:
    a = [make_row("v0"), make_row("v1"), make_row("v2", content="old")]
    b = [make_row("v1"), make_row("v2", content="new"), make_row("v3")]
    found = compare(a, b)
    assert (found.only_a, found.only_b, found.other_content) == (["v0"], ["v3"], ["v2"])
    assert (found.equal, found.differ, found.same) == (1, 0, False)


def test_streams_that_differ_have_a_cosine_and_the_worst_inputs_are_named(
    compare: Callable[..., StageDifference], make_row: MakeRow
) -> None:
    rows = [make_row(f"v{n}") for n in range(5)]
    turned = replace(rows[3], arrays={**rows[3].arrays, "clip": -rows[3]["clip"]})
    found = compare(rows, [moved(rows[0], 0.25), *rows[1:3], turned, rows[4]])
    clip = found.streams["clip"]
    assert set(found.streams) == {"clip"}
    assert (found.equal, found.differ, clip.items) == (3, 2, 2)
    assert clip.cosine_min == pytest.approx(-1.0)
    assert clip.worst == ("v3", "v0")
    assert clip.max_abs == pytest.approx(2 * np.abs(rows[3]["clip"].astype(float)).max())
    assert [each.id for each in found.differing] == ["v3", "v0"]
    assert found.differing[1].max_abs["clip"] == pytest.approx(0.25, abs=1e-3)


def test_differences_within_the_tolerance_count_as_equal(
    compare: Callable[..., StageDifference], make_row: MakeRow
) -> None:
    row = make_row("v")
    assert not compare([row], [moved(row, 0.01)]).same
    found = compare([row], [moved(row, 0.01)], tolerance=0.02)
    assert found.same
    assert (found.equal, found.within) == (0, 1)
    assert not compare([row], [replace(row, facts={"other": 1})], tolerance=9.0).same


def test_other_texts_are_counted_with_examples(
    compare: Callable[..., StageDifference], make_row: MakeRow
) -> None:
    row = make_row("v")
    other = replace(row, texts={"caption": ["a cat", "", "日本"]})
    found = compare([row], [other])
    assert found.texts == 1
    assert found.text_examples == ["v, caption: 'Grüße v 0' -> 'a cat'"]
    assert found.streams == {}


def test_other_grids_are_said_and_not_compared(
    compare: Callable[..., StageDifference], make_row: MakeRow
) -> None:
    row = make_row("v", clips=6)
    shorter = replace(
        row, grid=Grid(10.0, 2.0), arrays={**row.arrays, "clip": row["clip"][:5].copy()}
    )
    (told,) = compare([row], [shorter]).differing
    assert told.told == (
        "other grids: 6 clips and 5 clips",
        "'clip' cannot be compared: (6, 8) float16 and (5, 8) float16",
    )
    assert told.cosine == {}


def test_rows_of_zeros_have_no_direction() -> None:
    zero, one = np.zeros((2, 3), np.float32), np.eye(2, 3, dtype=np.float32)
    assert mean_cosine(zero, zero) == 1.0
    assert mean_cosine(zero, one) == 0.0
    assert mean_cosine(one, one) == pytest.approx(1.0)
    assert mean_cosine(np.ones((2, 3), np.int64), np.ones((2, 3), np.int64)) is None
    assert mean_cosine(np.ones(3), np.ones(3)) is None


def test_two_recipes_of_one_store_are_compared_in_words_and_rows(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    wider = replace(recipe, params={**recipe.params, "width": 9})
    store = store_of(tmp_path / "a", recipe, [make_row("v")])
    store_of(store.path, wider, [moved(make_row("v"), 1.0)])
    sides = [Side.of(f"{store.path}:clip/{each.id}") for each in (recipe, wider)]
    (found,) = diff(*sides)
    assert found.recipe == "params.width: 8 -> 9"
    assert (found.recipes, found.differ) == ((recipe.id, wider.id), 1)
    (mixed,) = diff(sides[0], Side.of(store.path))
    assert mixed.recipes == (recipe.id, wider.id)
    with pytest.raises(UsageError, match="has no recipe clip/0123456789abcdef"):
        Side.of(f"{store.path}:clip/0123456789abcdef")
    with pytest.raises(UsageError, match="neither side has a stage 'clap'; did you mean 'clip'"):
        list(diff(sides[0], sides[1].of(store.path), ["clap"]))


def test_a_stage_that_one_side_lacks_is_only_in_the_other(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    one = store_of(tmp_path / "a", recipe, [make_row("v")])
    other = Store.create(tmp_path / "b", dataset="tiny", clip_len_s=2.0)
    (found,) = diff(Side.of(one.path), Side.of(other.path))
    assert (found.only_a, found.recipes, found.same) == (["v"], (recipe.id, None), False)


def test_damage_on_one_side_is_said_and_is_no_equality(
    tmp_path: Path, recipe: Recipe, make_row: MakeRow
) -> None:
    rows = [make_row("v"), make_row("w")]
    one, other = (store_of(tmp_path / name, recipe, rows) for name in "ab")
    (shard,) = other.shards("clip")
    whole = shard.read_bytes()
    start = whole.index(rows[0]["clip"].tobytes())
    shard.write_bytes(whole[:start] + b"\xff\xff" + whole[start + 2 :])
    (found,) = diff(Side.of(one.path), Side.of(other.path))
    (told,) = found.differing
    assert "damaged rows of 'v'" in told.told[0]
    shard.write_bytes(whole[:-99])
    (found,) = diff(Side.of(one.path), Side.of(other.path))
    assert found.only_a == ["v", "w"]
    assert shard.name in found.problems[0]


@pytest.mark.parametrize(("by", "rounding"), [(0.001, True), (0.5, False)])
def test_rounding_of_two_machines_is_told_from_another_result(
    by: float, rounding: bool, make_row: MakeRow
) -> None:
    row = make_row("v")
    found = compare_rows(row, moved(row, by))
    assert found.rounding is rounding
    assert "in 'clip'" in found.told
    assert not compare_rows(row, replace(row, texts={"caption": ["x"]})).rounding
