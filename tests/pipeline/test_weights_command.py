"""`pipeline weights` against a server of our own, and what stages make of names of weights."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import models.zoo
from data.errors import UsageError
from models.zoo import ZOO
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.doctor import Check, examine
from pipeline.downloads import Published, download, verify
from pipeline.stages.common import weights_params

NAME = "vgg16-imagenet"


@dataclass
class Publisher:
    """What the server gives, and what it was asked."""

    content: bytes
    etag: str | None = '"one"'
    cut_after: int | None = None
    ranges: bool = True
    status: int | None = None
    length: bool = True
    range_told: str | None = None
    slow: threading.Event | None = None
    url: str = ""
    asked: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.status is not None:
            request.send_error(self.status)
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        same = request.headers.get("If-Range") in (None, self.etag)
        part = bool(wanted) and self.ranges and same
        if part and first >= len(self.content):
            request.send_error(416)
            return
        body = self.content[first:] if part else self.content
        request.send_response(206 if part else 200)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        if part and self.range_told:
            request.send_header("Content-Range", self.range_told)
        request.end_headers()
        if self.slow is not None:
            self.slow.wait(30)
        request.wfile.write(body if self.cut_after is None else body[: self.cut_after])


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    made = Publisher(torch.arange(50_000).numpy().tobytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def leftovers(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_is_downloaded_verified_and_alone(publisher: Publisher, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    published = Published(publisher.url, sha256(publisher.content))
    download(published, tmp_path / "new/w.pth", lambda *each: seen.append(each))
    assert (tmp_path / "new/w.pth").read_bytes() == publisher.content
    assert seen[-1] == (400_000, 400_000)
    assert leftovers(tmp_path / "new") == ["w.pth"]


@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_a_cut_download_is_a_sentence_and_continues(
    publisher: Publisher, tmp_path: Path, known: bool
) -> None:
    published = Published(publisher.url, sha256(publisher.content) if known else None)
    publisher.cut_after = 150_000
    with pytest.raises(UsageError, match=r"ended after 150,000 of 400,000 bytes; again continues"):
        download(published, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    publisher.cut_after = None
    download(published, tmp_path / "w.pth")
    assert publisher.asked == [None, "bytes=150000-"]
    assert (tmp_path / "w.pth").read_bytes() == publisher.content
    assert leftovers(tmp_path) == ["w.pth"]


def test_a_file_that_changed_meanwhile_is_begun_again(publisher: Publisher, tmp_path: Path) -> None:
    published = Published(publisher.url)
    publisher.cut_after = 150_000
    with pytest.raises(UsageError, match="again continues"):
        download(published, tmp_path / "w.pth")
    publisher.cut_after, publisher.etag = None, '"two"'
    publisher.content = publisher.content[::-1]
    download(published, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == publisher.content


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_hash_and_strong_etag_nothing_is_continued(
    publisher: Publisher, tmp_path: Path, etag: str | None
) -> None:
    publisher.etag, publisher.cut_after = etag, 150_000
    with pytest.raises(UsageError, match="again continues"):
        download(Published(publisher.url), tmp_path / "w.pth")
    publisher.cut_after = None
    download(Published(publisher.url), tmp_path / "w.pth")
    assert publisher.asked == [None, None]


def test_servers_without_ranges_or_with_less_than_is_here_are_begun_again(
    publisher: Publisher, tmp_path: Path
) -> None:
    published = Published(publisher.url, sha256(publisher.content))
    (tmp_path / "w.pth.part").write_bytes(b"x" * 1000)
    publisher.ranges = False
    download(published, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == publisher.content
    (tmp_path / "w.pth").unlink()
    publisher.ranges = True
    (tmp_path / "w.pth.part").write_bytes(b"x" * 500_000)
    download(published, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == publisher.content


def test_two_fetches_of_one_file_do_not_spoil_it(publisher: Publisher, tmp_path: Path) -> None:
    publisher.slow = threading.Event()
    target = tmp_path / "w.pth"
    published = Published(publisher.url, sha256(publisher.content))
    first = threading.Thread(target=download, args=(published, target))
    first.start()
    while not publisher.asked:
        time.sleep(0.01)
    with pytest.raises(UsageError, match="is being downloaded by another program; wait"):
        download(published, target)
    publisher.slow.set()
    first.join()
    assert target.read_bytes() == publisher.content
    assert leftovers(tmp_path) == ["w.pth"]


def test_a_place_that_cannot_be_written_is_not_blamed_on_the_network(
    publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "w.pth", Path("/proc/nowhere/w.pth")):
        with pytest.raises(UsageError, match=r"cannot be written.*name another folder") as caught:
            download(Published(publisher.url), target)
        assert "network" not in str(caught.value)
    assert publisher.asked == []


def test_a_server_that_continues_at_another_place_is_refused(
    publisher: Publisher, tmp_path: Path
) -> None:
    target, published = tmp_path / "w.pth", Published(publisher.url)
    publisher.cut_after = 1000
    with pytest.raises(UsageError, match="again continues"):
        download(published, target)
    publisher.cut_after, publisher.range_told = None, "bytes 0-10/11"
    with pytest.raises(UsageError, match=r"sent another part \(bytes 0-10/11\)"):
        download(published, target)
    assert not target.exists()


def test_another_content_is_refused_and_removed(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not the published file: its sha256 is \w{64}, publ"):
        download(Published(publisher.url, "0" * 64), tmp_path / "w.pth")
    assert leftovers(tmp_path) == []
    publisher.content = b"<!DOCTYPE html> please log in"
    with pytest.raises(UsageError, match="it is a web page"):
        download(Published(publisher.url), tmp_path / "w.pth")
    assert leftovers(tmp_path) == []


def test_a_server_that_refuses_or_is_not_there_is_a_sentence(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.status = 404
    with pytest.raises(UsageError, match=r"cannot be downloaded: HTTP Error 404.*put it at"):
        download(Published(publisher.url), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="cannot be downloaded"):
        download(Published("http://127.0.0.1:1/w.pth"), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"no address of a file: expected https"):
        download(Published("file:///etc/passwd"), tmp_path / "w.pth")


def test_a_file_without_stated_length_is_verified_all_the_same(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.length = False
    download(Published(publisher.url, sha256(publisher.content)), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == publisher.content


def test_gits_id_of_a_file_is_computed_as_git_does(tmp_path: Path) -> None:
    # `printf 'what is up, doc?' | git hash-object --stdin`, from the book Pro Git, chapter 10.2
    (tmp_path / "w").write_bytes(b"what is up, doc?")
    doc = "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert verify(tmp_path / "w", Published("https://x", git=doc)) is None
    assert "git id" in str(verify(tmp_path / "w", Published("https://x", git="0" * 40)))


# --- the command


def call(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


@pytest.fixture
def zoo(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The row `vgg16-imagenet` published by our server, and a home without downloads."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "STORYLINE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    row = replace(ZOO[NAME], url=publisher.url, sha256=sha256(publisher.content)[:8])
    monkeypatch.setitem(models.zoo.ZOO, NAME, row)
    return tmp_path / ".cache/storyline/weights"


def listed() -> dict[str, Any]:
    rows = json.loads(call("weights", "list", "--json").stdout)
    return next(row for row in rows if row["checkpoint"] == f"zoo:{NAME}")


def test_names_are_listed_whole_so_that_they_can_be_copied() -> None:
    shown = call("weights", "list").output
    assert [name for name in ZOO if f"zoo:{name} " not in shown] == []


def test_fetch_puts_a_file_where_its_name_is_found(zoo: Path, publisher: Publisher) -> None:
    assert listed()["found"] is None
    done = call("weights", "fetch", NAME)
    assert done.exit_code == 0, done.output
    assert "licence: not stated for the weights; code BSD-3-Clause" in done.output
    assert "verified (first 8 of sha256)" in done.output
    assert f"in pipeline.yaml: vgg: {{preset: full, checkpoint: zoo:{NAME}}}" in done.output
    assert listed()["found"] == str(zoo / ZOO[NAME].file)
    assert listed()["bytes"] == len(publisher.content)
    again = call("weights", "fetch", f"zoo:{NAME}")
    assert again.exit_code == 0
    assert len(publisher.asked) == 1


def test_fetch_to_a_folder_says_the_path(zoo: Path, tmp_path: Path) -> None:
    done = call("weights", "fetch", NAME, "--to", str(tmp_path / "mine"))
    assert done.exit_code == 0
    assert not zoo.exists()
    assert f"checkpoint: {tmp_path / 'mine' / ZOO[NAME].file}" in done.output


@pytest.mark.usefixtures("zoo")
def test_fetch_does_not_replace_another_file_and_says_what_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ZOO[NAME].file).write_bytes(b"mine")
    done = call("weights", "fetch", NAME, "--to", str(tmp_path))
    assert done.exit_code == 2
    assert "is there and is not the published file" in done.output
    assert (tmp_path / ZOO[NAME].file).read_bytes() == b"mine"
    monkeypatch.setitem(models.zoo.ZOO, NAME, replace(ZOO[NAME], sha256=None))
    assert "NOT verified (nothing published)" in call("weights", "fetch", NAME).output


@pytest.mark.usefixtures("zoo")
def test_an_unknown_name_and_a_hub_without_network_are_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = call("weights", "fetch", "vgg16-imagnet")
    assert (done.exit_code, "did you mean 'vgg16-imagenet'" in done.output) == (2, True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = call("weights", "fetch", "hf:org/name")
    assert done.exit_code == 2
    assert "'org/name' cannot be downloaded" in done.output
    assert "HF_HOME" in call("weights", "fetch", "hf:org/name", "--to", "x").output


def test_the_table_names_licence_and_places(zoo: Path) -> None:
    shown = call("weights", "list").output
    assert "zoo:clip-vit-b-32-openai" in shown
    assert str(zoo) in shown


# --- stages, recipes, doctor


def config_with(folder: Path, checkpoint: str) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(f"stages:\n  vgg: {{preset: full, checkpoint: '{checkpoint}'}}\n")
    return file


def checkpoint_of(config: Path) -> str:
    section: Any = load_pipeline_config(config).stage_options["vgg"]
    return str(section.checkpoint)


def test_names_of_weights_are_not_made_paths_of_the_configs_folder(
    zoo: Path, tmp_path: Path
) -> None:
    del zoo
    assert checkpoint_of(config_with(tmp_path, f"zoo:{NAME}")) == f"zoo:{NAME}"
    assert checkpoint_of(config_with(tmp_path, "hf:org/name")) == "hf:org/name"
    assert checkpoint_of(config_with(tmp_path, "org/name")) == str(tmp_path / "org/name")
    snapshots = tmp_path / ".cache/huggingface/hub/models--org--name/snapshots/aaa"
    snapshots.mkdir(parents=True)
    assert checkpoint_of(config_with(tmp_path, "org/name")) == "org/name"
    (tmp_path / "org/name").mkdir(parents=True)
    assert checkpoint_of(config_with(tmp_path, "org/name")) == str(tmp_path / "org/name")


def test_a_name_and_the_path_of_the_same_file_give_the_same_recipe(zoo: Path) -> None:
    call("weights", "fetch", NAME)
    by_name = weights_params(Path(f"zoo:{NAME}"), 0)
    assert by_name == weights_params(zoo / ZOO[NAME].file, 0)
    assert by_name["kind"] == "file"


def test_a_file_that_is_only_called_like_an_official_one_is_refused(zoo: Path) -> None:
    zoo.mkdir(parents=True)
    (zoo / ZOO[NAME].file).write_bytes(b"another")
    with pytest.raises(UsageError, match=rf"is not the file that 'zoo:{NAME}' means"):
        weights_params(Path(f"zoo:{NAME}"), 0)


def doctor(config: Path) -> Check:
    checks = examine(load_pipeline_config(config))
    return next(each for each in checks if each.name == "weights of vgg")


def test_the_doctor_says_which_weights_of_a_config_are_found(zoo: Path, tmp_path: Path) -> None:
    missing = doctor(config_with(tmp_path, f"zoo:{NAME}"))
    assert missing.state == "fail"
    assert f"pipeline weights fetch {NAME}" in missing.advice
    assert str(zoo) in missing.advice
    call("weights", "fetch", NAME)
    found = doctor(config_with(tmp_path, f"zoo:{NAME}"))
    assert (found.state, found.found) == ("ok", f"{zoo / ZOO[NAME].file} (0.4 MB)")
    (tmp_path / "pipeline.yaml").write_text("stages: {vgg: {}}")
    assert doctor(tmp_path / "pipeline.yaml").found == "random, seed 0"
    official = next(each for each in examine() if each.name == "official weights")
    assert official.found == f"{NAME} ({zoo / ZOO[NAME].file})"


def test_the_doctor_looks_for_the_weights_of_the_flow_too(zoo: Path, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text("stages: {i3d_flow: {flow: raft, flow_checkpoint: 'zoo:raft-sintel'}}")
    checks = {each.name: each for each in examine(load_pipeline_config(config))}
    assert checks["weights of i3d_flow"].found == "random, seed 0"
    missing = checks["weights of i3d_flow's flow"]
    assert missing.state == "fail"
    assert "pipeline weights fetch raft-sintel" in missing.advice
