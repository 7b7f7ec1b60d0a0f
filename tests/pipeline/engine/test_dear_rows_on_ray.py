"""Dear rows on Ray: engines that die, workers that are killed, workers over several GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toys
from drivers import start, write_config
from talking import said, times_made, whole

from data.store import Store

pytestmark = pytest.mark.ray


def start_talking(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A driver with a Ray of its own and two workers."""
    talks = {"log": str(folder / "log"), "pids": str(folder / "pids")} | options
    write_config(
        folder,
        stages={"probe": {}, "talks": talks},
        engine={"executor": "ray", "workers": 2},
        decode={"backend": "toys:ToyDecoder", "fallbacks": []},
    )
    return start(folder)


@pytest.mark.slow
def test_an_engine_that_dies_on_ray_costs_its_batch_and_the_guilty_input(tmp_path: Path) -> None:
    good = ["a", "b", "c", "d"]
    toys.write_videos(tmp_path / "videos", [*good, "dies-1"])
    out, err = start_talking(tmp_path, part=8, batch=16).communicate(timeout=200)
    assert said(tmp_path / "store") == whole(*good), out + err
    failures = Store.open(tmp_path / "store").failures("talks").read().values()
    assert [(each.key.id, each.reason, each.attempts) for each in failures] == [
        ("dies-1", "engine-died", 3)
    ]
    made = times_made(tmp_path / "log")
    assert max(made[f"{id_}@0"] for id_ in good) <= 2


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_at_most_its_batch(tmp_path: Path) -> None:
    ids = [f"v{number}" for number in range(10)]
    toys.write_videos(tmp_path / "videos", ids)
    driver = start_talking(tmp_path, part=4, batch=4, sleep_s=0.1)
    killed = kill_one_that_made_three_batches(driver, tmp_path / "pids")
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, out + err
    assert f"{killed}." in " ".join(each.name for each in (tmp_path / "pids").glob("*"))
    assert said(tmp_path / "store") == whole(*ids)
    assert times_made(tmp_path / "log").total() - 80 <= 4


def kill_one_that_made_three_batches(driver: subprocess.Popen[str], marks: Path) -> int:
    """Kill -9 a worker in the middle of the stage; its pid."""
    deadline = time.monotonic() + 120
    while True:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the driver does not work"
        pids = Counter(int(each.name.split(".")[0]) for each in marks.glob("*"))
        for pid, count in pids.items():
            if count >= 3:
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.01)


SCRIPT = '''
import json, os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
from dataclasses import replace
from pathlib import Path
from data.store import Store
from pipeline.engine.ray_workers import RayExecutor, RayWorker, needs_of
from pipeline.engine.types import Job
from pipeline.stage import Resources, StageContext, StageSet
from pipeline.stages.probe import ProbeStage

GPUS = {}

class OnGpus(ProbeStage):
    """Needs so many GPUs."""
    @property
    def resources(self):
        return Resources(cpus=1, gpus=float(os.environ["ASKED"]))

ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 * 2**20, _node_ip_address="127.0.0.1")
executor = RayExecutor()
store = Store.create(Path(sys.argv[1]) / "store", dataset="x", clip_len_s=1.0)

@ray.remote
class Seeing:
    def gpus(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

found = {}
for asked in ("0.25", "1", "2", "1.5", "4", "8"):
    os.environ["ASKED"] = asked
    stage = OnGpus(StageContext(1.0), OnGpus.Options())
    job = Job(StageSet((stage,)), {}, {}, store.path, 1, 1.0)
    needs = needs_of(job).gpus
    try:
        room = executor.capacity(job)
    except Exception as error:
        found[asked] = [needs, 0, str(error)]
        continue
    seen = Seeing.options(num_gpus=needs, num_cpus=1).remote()
    found[asked] = [needs, room, ray.get(seen.gpus.remote())]
    ray.kill(seen)
ray.shutdown()
print(json.dumps(found))
'''


def test_a_worker_may_have_a_part_of_a_gpu_or_several_for_itself(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # on a machine of 4 GPUs and 8 CPUs: GPUs of a worker, workers, which GPUs it sees
    told = {asked: (needs, room) for asked, (needs, room, _) in found.items()}
    assert told["0.25"] == (0.25, 8)  # 16 by the GPUs, 8 by the CPUs
    assert told["1"] == (1, 4)
    assert told["2"] == (2, 2)
    assert told["1.5"] == (2, 2)  # Ray gives whole GPUs above one
    assert told["4"] == (4, 1)
    assert told["8"][1] == 0
    assert "needs 1 CPUs, 8 GPUs" in found["8"][2]
    assert len(found["2"][2].split(",")) == 2
    assert found["4"][2] == "0,1,2,3"
    assert len(found["0.25"][2].split(",")) == 1
