"""Workers per GPU from rates, CPUs and memory; where the time of workers goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import toys
from torch import Tensor
from typer.testing import CliRunner

from data.errors import InputError
from data.store import ItemKey
from data.video.types import Video, Window
from pipeline.cli import app
from pipeline.engine.ray_workers import reason_of
from pipeline.engine.spent import Spent, Stopwatch, TimeOfWorkers
from pipeline.measure import measure, samples_of
from pipeline.stage import Item, StageContext, StageSet
from pipeline.stages.common import NetworkOptions
from pipeline.stages.features import ClipOptions, ClipStage
from pipeline.throughput import Machine, Rates, lay_out, usable_cpus

# The rates of specs/feature_extractors.md §3.3 and §5: exact decoding of 360p, SlowFast on an H200.
RATES = Rates(decode_x=28.0, network_x=2000.0)


def test_sixteen_cpus_cannot_feed_a_gpu_and_all_of_them_decode() -> None:
    # 2000 / 28 = 71.4, so 72 workers would be needed; 16 x 28 = 448
    layout = lay_out(Machine(cpus=16, gpus=1), RATES)
    assert (layout.workers, layout.per_gpu, layout.gpu_share) == (16, 16, 0.0625)
    assert (layout.bound, layout.bottleneck) == ("CPUs", "decoder")
    assert (layout.rate_x, layout.other_x) == (448.0, 2000.0)


def test_no_more_workers_share_a_gpu_than_can_be_fed_into_it() -> None:
    layout = lay_out(Machine(cpus=256, gpus=1), RATES)
    assert (layout.workers, layout.bound, layout.bottleneck) == (72, "network", "network")
    assert layout.rate_x == 2000.0
    assert layout.gpu_share * layout.workers <= 1


def test_one_cpu_gives_one_worker_which_has_the_whole_gpu() -> None:
    layout = lay_out(Machine(cpus=1, gpus=1), RATES)
    assert (layout.workers, layout.gpu_share, layout.rate_x) == (1, 1.0, 28.0)


def test_eight_gpus_share_the_cpus_evenly() -> None:
    layout = lay_out(Machine(cpus=128, gpus=8), RATES)
    assert (layout.per_gpu, layout.workers, layout.rate_x) == (16, 128, 128 * 28.0)


def test_fewer_cpus_than_gpus_still_give_each_gpu_one_worker_at_the_speed_of_the_cpus() -> None:
    layout = lay_out(Machine(cpus=2, gpus=8), RATES)
    assert (layout.per_gpu, layout.gpu_share, layout.rate_x) == (1, 1.0, 56.0)


def test_gpu_memory_bounds_the_workers() -> None:
    # 0.9 x 16384 / 4000 = 3.7
    rates = Rates(28.0, 2000.0, gpu_memory_mb=4000, gpu_total_mb=16384)
    layout = lay_out(Machine(cpus=16, gpus=1), rates)
    assert (layout.per_gpu, layout.bound, layout.gpu_share) == (3, "GPU memory", 0.3333)


def test_memory_of_the_machine_bounds_the_workers() -> None:
    layout = lay_out(Machine(cpus=16, gpus=1, memory_mb=16_000), RATES, memory_mb=3000)
    assert (layout.workers, layout.bound) == (5, "memory")


def test_a_wide_worker_takes_its_cpus() -> None:
    assert lay_out(Machine(cpus=16, gpus=1), RATES, cpus=2.0).workers == 8
    assert lay_out(Machine(cpus=1, gpus=0), RATES, cpus=0.1).workers == 10


def test_networks_that_nobody_measured_get_few_workers_and_it_is_said() -> None:
    layout = lay_out(Machine(cpus=64, gpus=1), Rates(decode_x=28.0))
    assert (layout.per_gpu, layout.bound, layout.other_x) == (4, "not measured", None)


def test_a_number_that_somebody_asked_for_is_kept() -> None:
    asked = lay_out(Machine(cpus=16, gpus=1), RATES, workers=3)
    assert (asked.workers, asked.per_gpu, asked.bound) == (3, 3, "asked for")
    stated = lay_out(Machine(cpus=16, gpus=2), RATES, gpu_share=0.25)
    assert (stated.workers, stated.gpu_share, stated.bound) == (8, 0.25, "asked for")


def test_workers_over_several_gpus_are_as_many_as_fit() -> None:
    # 8 GPUs, 2 for each worker: 4 workers, each of them decodes and has one network over its two
    layout = lay_out(Machine(cpus=16, gpus=8), RATES, gpu_share=2.0)
    assert (layout.workers, layout.per_gpu, layout.gpu_share) == (4, 1, 2.0)
    assert layout.sentence.startswith("4 workers, 2 GPUs each, bounded by: asked for")
    assert lay_out(Machine(cpus=16, gpus=8), RATES, gpu_share=1.5).workers == 4


def test_without_a_gpu_decoding_and_networks_share_the_cores() -> None:
    # a second of video costs 1/30 + 1/10 core seconds: 4 cores do 30 of them
    layout = lay_out(Machine(cpus=4), Rates(decode_x=30.0, network_x=10.0))
    assert (layout.workers, layout.per_gpu, layout.gpu_share) == (4, 0, 0.0)
    assert layout.rate_x == pytest.approx(30.0)
    assert layout.bottleneck == "network"


def test_one_worker_without_a_gpu_is_as_fast_as_its_slower_half() -> None:
    layout = lay_out(Machine(cpus=4), Rates(decode_x=30.0, network_x=10.0), workers=1)
    assert layout.rate_x == 10.0


def test_without_a_gpu_and_with_unknown_networks_no_more_decode_than_there_are_cores() -> None:
    unknown = Rates(decode_x=30.0)
    assert lay_out(Machine(cpus=4), unknown, workers=2).rate_x == 60.0
    assert lay_out(Machine(cpus=1), unknown, cpus=0.1).rate_x == 30.0


def test_hours_follow_from_the_rate() -> None:
    assert lay_out(Machine(cpus=1), Rates(decode_x=28.0)).hours(28 * 3600.0) == pytest.approx(1.0)


@pytest.mark.parametrize("per_gpu", [1, 2, 3, 7, 16, 72, 143])
def test_as_many_shares_as_workers_fit_into_a_gpu(per_gpu: int) -> None:
    layout = lay_out(Machine(cpus=per_gpu, gpus=1), RATES, workers=per_gpu)
    assert layout.gpu_share * layout.per_gpu <= 1
    assert layout.gpu_share == round(layout.gpu_share, 4)


def test_a_quota_of_the_container_counts(tmp_path: Path) -> None:
    all_of_them = usable_cpus([tmp_path / "absent"])
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cpus([tmp_path / "cpu.max"]) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cpus([tmp_path / "cpu.max"]) == all_of_them


def test_gpus_auto_is_nothing_where_networks_run_on_the_cpu() -> None:
    assert NetworkOptions().gpus == "auto"
    on_cpu = ClipStage(StageContext(2.0), ClipOptions())
    assert (on_cpu.resources.gpus, on_cpu.resources.auto_gpus) == (0.0, False)
    on_gpu = ClipStage(StageContext(2.0, device="cuda"), ClipOptions(gpus="auto"))
    assert StageSet((on_gpu,)).resources.auto_gpus
    stated = ClipStage(StageContext(2.0, device="cuda"), ClipOptions(gpus=0.25))
    assert StageSet((stated, stated)).resources.gpus == 0.5


class _Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_a_stopwatch_charges_the_innermost_part_and_loses_no_time() -> None:
    clock = _Clock()
    watch = Stopwatch(clock)
    clock.wait(100)
    watch.begin()
    clock.wait(1)
    with watch.on("decoder"):
        clock.wait(2)
        with watch.on("network"):
            clock.wait(4)
        clock.wait(8)
    clock.wait(16)
    spent = watch.take()
    assert spent.seconds == {"rest": 17.0, "decoder": 10.0, "network": 4.0}
    assert spent.total_s == 31.0
    assert watch.take().total_s == 0.0


def test_a_stopwatch_charges_an_iterator_only_while_it_is_waited_for() -> None:
    clock = _Clock()
    watch = Stopwatch(clock)
    watch.begin()

    def watch_and_give(number: int) -> int:
        clock.wait(number)
        return number

    for _ in watch.over("decoder", (watch_and_give(n) for n in (1, 2))):
        clock.wait(10)
    assert watch.take().seconds == {"decoder": 3.0, "rest": 20.0}


def test_leaving_a_timed_iterator_early_ends_what_it_iterates_over() -> None:
    ended: list[str] = []

    def windows() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.append("decoder is free")

    timed = Stopwatch().over("decoder", windows())
    assert next(timed) == 0
    timed.close()
    assert ended == ["decoder is free"]


def test_an_error_ends_the_part_that_was_on() -> None:
    clock = _Clock()
    watch = Stopwatch(clock)
    watch.begin()

    def fail() -> None:
        with watch.on("network"):
            clock.wait(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.wait(1)
    assert watch.take().seconds == {"rest": 1.0, "network": 1.0}


def test_overhead_is_what_is_neither_decoder_nor_network_nor_stage() -> None:
    spent = Spent({"decoder": 60.0, "network": 30.0, "store": 2.0, "rest": 3.0})
    times = TimeOfWorkers(spent, starting_s=50.0, calls_s=97.0, idle_s=3.0)
    assert times.overhead == pytest.approx(0.1)
    assert sum(times.shares.values()) == pytest.approx(1.0)
    assert times.sentence == (
        "decoder 60%, network 30%, shards 2%, worker's own 3%, calls 2%, idle 3%; engine 10%"
    )
    assert TimeOfWorkers().sentence == "no time was spent"


def test_a_run_tells_where_the_time_of_its_workers_went(
    run_toys: toys.RunToys, tmp_path: Path
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    result = run_toys(["bright", "rows"])
    times = dict(result.times)
    assert set(times) == {("probe",), ("bright",), ("rows",)}
    assert times[("bright",)].spent.seconds["decoder"] > 0
    assert times[("bright",)].spent.seconds["network"] > 0
    assert times[("rows",)].spent.seconds["stage"] > 0
    for one in times.values():
        assert one.spent.total_s <= one.calls_s
        assert 0 <= one.overhead <= 1
    assert run_toys(["bright", "rows"]).times == []


def test_a_measurement_decodes_and_encodes_seconds_of_real_files(tmp_path: Path) -> None:
    pytest.importorskip("av")
    stage = ClipStage(StageContext(2.0, fallbacks=()), ClipOptions(preset="tiny"))
    good = Video("film", film(tmp_path / "film.mp4", seconds=4))
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    broken = Video("broken", tmp_path / "broken.mp4")
    items = [Item(ItemKey(each.id, "0" * 64), each) for each in (good, broken)]
    rates = measure(StageSet((stage,)), items)
    assert (rates.videos, rates.seconds) == (1, pytest.approx(4.0))
    assert rates.decode_x > 0
    assert rates.network_x is not None
    assert rates.network_x > 0
    assert (rates.gpu_memory_mb, rates.gpu_total_mb) == (0, 0)
    with pytest.raises(InputError, match=r"broken\.mp4"):
        measure(StageSet((stage,)), items[1:])


class _SlowClip(ClipStage):
    """A network that takes 40 ms for each clip."""

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[Tensor]:
        time.sleep(0.04 * len(windows))
        return super().encode(item, windows)


def test_the_rate_of_a_network_follows_from_what_a_clip_costs(tmp_path: Path) -> None:
    pytest.importorskip("av")
    video = Video("film", film(tmp_path / "film.mp4", seconds=8))
    stage = _SlowClip(StageContext(2.0, fallbacks=()), ClipOptions(preset="tiny"))
    rates = measure(StageSet((stage,)), [Item(ItemKey("film", "0" * 64), video)])
    # a clip of 2 s costs 0.04 s and what the narrow network needs: below 50x realtime
    assert rates.network_x is not None
    assert 5 < rates.network_x < 50
    assert 0 < rates.took_s < 240


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (ValueError("no such file\nand more"), "no such file"),
        (AssertionError(), "AssertionError"),
        (None, "it took too long"),
    ],
)
def test_what_went_wrong_on_a_worker_is_one_line(cause: Exception | None, reason: str) -> None:
    error = RuntimeError("it took too long")
    error.cause = cause  # type: ignore[attr-defined]  # as Ray's errors have it
    assert reason_of(error) == reason


def test_samples_come_from_all_over_the_list() -> None:
    items = [Item(ItemKey(f"v{n}", "0" * 64), Video(f"v{n}", Path(f"v{n}.mp4"))) for n in range(9)]
    assert [each.key.id for each in samples_of(items)] == ["v0", "v4", "v8"]
    assert samples_of(items[:2]) == items[:2]


def film(path: Path, seconds: int) -> Path:
    """A small grey H.264 film, 25 frames per second."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(25 * seconds):
            picture = np.full((64, 96, 3), number % 256, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.usefixtures("toy_stages")
def test_a_plan_measures_stages_over_frames_that_have_something_to_do(tmp_path: Path) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "videos: {root: videos}\nstore: store\nstages: {bright: {}, rows: {}}\n"
        "decode: {backend: 'toys:ToyDecoder', fallbacks: []}\n"
        "engine: {executor: inline, cpus: 6}\n"
    )

    def plan(*words: str) -> dict[str, object]:
        done = CliRunner().invoke(app, ["plan", "--json", "--config", str(file), *words])
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.output)
        return found

    (speed,) = plan()["speeds"]  # type: ignore[misc]
    assert (speed["stages"], speed["videos"], speed["unknown"]) == (["bright"], 2, 2)
    assert speed["machine"]["cpus"] == 6
    # the toy decoder cannot probe: a plan says so and goes on
    assert "the toy decoder does not probe" in speed["problem"]
    assert speed["layout"] is None
    assert plan("--no-measure")["speeds"] == []
    assert not (tmp_path / "store").exists()
