"""The README tells the truth: its commands exist, its first lines are the two that matter."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

COMMAND = re.compile(r"^(pipeline|trainer) .*$", re.MULTILINE)


def _documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [match.group(0).split("#")[0].strip() for match in COMMAND.finditer(joined)]


def commands_of(program: Any) -> dict[str, Any]:
    """The commands of a program or of a group of commands, none of a plain command."""
    return getattr(program, "commands", {})


def test_the_two_commands_stand_within_the_first_25_lines(root: Path) -> None:
    head = (root / "README.md").read_text().splitlines()[:25]
    assert any(line.startswith("make demo") for line in head)
    assert any(line.startswith("make test") for line in head)


def test_every_documented_command_and_option_exists(root: Path) -> None:
    import pipeline.cli
    import training.cli

    programs = {"pipeline": get_command(pipeline.cli.app), "trainer": get_command(training.cli.app)}
    commands = [each for file in _documents(root) for each in _commands(file.read_text())]
    assert len(commands) >= 10
    for command in commands:
        program, *words = shlex.split(command)
        known = programs[program]
        while commands_of(known):
            verb, *words = words
            known = commands_of(known)[verb]
        options = {option for parameter in known.params for option in parameter.opts}
        asked = {word for word in words if word.startswith("--")}
        assert asked <= options, f"`{command}` uses {asked - options}, which do not exist"


def test_every_command_is_documented(root: Path) -> None:
    import pipeline.cli
    import training.cli

    told = {tuple(each.split()[:2]) for each in _commands((root / "README.md").read_text())}
    told.add(("pipeline", "demo"))  # as `make demo`
    for program, app in (("pipeline", pipeline.cli.app), ("trainer", training.cli.app)):
        known = commands_of(get_command(app))
        assert {(program, verb) for verb in known} == {each for each in told if each[0] == program}


def test_links_to_files_of_the_repository_are_not_dead(root: Path) -> None:
    for file in _documents(root):
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


@pytest.mark.parametrize("word", ["install", "demo", "test", "check", "bench", "torture"])
def test_the_makefile_has_the_words_that_the_documents_use(root: Path, word: str) -> None:
    assert re.search(rf"^{word}:", (root / "Makefile").read_text(), re.MULTILINE)


def _code(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


def test_the_stages_of_the_guide_run_as_they_are_printed(root: Path, tmp_path: Path) -> None:
    pictures, sound = _code(root / "docs/add_a_stage.md")
    (tmp_path / "brightness.py").write_text(pictures)
    (tmp_path / "loudness.py").write_text(sound)
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import brightness, loudness
from pathlib import Path
from data.store.types import ItemKey
from data.synthetic import render_corpus
from data.video import open_decoder
from data.video.types import Video
from pipeline.stage import STAGES, Item, StageContext
render_corpus(Path({str(tmp_path)!r}) / "corpus", train=1, val=0, test=0, clips=4)
video = Video("train-0000", Path({str(tmp_path)!r}) / "corpus/videos/train-0000.mp4")
kind = STAGES.get("brightness")
stage = kind(StageContext(1.0), kind.Options())
item = Item(ItemKey(video.id, "0" * 64), video, open_decoder("pyav").probe(video))
windows = list(open_decoder("pyav").windows(video, [stage.request(item)]))
row = stage.finish(item, stage.encode(item, windows))
assert row["brightness"].shape == (4, 1), row
assert 0 < row["brightness"].max() < 255, row
fast = kind(StageContext(1.0, decode_mode="fast"), kind.Options())
assert fast.recipe({{}}).id != stage.recipe({{}}).id
assert fast.request(item).view.mode == "fast"

import numpy as np
from data.video.types import SoundWindow
heard = STAGES.get("loudness")(StageContext(1.0), STAGES.get("loudness").Options())
request = heard.request(item)
assert len(request.starts_s) == 4
tone = [SoundWindow("loudness", unit, np.full(16_000, 0.5, np.float32), 1.0) for unit in range(4)]
assert (heard.finish(item, heard.encode(item, tone))["loudness"] == 0.5).all()
assert (heard.finish(item, [])["loudness"] == 0).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_the_backbone_of_the_guide_keeps_what_every_backbone_must(
    root: Path, tmp_path: Path
) -> None:
    (code,) = _code(root / "docs/add_a_backbone.md")
    (tmp_path / "thumbs.py").write_text(code)
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import numpy as np, thumbs
from models.backbones import create
from models.backbones.machine import Machine
full, other = create("thumbs"), create("thumbs", seed=1)
theirs = {{name.replace("conv1", "stem"): value for name, value in other.net.state_dict().items()}}
for checkpoint in (other.net.state_dict(), theirs):
    loaded = create("thumbs", checkpoint)
    assert loaded.weights.kind == "file" and loaded.weights.sha256 == other.weights.sha256
small = create("thumbs", preset="tiny")
frames = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 80, 3), np.uint8)
features = small.encode(frames)
assert features.shape == (3, small.dim), features.shape
same = Machine(small, device="cpu", batch_size=3).encode(list(frames))
np.testing.assert_allclose(same.numpy(), features, rtol=1e-3, atol=1e-3)
assert small.clip_times(np.array([0.0, 2.0]), 2.0).tolist() == [[1.0], [3.0]]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


@pytest.mark.slow
def test_every_benchmark_starts_and_tells_its_options(root: Path) -> None:
    scripts = [
        script
        for script in sorted((root / "benchmarks").glob("*.py"))
        if "__main__" in script.read_text()  # the rule of the Makefile; the others are helpers
    ]
    assert len(scripts) >= 8

    def told(script: Path) -> str:
        words = [sys.executable, str(script), "--help"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(scripts, pool.map(told, scripts), strict=True))
    assert [script.name for script in scripts if "--check" not in answers[script]] == []
