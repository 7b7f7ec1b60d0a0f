"""How much each section does: in full, and in the default tests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIZES", "Size"]


@dataclass(frozen=True)
class Size:
    """Counts of one size of the whole program.

    Args:
        films, clips: rendered films and clips of one second of each.
        driver_kills: `kill -9` of drivers that work inline.
        ray_driver_kills: `kill -9` of drivers with a local Ray.
        worker_kills: `kill -9` of Ray workers.
        decoder_kills: `kill -9` of decoding children.
        raylet_kills: `kill -9` of the raylet.
        part_kills: `kill -9` of drivers in the middle of one long video.
        part_worker_kills: the same of Ray workers.
        points: white-box kill points of runs over toys, repair, compact and gc; 0 means all.
        real_points: white-box kill points of a run over all real stages.
        power_states: disks after a power loss.
        mutants: mutated videos.
        damages: damaged shards, looked at one by one.
        repairs: stores with several damaged shards that are repaired and filled.
        full_disks: points at which the disk is full.
        storms: SIGTERMs.
        pairs: pairs of jobs on one store.
        innocents: good inputs around the poison.
    """

    films: int
    clips: int
    driver_kills: int
    ray_driver_kills: int
    worker_kills: int
    decoder_kills: int
    raylet_kills: int
    part_kills: int
    part_worker_kills: int
    points: int
    real_points: int
    power_states: int
    mutants: int
    damages: int
    repairs: int
    full_disks: int
    storms: int
    pairs: int
    innocents: int


SIZES = {
    "full": Size(
        films=12,
        clips=3,
        driver_kills=100,
        ray_driver_kills=10,
        worker_kills=100,
        decoder_kills=10,
        raylet_kills=2,
        part_kills=100,
        part_worker_kills=20,
        points=120,
        real_points=24,
        power_states=500,
        mutants=500,
        damages=1000,
        repairs=12,
        full_disks=20,
        storms=20,
        pairs=5,
        innocents=50,
    ),
    "short": Size(
        films=3,
        clips=2,
        driver_kills=4,
        ray_driver_kills=0,
        worker_kills=3,
        decoder_kills=0,
        raylet_kills=0,
        part_kills=20,
        part_worker_kills=0,
        points=30,
        real_points=2,
        power_states=40,
        mutants=24,
        damages=100,
        repairs=2,
        full_disks=2,
        storms=3,
        pairs=1,
        innocents=10,
    ),
}
