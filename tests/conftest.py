"""Fixtures of the whole suite: seeds, the shared folder of real files, one local Ray."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations, predictions, media and reference outputs; not in the repository."""
    folder = Path(os.environ.get("STORYLINE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the project's shared folder of real files, not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for the session: loopback, no dashboard, logical CPUs above the real ones."""
    # Read when Ray is imported: binds its services to loopback (`pipeline.engine.ray_workers`).
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",  # not the cluster that somebody else left noted below /tmp/ray
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A local S3 server from moto with an empty bucket `tests`; its address is in the environment.

    Remote tests find it as users find theirs: by the variables that botocore reads.
    """
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "no-real-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "no-real-key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        UPath("s3://tests").fs.mkdir("tests")
        yield url
    server.stop()


@pytest.fixture(scope="session")
def word_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small table for each text encoder that needs one: some words, and nothing left to ask."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from models.word_tables import table_bytes

    text = "a the red blue dog square circle moves isn't there , . ! ' t s"
    words = sorted({*text.split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float16)
    tokenizer = Tokenizer(
        models.WordLevel({"[unk]": 0, **{each: 1 + i for i, each in enumerate(words)}}, "[unk]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    more = np.concatenate([vectors[:1] * 0.5, vectors])
    contents = {
        "glove": table_bytes(
            "glove", vectors, {"words": "\n".join(words).encode()}, {"whole": "1"}
        ),
        "llama_embedding": table_bytes(
            "llama_embedding",
            more,
            {"tokenizer": tokenizer.to_str().encode()},
            {"tokenizer": "tokenizer.json"},
        ),
    }
    folder = tmp_path_factory.mktemp("tables")
    for name, content in contents.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return {name: folder / f"{name}.safetensors" for name in contents}


@pytest.fixture
def s3_place(s3_server: str, scratch: Path) -> UPath:
    """A place on the local S3 server where nothing is yet."""
    from data.store.place import place_of

    return place_of(f"s3://tests/{uuid.uuid4().hex}/store")


@pytest.fixture
def memory_place(scratch: Path) -> Iterator[UPath]:
    """A place in fsspec's memory file system where nothing is yet."""
    from data.store.place import place_of

    place = place_of(f"memory://{uuid.uuid4().hex}/store")
    yield place
    if place.parent.exists():
        place.fs.rm(place.parent.path, recursive=True)


@pytest.fixture(scope="session", autouse=True)
def _scratch_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves copies of shards in the user's own scratch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYLINE_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local scratch of one test."""
    folder = tmp_path / "scratch"
    monkeypatch.setenv("STORYLINE_SCRATCH", str(folder))
    return folder
