"""The parser on rendered films: real H.264 pictures, true scene cuts, no network in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.synthetic import render_corpus
from data.video import open_decoder
from data.video.types import FrameRequest, Video, View
from pipeline.events.evaluate import BASELINES, boundary_score, read_truth
from pipeline.events.parser import parse


def test_the_parser_finds_the_cuts_that_a_uniform_grid_misses(tmp_path: Path) -> None:
    render_corpus(tmp_path, train=8, val=1, test=1)
    truth = read_truth(tmp_path / "boundaries.jsonl")
    decoder, found = open_decoder("pyav"), {}
    for video_id, true in truth.items():
        times = np.arange(round(true.duration_s))[:, None] + 0.5
        request = FrameRequest("pixels", times, View(16))
        video = Video(video_id, tmp_path / "videos" / f"{video_id}.mp4")
        frames = np.stack([w.frames[0] for w in decoder.windows(video, [request])])
        # The share of each of 27 colours: the same wherever in the picture a shape is.
        colours = (frames // 86).reshape(len(frames), -1, 3) @ np.array([9, 3, 1])
        shares = np.stack([np.bincount(each, minlength=27) for each in colours]) ** 0.5
        centred = shares - shares.mean(axis=0)  # what all pictures share says nothing about cuts
        events = parse(centred, 1.0, true.duration_s, half_width_s=2.0, delta_rel=0.2)
        found[video_id] = events.boundaries_s.tolist()
    parsed = boundary_score(found, truth, tolerance=0.5)
    grid = boundary_score(BASELINES["uniform grid"](truth, 0), truth, tolerance=0.5)
    assert parsed.f1 > 0.7
    assert parsed.f1 > 2 * grid.f1
