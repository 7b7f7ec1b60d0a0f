"""Stores from strangers: what `test_hdf5.py` and `test_shard.py` do not show."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import StoreError, UsageError
from data.grid import Grid
from data.store import ItemKey, Recipe, Row, Schema, Store, StreamSpec

MUTANTS = 200


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small store of one stage."""
    store = Store.create(tmp_path_factory.mktemp("s") / "store", dataset="tiny", clip_len_s=2.0)
    schema = Schema({"clip": StreamSpec((8,), "float16", "clip")}, ("caption",))
    recipe = Recipe("clip", 1, {"width": 8}, {}, schema)
    rng = np.random.default_rng(0)
    with store.writer(recipe) as writer:
        for number in range(6):
            values = rng.standard_normal((5, 8)).astype(np.float16)
            key = ItemKey(f"v{number}", f"{number:064x}")
            writer.add(Row(key, Grid(10.0, 2.0), {"clip": values}, {"caption": [f"text {number}"]}))
    store.set_current({"clip": recipe.id})
    return store


@pytest.fixture
def store(honest: Store, tmp_path: Path) -> Store:
    """A copy that a test may spoil."""
    shutil.copytree(str(honest.path), tmp_path / "store")
    return Store.open(tmp_path / "store")


def edit(store: Store, **changes: Any) -> None:
    file = Path(str(store.path)) / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"current": {"../../x": "0" * 16}},
        {"current": {"clip": "../../../etc"}},
        {"current": {"clip": "/etc"}},
        {"current": {"clip": 5}},
        {"current": {"clip": None}},
        {"current": ["clip"]},
        {"dataset": "\x1b[2J"},
        {"dataset": 7},
        {"clip_len_s": float("nan")},
        {"clip_len_s": float("inf")},
        {"clip_len_s": -1.0},
        {"clip_len_s": 0.0},
        {"clip_len_s": "2"},
        {"schema_version": 99},
        {"schema_version": [1]},
    ],
)
def test_an_edited_store_json_is_refused_with_a_sentence(
    changes: dict[str, Any], store: Store
) -> None:
    edit(store, **changes)
    with pytest.raises(StoreError, match=r"store\.json|has schema version"):
        Store.open(store.path)


def test_names_of_stages_recipes_and_splits_cannot_leave_the_store(store: Store) -> None:
    for name in ("../x", "/etc", "a/b", "..", "", "x\0", "CON"):
        with pytest.raises(UsageError, match="is not allowed"):
            store.folder(name, "0" * 16)
        with pytest.raises(UsageError, match="is not allowed"):
            store.save_annotations(name, [])
        with pytest.raises(UsageError, match="is not allowed"):
            store.annotations(name)
        if name:
            with pytest.raises(UsageError, match="is not allowed"):
                store.folder("clip", name)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "../x"},
        {"params": {"a": 1, "b": 2}},
        {"schema": {"arrays": {"../x": {"shape": [8], "dtype": "float16", "per": "clip"}}}},
        {"schema": {"arrays": {"x": {"shape": [1 << 60], "dtype": "float16", "per": "clip"}}}},
        {"schema": {"arrays": {"x": {"shape": [8], "dtype": "O", "per": "clip"}}}},
        {"schema": {"arrays": [], "texts": 5}},
        {"upstream": 3},
        {"more": "fields"},
    ],
)
def test_an_edited_recipe_is_refused_with_a_sentence(change: dict[str, Any], store: Store) -> None:
    file = Path(str(store.folder("clip"))) / "recipe.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | change))
    with pytest.raises(StoreError, match=r"recipe\.json"):
        store.recipe("clip")


@pytest.mark.parametrize(
    "line",
    [
        '{"video_id": "a", "content": "0", "facts": {"duration_s": 1e300}}',
        '{"video_id": "a", "content": "0", "facts": null}',
        '{"video_id": "a", "video_id": "b"}',
        "[" * 100_000,
        "[1]",
    ],
)
def test_a_forged_catalogue_is_refused_with_a_sentence(line: str, store: Store) -> None:
    (Path(str(store.path)) / "videos.jsonl").write_text(line + "\n")
    with pytest.raises(StoreError, match=r"videos\.jsonl"):
        store.catalogue()


READ = """
import json, sys
from pathlib import Path
from data.errors import StorylineError
from data.store import Store

store, results = Store.open(Path(sys.argv[1])), []
folder = store.folder("clip")
for mutant in sorted(Path(sys.argv[2]).iterdir()):
    for old in Path(str(folder)).glob("shard-*"):
        old.unlink()
    mutant.rename(Path(str(folder)) / "shard-0123456789abcdef.h5")
    try:
        reader = store.reader("clip")
        rows = {id: reader.row(id) for id in reader.ids()}
        found = {id: [row["clip"].tolist(), list(row.texts["caption"])] for id, row in rows.items()}
        results.append(["read", found])
    except StorylineError as error:
        results.append(["refused", str(error)])
    print(json.dumps(results[-1]), flush=True)
"""


def test_mutated_shards_are_refused_or_fully_right_and_end_no_process(
    store: Store, tmp_path: Path
) -> None:
    """Read in a child, so that a crash of libhdf5 would be seen and cost this test alone."""
    reader = store.reader("clip")
    right = {
        id: [reader.row(id)["clip"].tolist(), list(reader.row(id).texts["caption"])]
        for id in reader.ids()
    }
    (shard,) = Path(str(store.folder("clip"))).glob("shard-*.h5")
    _mutate(shard.read_bytes(), tmp_path / "mutants")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(store.path), str(tmp_path / "mutants")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == MUTANTS
    assert [each for each in results if each[0] == "read" and each[1] != right] == []
    refused = [message for kind, message in results if kind == "refused"]
    assert len(refused) > MUTANTS * 0.8  # the rest changed bytes that mean nothing
    assert all("shard-0123456789abcdef.h5" in message for message in refused)


def _mutate(shard: bytes, folder: Path) -> None:
    """Random bytes, blocks of other places, cuts and zeros; more of them in the head."""
    rng = random.Random(7)
    folder.mkdir()
    for number in range(MUTANTS):
        content = bytearray(shard)
        for _ in range(rng.choice([1, 4, 16])):
            at = int(len(content) * rng.random() ** 2)
            size = rng.choice([1, 2, 8, 64])
            kind = rng.randrange(3)
            if kind == 0:
                content[at : at + size] = rng.randbytes(len(content[at : at + size]))
            elif kind == 1:
                content[at : at + size] = bytes(len(content[at : at + size]))
            else:
                other = rng.randrange(len(content) - 64)
                length = len(content[at : at + size])
                content[at : at + size] = content[other : other + length]
        if number % 10 == 0:
            del content[rng.randrange(len(content)) :]
        (folder / f"{number:03}.h5").write_bytes(content)
