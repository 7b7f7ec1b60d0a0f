"""Small real rows and stores for the tests of `data`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.grid import Grid
from data.store import ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.store.place import Place

MakeRow = Callable[..., Row]


@pytest.fixture
def recipe() -> Recipe:
    """A stage with a stream per clip, an array of any length, and texts."""
    arrays = {
        "clip": StreamSpec((8,), "float16", "clip"),
        "spans_s": StreamSpec((2,), "float64", "item"),
    }
    return Recipe("clip", 1, {"width": 8, "weights": "random"}, {}, Schema(arrays, ("caption",)))


@pytest.fixture
def make_row() -> MakeRow:
    """Rows of `recipe` whose values depend on the id, content and part alone."""

    def make(id: str, *, clips: int = 6, content: str = "a", part: int = 0, parts: int = 1) -> Row:
        key = ItemKey(id, content_of(content), part, parts)
        rng = np.random.default_rng(list(f"{id}|{content}|{part}".encode()))
        grid = Grid(2.0 * clips, 2.0)
        share = len(range(part, clips, parts))
        return Row(
            key,
            grid,
            {
                "clip": rng.standard_normal((share, 8)).astype(np.float16),
                "spans_s": rng.random((part + 2, 2)),
            },
            {"caption": [f"Grüße {id} {part}", "", "日本"]},
            {"flags": [part], "frames": clips},
        )

    return make


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where `store` is; modules that hold for every place have `every_place` instead."""
    return tmp_path / "store"


@pytest.fixture(params=["local", "memory", "s3"])
def every_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A local folder, fsspec's memory, a local S3 server."""
    if request.param == "local":
        return tmp_path / "store"
    place: Place = request.getfixturevalue(f"{request.param}_place")
    return place


@pytest.fixture
def store(place: Place) -> Store:
    """An empty store of clips of 2 s."""
    return Store.create(place, dataset="tiny", clip_len_s=2.0)


def content_of(word: str) -> str:
    """64 hex."""
    return hashlib.sha256(word.encode()).hexdigest()


@pytest.fixture
def assert_same_row() -> Callable[[Row, Row], None]:
    """Equal in every part, types and shapes included."""

    def check(one: Row, other: Row) -> None:
        assert (one.key, one.grid, dict(one.facts)) == (other.key, other.grid, dict(other.facts))
        texts, others = (
            {name: list(each) for name, each in row.texts.items()} for row in (one, other)
        )
        assert texts == others
        assert set(one.arrays) == set(other.arrays)
        for name in one.arrays:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])

    return check
