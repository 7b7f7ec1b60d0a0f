"""`gpus: auto` on a Ray that believes in a GPU: measured on a worker, used for the workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

SCRIPT = '''
import json, os, sys
from dataclasses import replace
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
from data.store import ItemKey
from data.video.types import Video
from pathlib import Path
from pipeline.engine.ray_workers import RayExecutor, needs_of
from pipeline.engine.types import Job
from pipeline.stage import Item, StageContext, StageSet
from pipeline.stages.features import ClipOptions, ClipStage
from pipeline.stages.panns import PannsOptions, PannsStage

class OnGpu(ClipStage):
    """Computes on the CPU and asks for a share of a GPU all the same."""
    @property
    def resources(self):
        return replace(super().resources, auto_gpus=True)

class OnGpuToo(PannsStage):
    """The same."""
    @property
    def resources(self):
        return replace(super().resources, auto_gpus=True)

ray.init(address="local", num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 * 2**20, _node_ip_address="127.0.0.1")
executor = RayExecutor()
stage = OnGpu(StageContext(2.0, fallbacks=()), ClipOptions(preset="tiny"))
job = Job(StageSet((stage,)), {}, {}, Path("."), 1, 1.0)
found = {}
for name, file in (("film", sys.argv[1]), ("broken", sys.argv[2])):
    item = Item(ItemKey(name, "0" * 64), Video(name, Path(file)))
    fitted, told = executor.fit(job, [item])
    found[name] = [fitted.gpu_share, needs_of(fitted).gpus, executor.capacity(fitted), told]
found["nothing"] = list(executor.fit(job, []))[1]
sound = OnGpuToo(StageContext(2.0), PannsOptions())
deaf, told = executor.fit(Job(StageSet((sound,)), {}, {}, Path("."), 1, 1.0), [item])
found["sound"] = [deaf.gpu_share, told]
ray.shutdown()
print(json.dumps(found))
'''


def film(path: Path) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(100):
            out.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        out.mux(stream.encode(None))
    return path


def test_the_share_of_a_gpu_follows_from_a_measurement_on_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    files = [film(tmp_path / "film.mp4"), tmp_path / "broken.mp4"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    share, asked, room, told = found["film"]
    assert 1 / 8 <= share <= 1  # at most 8 workers: there are 8 CPUs
    assert asked == share
    assert room == int(1 / share + 1e-9)
    assert "measured on 4 s of 1 videos" in told
    # nothing to measure: few workers, and the reason
    assert found["broken"][0] == 0.25
    assert "could not be measured" in found["broken"][3]
    assert "broken.mp4" in found["broken"][3]
    assert found["nothing"] == ""
    assert found["sound"][0] == 1.0
    assert "nothing of it is over frames" in found["sound"][1]
