"""A store whose `store.json` is damaged or missing: what can be known from the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data.errors import StoreError, UsageError, nearest
from data.store.files import parse_json, read_bytes
from data.store.place import Place
from data.store.reader import FilePool, shard_paths
from data.store.shard_reader import Shard
from data.store.store import checked
from data.store.types import SCHEMA_VERSION
from data.store.upkeep import recipe_folders

__all__ = ["is_damaged", "rebuild"]


@dataclass(frozen=True)
class Found:
    """What the folders of a store say.

    Args:
        recipes: recipe ids by stage, with how many shards each has.
        clip_lens_s: clip lengths of the shards.
    """

    recipes: Mapping[str, Mapping[str, int]]
    clip_lens_s: frozenset[float]

    @staticmethod
    def below(root: Place) -> Found:
        """Look at every folder; shards that cannot be read are left out."""
        recipes: dict[str, dict[str, int]] = {}
        lengths: set[float] = set()
        for folder in recipe_folders(root):
            shards = shard_paths(folder)
            if shards:
                recipes.setdefault(folder.parent.name, {})[folder.name] = len(shards)
            # The first that can be opened: all of a store have one length.
            found = (length for length in map(_clip_len_s, shards) if length is not None)
            lengths |= set(islice(found, 1))
        return Found(recipes, frozenset(lengths))


def is_damaged(root: Place) -> bool:
    """Whether a folder has a `store.json` that is no store's of this version, or rows without one.

    One of a newer schema version is not damaged.

    Raises:
        StoreError: it cannot be read, so nobody knows (an error of disk or network is no damage).
    """
    place = root / "store.json"
    try:
        text = read_bytes(place)
    except FileNotFoundError:
        return bool(recipe_folders(root))
    try:
        content = parse_json(text, place)
        version = content.get("schema_version")
        if not (isinstance(version, int) and version > SCHEMA_VERSION):
            checked(content, root)
    except StoreError:
        return True
    return False


def rebuild(
    root: Place, *, dataset: str | None, chosen: Mapping[str, str], clip_len_s: float | None = None
) -> dict[str, Any]:
    """The `store.json` that belongs to the folders of a store; nothing is written.

    Which recipe is current cannot be known where a stage has several: a person must choose.

    Args:
        root: the store.
        dataset: name of the dataset; it stands nowhere else in the store.
        chosen: recipe id by stage, for stages with several.
        clip_len_s: clip length, for a store without rows on a grid, or of several lengths.

    Raises:
        UsageError: something is not known; says what to give.
    """
    found = Found.below(root)
    lengths = found.clip_lens_s
    if clip_len_s is not None and (not lengths or clip_len_s in lengths):
        lengths = frozenset([clip_len_s])
    if dataset is None:
        raise UsageError(
            f"{root / 'store.json'} is damaged, and the dataset's name stands nowhere else; run "
            "`pipeline repair` with the --config that made the store, or with --dataset NAME"
        )
    if len(lengths) != 1:
        known = " and ".join(f"{length:g} s" for length in sorted(lengths)) or "no clips"
        raise UsageError(
            f"{root / 'store.json'} is damaged, and the clip length cannot be known: the shards "
            f"that can be read have {known}; run `pipeline repair` with the --config that made "
            "the store, or restore the file from a copy"
        )
    current: dict[str, str] = {}
    for stage, recipes in found.recipes.items():
        picked = chosen.get(stage) or (next(iter(recipes)) if len(recipes) == 1 else None)
        if picked is None or picked not in recipes:
            listed = ", ".join(f"{name} ({count} shards)" for name, count in recipes.items())
            raise UsageError(
                f"{root / 'store.json'} is damaged, and which recipe of stage '{stage}' was the "
                f"current one cannot be known: {listed}; choose with --current {stage}=ID, or "
                "restore the file from a copy"
            )
        current[stage] = picked
    for stage in chosen:
        if stage not in found.recipes:
            raise UsageError(f"there are no rows of '{stage}'; {nearest(stage, found.recipes)}")
    (length,) = lengths
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "clip_len_s": length,
        "current": current,
    }


def _clip_len_s(place: Place) -> float | None:
    try:
        shard = Shard(place, FilePool(1))
    except StoreError:
        return None
    return shard.clip_len_s if shard.clip_len_s > 0 else None
