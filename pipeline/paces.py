"""How fast earlier runs made captions, kept beside the store's rows for the next plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from data.store import Store
from data.store.files import append_records, read_records
from models.captioners.limits import gpu_called

__all__ = ["Pace", "paces_of", "recent", "remember_pace"]

_FILE = ("cache", "paces.jsonl")

_ENOUGH = 1000
"""Captions of earlier runs that say how fast the next one is."""


@dataclass(frozen=True)
class Pace:
    """How fast an earlier run was.

    Args:
        recipe: of the captions.
        gpu: name of the GPU; "" without one.
        captions: how many were made.
        reused: how many more took the text of one of those.
        new_tokens: of them together.
        worker_s: seconds of workers that went into making them.
    """

    recipe: str
    gpu: str
    captions: int
    reused: int
    new_tokens: int
    worker_s: float


def paces_of(store: Store | None) -> tuple[Pace, ...]:
    """All earlier runs that a store remembers; lines of another version are left out."""
    if store is None:
        return ()
    wanted = {each.name for each in fields(Pace)}
    records = read_records(store.path.joinpath(*_FILE), torn=True)
    return tuple(Pace(**each) for each in records if each.keys() == wanted)


def remember_pace(store: Store, pace: Pace) -> None:
    """For the next plan."""
    append_records(store.path.joinpath(*_FILE), [asdict(pace)], durable=False)


def recent(paces: Iterable[Pace], recipe: str, gpu_name: str) -> list[Pace]:
    """The last runs of a recipe on a GPU with a thousand captions together, the newest first: a
    run of a few says little.
    """
    found: list[Pace] = []
    for pace in reversed([each for each in paces if _is_of(each, recipe, gpu_name)]):
        found.append(pace)
        if sum(each.captions for each in found) >= _ENOUGH:
            break
    return found


def _is_of(pace: Pace, recipe: str, gpu_name: str) -> bool:
    """`--gpu H200` is what torch calls "NVIDIA H200"."""
    gpu = gpu_called(gpu_name)
    same = pace.gpu == gpu_name if gpu is None else gpu_called(pace.gpu) == gpu
    return pace.recipe == recipe and same
