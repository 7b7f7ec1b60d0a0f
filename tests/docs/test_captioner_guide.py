"""The captioner of docs/add_a_captioner.md keeps what every captioner must, as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys; sys.path[:0] = [{folder!r}, {root!r}]
from dataclasses import replace
import numpy as np, pytest, torch
from models.compat import ensure_torchvision; ensure_torchvision()
from transformers import GPT2Config, ViTConfig
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from data.errors import UsageError
from models.captioners import CaptionRequest, create
from tests.models.captioners.tiny_vlms import tokenizer
import vit_gpt2
from pipeline.stage import StageContext
from pipeline.stages.captions import CaptionsOptions, CaptionsStage

words = tokenizer()
small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
vision = ViTConfig(**small, image_size=32, patch_size=16)
text = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(words), add_cross_attention=True,
                  is_decoder=True, eos_token_id=2, bos_token_id=1)
torch.manual_seed(0)
config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
net = VisionEncoderDecoderModel(config)
net.generation_config.decoder_start_token_id = 1
net.generation_config.pad_token_id, net.generation_config.eos_token_id = 0, 2
net.save_pretrained({folder!r} + "/model"); words.save_pretrained({folder!r} + "/model")

made = create("vit_gpt2", {folder!r} + "/model", at_once=2, max_new_tokens=6)
random = np.random.default_rng(0)
asked = [
    CaptionRequest(random.integers(0, 256, (1, 32, 32, 3), np.uint8), "", float(i), f"v:{{i}}")
    for i in range(5)
]
found = made.caption(asked)
assert len(found) == 5 and all(each.new_tokens <= 6 for each in found)
assert [made.caption([each])[0] for each in asked] == found
section = CaptionsOptions(captioner="vit_gpt2", checkpoint={folder!r} + "/model")
stage = CaptionsStage(StageContext(2.0), section)
stage.check_machine()
recipe = stage.params()
assert recipe["options"]["max_new_tokens"] == 30 and "at_once" not in recipe["options"]
assert "prompt" not in recipe
with pytest.raises(UsageError, match="needs `checkpoint`"):
    CaptionsStage(StageContext(2.0), CaptionsOptions(captioner="vit_gpt2")).check_machine()
"""


def test_the_captioner_of_the_guide_runs_as_it_is_printed(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    code, line = re.findall(
        r"```python\n(.*?)```", (root / "docs/add_a_captioner.md").read_text(), re.DOTALL
    )
    others = (root / "models/captioners/__init__.py").read_text()
    assert line.split("#")[0].strip().replace("vit_gpt2", "blip2") in others
    (tmp_path / "vit_gpt2.py").write_text(code)
    script = SCRIPT.format(folder=str(tmp_path), root=str(root))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
