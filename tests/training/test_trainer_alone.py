"""The trainer as `pip install '.[trainer]'` leaves it: nothing of the other extras is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from public_checkpoints import trained, write
from small_store import Annotations

from data.annotations import save_jsonl
from tests.models.tiny_llama import hugging_face_folder

PIPELINE = "ray av decord open_clip transformers torchvision timm spacy safetensors jinja2 PIL vllm"
OTHERS = "markupsafe s3fs gcsfs sklearn scipy psutil hypothesis pytest moto flask pandas matplotlib"
ELSEWHERE = [*PIPELINE.split(), *OTHERS.split()]

SCRIPT = f"""
import json, sys
sys.modules.update(dict.fromkeys({ELSEWHERE}))  # importing one raises ModuleNotFoundError
from training.cli import app
def code(words):
    try:
        app(words)
    except SystemExit as error:
        return error.code
print(json.dumps([code(each) for each in json.loads(sys.argv[1])]), file=sys.stderr)
"""


def conllu(splits: Annotations) -> str:
    """Words in a chain; the second is a clause."""
    sentences = []
    for each in splits["val"]:
        rows = [
            "\t".join([str(i), word, *"____", str(i - 1), "acl" if i == 2 else "root", "_", "_"])
            for i, word in enumerate(each.query.split(), start=1)
        ]
        sentences.append("\n".join([f"# qid = {each.qid}", *rows]))
    return "\n\n".join(sentences) + "\n"


def test_every_command_works_without_the_packages_of_the_other_extras(
    tmp_path: Path, root: Path, config_file: Callable[..., Path], splits: Annotations
) -> None:
    run, rows, found = (tmp_path / name for name in ("run", "val.jsonl", "found.jsonl"))
    save_jsonl(splits["val"], rows)
    parses, cqval = tmp_path / "val.conllu", tmp_path / "cqval.json"
    parses.write_text(conllu(splits))
    sentences = tmp_path / "captions.json"
    sentences.write_text('{"v_a": {"duration": 9, "timestamps": [[1, 3]], "sentences": ["a"]}}')
    checkpoint = write(tmp_path / "best.ckpt", trained("qd_detr"))
    llama, layers = hugging_face_folder(tmp_path / "llama"), tmp_path / "layers.safetensors"
    refiner = {"layers_file": str(layers), "layers": [1, 2]}
    config = config_file(loop__epochs=1, model__plugins={"llm_refiner": refiner})
    on = ["--dataset", "qvhighlights", "--annotations", rows]
    commands = [
        ["lint", rows],
        ["join", sentences, "--out", tmp_path / "joined.json"],
        ["llm-layers", llama, "--layers", "1-2", "--out", layers],
        ["fit", "--config", config, "--out", run],
        ["predict", "--run", run, "--split", "val", "--out", found],
        ["evaluate", "--run", run, "--split", "val"],
        ["evaluate", *on, "--predictions", found, "--ci", "--ci-samples", 100],
        ["compare", found, found, *on, "--ci-samples", 100, "--permutations", 20],
        ["convert", found, *on, "--to", "scores", "--out", tmp_path / "scores.json"],
        ["models"],
        ["import-checkpoint", "qd_detr", checkpoint, "--out", tmp_path / "imported"],
        ["cqval", "build", rows, "--parser", "conllu", "--parses", parses, "--out", cqval],
        ["cqval", "report", found, "--splits", cqval, "--annotations", rows, "--ci"],
    ]
    words = json.dumps([[str(word) for word in each] for each in commands])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, words], cwd=root, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stderr.splitlines()[-1]) == [0] * len(commands), done.stderr
