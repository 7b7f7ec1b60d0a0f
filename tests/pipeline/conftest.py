"""Fixtures of the pipeline's tests: toy stages, toy videos, one call that runs a config."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from rich.console import Console

from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.engine.types import Executor
from pipeline.progress import Progress
from pipeline.run import Result, Run, StageWatcher, look, ray_or_inline
from pipeline.stage import STAGES


@pytest.fixture
def toy_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry holds the toys and nothing else."""
    importlib.import_module("pipeline.stages")
    monkeypatch.setattr(STAGES, "_things", toys.toy_registry())
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))


@pytest.fixture
def toys_on_ray(ray_local: None) -> Iterator[None]:
    """The session's Ray, whose workers cannot import from the folder of these tests."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(toys)
    yield
    ray.cloudpickle.unregister_pickle_by_value(toys)


@pytest.fixture
def run_toys(tmp_path: Path, toy_stages: None) -> toys.RunToys:
    """`run_toys(["rows"], key=value)` over `tmp_path/videos`, into `tmp_path/store`."""

    def run(
        asked: Sequence[str],
        *,
        overrides: Sequence[str] = (),
        limit: int | None = None,
        share: str | None = None,
        retry_failed: bool = False,
        stop: StopFlag | None = None,
        executor: Executor | None = None,
        watcher: StageWatcher | None = None,
        **config: Any,
    ) -> Result:
        file = tmp_path / "pipeline.yaml"
        base = {
            "videos": {"root": "videos"},
            "store": "store",
            "decode": {"backend": "toys:ToyDecoder", "fallbacks": []},
            "engine": {"executor": "inline", "workers": 2},
        }
        file.write_text(yaml.safe_dump(base | config))
        loaded = load_pipeline_config(file, overrides)
        view = look(loaded, asked, limit, share)
        maker = ray_or_inline(loaded) if executor is None else lambda program: executor
        quiet = watcher or Progress(Console(quiet=True))
        run = Run(loaded, view, maker, quiet, StopFlag() if stop is None else stop)
        return run.run(retry_failed=retry_failed)

    return run
