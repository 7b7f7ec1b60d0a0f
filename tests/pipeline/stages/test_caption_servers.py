"""Captions by a server and from a file, in the real engine on real files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from data.errors import UsageError
from data.interop import export_captions
from data.store import Store
from models.captioners.remote import sending
from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline
from tests.models.captioners.chat_server import (
    MODEL,
    Act,
    Seen,
    answer,
    chat_server,
    level_of,
)

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")

LEVELS = {"long": [20 * second + 20 for second in range(9)], "short": [200, 210, 220]}
FPS = 5

BAD = [
    Act(status=429, headers={"Retry-After": "0.05"}, body=b"{}"),
    Act(status=429, body=b"{}"),
    Act(status=500, body=b"oh"),
    Act(cut=0),
    Act(cut=30),
    Act(headers={"Content-Type": "text/html"}, body=b"<html>garbage</html>"),
    Act(body=answer("A dog.")[:-9]),
    Act(body=b'{"choices": []}'),
    Act(wait_s=0.3),
]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(sending, "_LONGEST_OWN_WAIT_S", 0.05)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, one second of each grey."""
    import av

    folder = tmp_path_factory.mktemp("films")
    for name, levels in LEVELS.items():
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index, level in enumerate(np.repeat(levels, FPS)):
                picture = np.full((48, 64, 3), level, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return folder


RunCaptions = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, films: Path) -> RunCaptions:
    """`run(captioner="openai", options={…})`; the store is `tmp_path/store`."""

    def run(*, retry_failed: bool = False, **options: Any) -> Result:
        config = {
            "videos": {"root": str(films)},
            "store": "store",
            "engine": {"executor": "inline"},
            "stages": {"captions": {"part_size": 4, **options}},
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
        quiet = Progress(Console(quiet=True))
        made = Run(loaded, look(loaded, (), None), ray_or_inline(loaded), quiet, StopFlag())
        return made.run(retry_failed=retry_failed)

    return run


def by_server(address: str, **options: Any) -> dict[str, Any]:
    own = {"model": MODEL, "address": address, "tries": 15, "timeout_s": 30.0, **options}
    return {"captioner": "openai", "options": own}


def levels(tmp_path: Path, id_: str) -> list[int]:
    """What the captions of a video say."""
    texts = Store.open(tmp_path / "store").reader("captions").row(id_).texts["caption"]
    return [int(found[0]) if (found := re.findall(r"\d+", text)) else -1 for text in texts]


def level_asked(body: dict[str, Any]) -> int:
    return level_of(body["messages"][-1]["content"][0]["image_url"]["url"])[0]


def asked(seen: Seen) -> list[int]:
    return [level_asked(body) for body in seen.bodies]


def nearest_level(level: int) -> int:
    return min(chain(*LEVELS.values()), key=lambda each: abs(each - level))


def test_a_server_with_every_bad_manner_gives_every_caption(
    tmp_path: Path, run: RunCaptions
) -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        return BAD[number // 2 % len(BAD)] if number % 2 else Act()

    with chat_server(manners) as (address, seen):
        assert run(**by_server(address)).exit_code == 0
        for name, wanted in LEVELS.items():
            np.testing.assert_allclose(levels(tmp_path, name), wanted, atol=3)  # as H.264 keeps it
        assert len(seen.bodies) > 12 + len(BAD) - 2
        before = len(seen.bodies)
        assert run(**by_server(address)).exit_code == 0
        assert len(seen.bodies) == before, "a second run asks for nothing"


def test_captions_that_the_server_refuses_are_recorded_and_only_they_are_asked_for_again(
    tmp_path: Path, run: RunCaptions
) -> None:
    refused = {60, 140}

    def manners(number: int, body: dict[str, Any]) -> Act:
        bad = nearest_level(level_asked(body)) in refused
        return Act(status=400, body=b'{"error": "not this picture"}') if bad else Act()

    with chat_server(manners) as (address, seen):
        assert run(**by_server(address)).exit_code == 3
        store = Store.open(tmp_path / "store")
        failures = store.failures("captions").read()
        assert len(failures) == 2
        assert all("HTTP 400: not this picture" in each.message for each in failures.values())
        refused.clear()
        seen.bodies.clear()
        assert run(**by_server(address), retry_failed=True).exit_code == 0
        assert sorted(map(nearest_level, asked(seen))) == [60, 140]
    np.testing.assert_allclose(levels(tmp_path, "long"), LEVELS["long"], atol=3)


def test_a_server_elsewhere_with_the_same_model_is_the_same_recipe(
    tmp_path: Path, run: RunCaptions
) -> None:
    with chat_server() as (address, _):
        run(**by_server(address))
    with chat_server() as (address, seen):
        assert run(**by_server(address, concurrency=3)).exit_code == 0
        assert not seen.bodies
        assert run(**by_server(address, revision="awq")).exit_code == 0
        assert len(seen.bodies) == 12


def test_no_key_and_no_address_stand_in_the_store(
    tmp_path: Path, run: RunCaptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "a-key-of-its-own-kind"
    monkeypatch.setenv("THE_KEY", key)
    with chat_server() as (address, seen):
        assert run(**by_server(address, key_env="THE_KEY")).exit_code == 0
        assert {k.lower(): v for k, v in seen.headers[0].items()}["authorization"].endswith(key)
        place = address.removeprefix("http://")
    contents = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert all(key.encode() not in each for each in contents)
    in_store = [each.read_bytes() for each in (tmp_path / "store").rglob("*") if each.is_file()]
    assert all(place.encode() not in each for each in in_store)


@pytest.mark.parametrize("greets", [True, False])
def test_a_server_that_takes_no_key_ends_the_run_and_quarantines_nothing(
    greets: bool, tmp_path: Path, run: RunCaptions
) -> None:
    no = Act(status=401, body=b"{}")
    with chat_server(lambda number, body: no, get_status=200 if greets else 401) as (address, seen):
        assert "wants a key" in run_or_refused(run, **by_server(address))
        assert len(seen.bodies) <= greets
    assert not list((tmp_path / "store").glob("captions/*/failures.jsonl"))


def run_or_refused(run: RunCaptions, **options: Any) -> str:
    """Why a run ended, whether it was refused before or while it worked."""
    try:
        result = run(**options)
    except UsageError as error:
        return str(error)
    assert result.exit_code == 1
    return " ".join(result.broken.values())


@pytest.mark.parametrize("name", ["captions.jsonl", "texts"])
def test_captions_that_were_exported_come_back_as_they_were(
    name: str, tmp_path: Path, run: RunCaptions
) -> None:
    with chat_server() as (address, _):
        run(**by_server(address))
    store = Store.open(tmp_path / "store")
    before = {id_: store.reader("captions").row(id_) for id_ in LEVELS}
    out = tmp_path / name
    export_captions(store, out, "captions" if out.suffix else "paragraphs")
    assert run(captioner="precomputed", options={"path": str(out)}).exit_code == 0
    again = Store.open(tmp_path / "store").reader("captions")
    for id_, row in before.items():
        new = again.row(id_)
        assert new.texts["caption"] == row.texts["caption"]
        assert new["time_s"].tolist() == row["time_s"].tolist()
        assert {json.loads(each)["status"] for each in new.texts["record"]} == {"ok"}


def test_a_video_that_the_file_lacks_goes_to_quarantine_and_stops_nothing(
    tmp_path: Path, run: RunCaptions
) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("vid,timestamp,caption\nlong,0.5,A grey wall is seen.\n")
    assert run(captioner="precomputed", options={"path": str(file)}).exit_code == 3
    store = Store.open(tmp_path / "store")
    assert store.reader("captions").row("long").texts["caption"] == ["A grey wall is seen."]
    (failure,) = store.failures("captions").read().values()
    assert failure.reason == "no-captions"


@pytest.fixture(autouse=True)
def _no_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
