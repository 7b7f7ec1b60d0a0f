"""Stages `panns` and `vgg` on real films: by themselves, in a run, and on to the trainer."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from data.dataset import MomentDataset
from data.store import Store
from data.store.types import ItemKey
from data.video import IsolatedDecoder, Video
from data.video.types import SoundRequest, SoundWindow, VideoFacts
from models.backbones import create
from pipeline.cli import app
from pipeline.stage import Item, StageContext
from pipeline.stages.panns import PannsOptions, PannsStage

av = pytest.importorskip("av")

RATE_HZ = 32_000
FACTS = VideoFacts(3.0, 10, 30, 64, 64, 0, "h264", "yuv420p", 1, True, 0)
ITEM = Item(ItemKey("film", "0" * 64), facts=FACTS)


def stage(clip_len_s: float = 1.0, **options: Any) -> PannsStage:
    made = PannsStage(StageContext(clip_len_s), PannsOptions(**options))
    made.setup()
    return made


@pytest.fixture(scope="module")
def tiny() -> PannsStage:
    return stage()


def window(unit: int, heard: float) -> SoundWindow:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    tone = np.sin(2 * np.pi * 500 * (unit + 1) * time_s).astype(np.float32)
    return SoundWindow("panns", unit, tone, heard)


def test_the_request_covers_every_clip_of_the_grid(tiny: PannsStage) -> None:
    request = tiny.request(ITEM)
    assert request.starts_s.tolist() == [0.0, 1.0, 2.0]
    assert (request.length_s, request.rate_hz) == (1.0, RATE_HZ)
    short = stage(0.2).request(ITEM)
    assert (len(short.starts_s), short.length_s) == (15, 0.31)


def test_a_clip_with_too_little_sound_has_zeros_and_mask_0(tiny: PannsStage) -> None:
    windows = [window(0, 1.0), window(1, 0.24), window(2, 0.25)]
    row = tiny.finish(ITEM, tiny.encode(ITEM, windows))
    assert row["panns_mask"].tolist() == [1, 0, 1]
    assert not row["panns"][1].any()
    alone = create("panns", preset="tiny").encode(np.stack([windows[0].samples]))
    np.testing.assert_allclose(row["panns"][0], alone[0], rtol=2e-3, atol=2e-3)  # float16
    assert row.facts["clips_with_sound"] == 2
    assert row.facts["weights"]["kind"] == "random"


def test_a_video_without_sound_has_zeros_and_mask_0_everywhere(tiny: PannsStage) -> None:
    row = tiny.finish(ITEM, [])
    assert row["panns"].shape == (3, 128)
    assert not row["panns"].any()
    assert row["panns_mask"].tolist() == [0, 0, 0]
    silent = tiny.finish(ITEM, tiny.encode(ITEM, [window(unit, 0.0) for unit in range(3)]))
    np.testing.assert_array_equal(silent["panns"], row["panns"])


def test_another_number_of_features_is_a_mistake(tiny: PannsStage) -> None:
    with pytest.raises(ValueError, match="2 features for the 3 clips of video film"):
        tiny.finish(ITEM, [None, None])


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_features_that_float16_cannot_hold_are_refused(tiny: PannsStage, value: float) -> None:
    with pytest.raises(ValueError, match="film are not finite in float16"):
        tiny.finish(ITEM, [np.full(128, value, np.float32), None, None])


def test_what_counts_as_sound_is_part_of_the_recipe_and_the_batch_is_not(tiny: PannsStage) -> None:
    other = PannsStage(StageContext(1.0), PannsOptions(min_heard=0.5))
    assert other.recipe({}).id != tiny.recipe({}).id
    same = PannsStage(StageContext(1.0), PannsOptions(batch_size=3, cpus=2))
    assert same.recipe({}).id == tiny.recipe({}).id


@pytest.mark.slow
def test_the_declared_length_is_that_of_the_published_network() -> None:
    made = stage(preset="full")  # compares the network that it builds with what was declared
    assert made.schema.arrays["panns"].shape == (2048,)


def test_an_unusual_width_is_declared_as_it_is_built() -> None:
    made = stage(options={"divisor": 32})
    assert made.schema.arrays["panns"].shape == (64,)
    row = made.finish(ITEM, made.encode(ITEM, [window(unit, 1.0) for unit in range(3)]))
    assert row["panns"].shape == (3, 64)


# --- a run


def write_film(path: Path, sound: NDArray[np.float32] | None, seconds: int = 4) -> None:
    """Grey pictures that brighten, with 16-bit sound at 32 kHz."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("mpeg4", rate=10)
        film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        track = sound is not None and container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for index in range(seconds * 10):
            grey = np.full((64, 64, 3), 40 + 4 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
        if sound is not None:
            heard = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            heard.sample_rate = RATE_HZ
            container.mux(track.encode(heard))
            container.mux(track.encode(None))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three films after `pipeline run`: with sound for 2.6 of 4 s, without, in a broken format."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "videos").mkdir()
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, round(2.6 * RATE_HZ)).astype(np.float32)
    write_film(folder / "videos" / "loud.mov", sound)
    write_film(folder / "videos" / "mute.mov", None)
    write_film(folder / "videos" / "odd.mov", sound)
    odd = (folder / "videos" / "odd.mov").read_bytes()
    assert odd.count(b"sowt") == 1
    (folder / "videos" / "odd.mov").write_bytes(odd.replace(b"sowt", b"zzzz"))
    rows = [
        {"qid": n, "query": "a grey film", "duration": 4, "vid": vid, "relevant_windows": [[1, 3]]}
        for n, vid in enumerate(("loud", "mute"))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "videos": {"root": "videos"},
        "store": "store",
        "clip_len_s": 1.0,
        "annotations": {"train": "train.jsonl"},
        "stages": {
            "vgg": {"preset": "tiny"},
            "panns": {"preset": "tiny"},
            "queries": {"encoder": "hash"},
        },
        "engine": {"executor": "inline"},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["run", "--config", str(folder / "pipeline.yaml")])
    assert done.exit_code == 3, done.output  # one input is in quarantine
    return Store.open(folder / "store")


