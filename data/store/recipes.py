"""Recipes as files: read strictly, written once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from data.errors import StoreError
from data.store.files import atomic_write, read_json, size_of
from data.store.place import Place
from data.store.types import SCHEMA_VERSION, Recipe, Schema, StreamSpec

__all__ = [
    "IMPORT",
    "STREAM_DTYPES",
    "check_schema",
    "check_schema_version",
    "differences",
    "is_import",
    "load_recipe",
    "recipe_from_json",
    "save_recipe",
]

STREAM_DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8")
"""Types that a stage may declare."""

IMPORT = "import"
"""Parameter that only recipes of imported rows have: what was imported (`data.interop`)."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_ROW_SIZE = 1 << 24


def check_schema_version(found: Any, where: str) -> None:
    """StoreError unless `found` is the schema version that this program reads."""
    if found != SCHEMA_VERSION:
        raise StoreError(
            f"{where} has schema version {found!r}; this program reads version {SCHEMA_VERSION}. "
            "Use the version of Storyline that wrote it, or make a new store"
        )


def recipe_from_json(value: Mapping[str, Any], where: str) -> Recipe:
    """The inverse of `Recipe.to_json`; StoreError naming `where` if it is not one."""
    check_schema_version(value.get("schema_version"), where)
    try:
        arrays = {name: _stream(each) for name, each in value["schema"]["arrays"].items()}
        schema = Schema(arrays, tuple(value["schema"]["texts"]))
        recipe = Recipe(
            value["stage"], value["version"], dict(value["params"]), dict(value["upstream"]), schema
        )
        check_schema(recipe)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{where} is not a recipe: {type(error).__name__} {error}") from error
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    if recipe.to_json() != value:
        raise StoreError(f"{where} holds more or other fields than a recipe of this version")
    return recipe


def check_schema(recipe: Recipe) -> None:
    """StoreError unless the store can hold what the recipe declares."""
    where = f"recipe of stage {recipe.stage!r}"
    for name in [recipe.stage, *recipe.schema.arrays, *recipe.schema.texts]:
        if not _NAME.fullmatch(name):
            raise StoreError(f"{where}: name {name!r} is not made of letters, digits and '_-'")
    for name, spec in recipe.schema.arrays.items():
        sane = all(type(size) is int and 0 < size <= _MAX_ROW_SIZE for size in spec.shape)
        if not sane or spec.dtype not in STREAM_DTYPES or spec.per not in ("clip", "item"):
            raise StoreError(
                f"{where}: stream '{name}' is declared as {spec}; allowed are positive sizes, "
                f"per 'clip' or 'item', and the types {', '.join(STREAM_DTYPES)}"
            )


def _stream(value: Mapping[str, Any]) -> StreamSpec:
    return StreamSpec(tuple(value["shape"]), value["dtype"], value["per"])


def load_recipe(folder: Place) -> Recipe:
    """The recipe of a folder `<stage>/<recipe_id>`, which must be named after it."""
    path = folder / "recipe.json"
    try:
        recipe = recipe_from_json(read_json(path), str(path))
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing, so the rows beside it cannot be trusted; "
            "`pipeline repair` writes it again from the recipe in the shards"
        ) from None
    if (recipe.stage, recipe.id) != (folder.parent.name, folder.name):
        raise StoreError(
            f"{path} is the recipe {recipe.stage}/{recipe.id}, not that of its folder: "
            "it was edited or copied; restore it from where the store came from"
        )
    return recipe


def save_recipe(folder: Place, recipe: Recipe) -> None:
    """Write `recipe.json` if it is not there; StoreError if another one is."""
    if size_of(folder / "recipe.json") is not None:
        load_recipe(folder)
        return
    check_schema(recipe)
    text = json.dumps(recipe.to_json(), indent=2, sort_keys=True, ensure_ascii=False)
    atomic_write(folder / "recipe.json", text.encode() + b"\n")


def is_import(recipe: Recipe) -> bool:
    """Whether rows under this recipe were imported, not made by a stage."""
    return IMPORT in recipe.params


def differences(before: Any, after: Any, name: str = "") -> str:
    """The points in which two JSON values differ, as `params.width: 0.25 -> 0.5, ...`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        parts = [
            differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
            for key in keys
        ]
        return ", ".join(part for part in parts if part)
    return "" if before == after else f"{name}: {before} -> {after}"