def test_a_run_writes_sound_and_its_mask_and_pictures_on_one_grid(store: Store) -> None:
    loud, mute = (store.reader("panns").row(name) for name in ("loud", "mute"))
    assert loud["panns"].shape == mute["panns"].shape == (4, 128)
    assert loud["panns_mask"].tolist() == [1, 1, 1, 0]
    assert mute["panns_mask"].tolist() == [0, 0, 0, 0]
    assert loud["panns"][:3].any(axis=1).all()
    assert not mute["panns"].any()
    assert store.reader("vgg").row("odd")["vgg"].shape == (4, 256)
    assert store.verify() == []


def test_sound_that_cannot_be_decoded_is_in_quarantine_for_this_stage_only(store: Store) -> None:
    recipe = store.reader("panns").recipe_id
    (failure,) = store.failures("panns", recipe).read().values()
    assert (failure.key.id, failure.reason) == ("odd", "undecodable")
    assert "no decoder for" in failure.message
    assert sorted(store.reader("vgg").ids()) == ["loud", "mute", "odd"]


def test_the_trainer_takes_sound_as_one_more_stream_and_silence_as_zeros(store: Store) -> None:
    dataset = MomentDataset(store, "train", streams=("vgg", "panns"))
    assert dataset.video_dim == 256 + 128 + 2
    loud, mute = dataset[0].video[:, 256:384], dataset[1].video[:, 256:384]
    np.testing.assert_allclose(np.linalg.norm(loud, axis=1), [1, 1, 1, 0], atol=1e-3)
    np.testing.assert_array_equal(mute, np.zeros((4, 128)))


def test_the_sound_of_the_next_video_is_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 2 * RATE_HZ).astype(np.float32)
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c"):
        write_film(tmp_path / "videos" / f"{name}.mov", sound)
    config = {"videos": {"root": "videos"}, "store": "store", "stages": {"panns": {}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    ahead: list[str] = []
    begin = IsolatedDecoder.prefetch_sound

    def noted(self: IsolatedDecoder, video: Video, request: SoundRequest) -> None:
        ahead.append(video.id)
        begin(self, video, request)

    monkeypatch.setattr(IsolatedDecoder, "prefetch_sound", noted)
    words = ["run", "--config", str(tmp_path / "pipeline.yaml"), "--executor", "inline"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert ahead == ["b", "c"]
    assert Store.open(tmp_path / "store").reader("panns").ids() == ["a", "b", "c"]
