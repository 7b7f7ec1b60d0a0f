"""VideoChat's goldens by the public names alone, from files as they are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from videochat_files import write_llm

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.looped import PICTURE_ID

META, ASK = "videochat_tiny", "Describe the following video concisely."


@pytest.fixture(scope="module")
def meta(goldens: Any) -> dict[str, Any]:
    found: dict[str, Any] = goldens.meta(META)
    return found


@pytest.fixture(scope="module")
def folder(goldens: Any, meta: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of the public code, cut into the files that it was loaded from."""
    place = tmp_path_factory.mktemp("official")
    state, vit = goldens.state(meta), "visual_encoder."
    seen = {
        name.removeprefix(vit): value
        for name, value in state.items()
        if name.startswith(vit) and "gmhra" not in name
    }
    trained = ("visual_encoder.gmhra", "ln_vision", "extra_query_tokens", "llama_proj")
    own = {name: value for name, value in state.items() if name.startswith(trained)}
    asked = {name: value for name, value in state.items() if name.startswith(("Qformer", "query"))}
    torch.save(seen, place / "eva_vit_g.pth")
    torch.save({"model": asked}, place / "blip2_pretrained_flant5xxl.pth")
    torch.save({"model": own}, place / "videochat_7b.pth")
    write_llm(place / "llm", 640, meta["dims"]["llama"])
    shutil.copy(goldens.folder / "llama_sp_tiny.model", place / "llm" / "tokenizer.model")
    return place


def frames_of(goldens: Any, item: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    i = item["frames"]
    made: np.ndarray[Any, np.dtype[np.uint8]] = goldens.rule.make_frames(
        i["name"], i["t"], i["h"], i["w"], i["c"], i["salt"]
    )
    return made


def test_every_step_is_that_of_the_public_code(
    goldens: Any, meta: dict[str, Any], folder: Path
) -> None:
    outputs, close = goldens.outputs(META), {"rtol": 1e-4, "atol": 2e-5}
    for item in meta["inputs"]:
        frames, key = frames_of(goldens, item), item["key"]
        count = len(frames)
        captioner: Any = create("videochat", checkpoint=folder, frames=count)
        times_s = tuple(i / 10 for i in range(count))
        asked = CaptionRequest(frames, ASK, 0.0, key, times_s=times_s)
        np.testing.assert_allclose(captioner.features([asked]), outputs[f"{key}/tokens"], **close)
        with torch.inference_mode():
            seen = captioner.eyes.look(captioner.pixels(frames[None]))
            answers = captioner.eyes.read(seen)
        np.testing.assert_allclose(seen, outputs[f"{key}/visual_encoder"], **close)
        normed = captioner.eyes.normed(seen)
        np.testing.assert_allclose(normed, outputs[f"{key}/ln_vision"], **close)
        np.testing.assert_allclose(answers, outputs[f"{key}/qformer"], **close)
        ids = captioner.prompt_ids(asked)
        place = ids.index(PICTURE_ID)
        (embedded,), (logits,) = captioner.embed([asked]), captioner.logits([asked])
        assert len(embedded) == len(logits) == len(ids) - 1 + captioner.soft_tokens
        np.testing.assert_allclose(
            embedded[place : place + captioner.soft_tokens], outputs[f"{key}/tokens"][0], **close
        )


def test_the_prompt_is_that_of_the_public_code_in_tokens(goldens: Any, folder: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    words: Any = SentencePieceProcessor(str(folder / "llm" / "tokenizer.model"))
    golden = goldens.meta("videochat_prompt")
    looked = 0
    for case in golden["prompts"]:
        frames, fps = case["num_segments"], case["fps"]
        captioner: Any = create("videochat", checkpoint=folder, frames=frames)
        offsets_s = captioner.offsets_s(clip_len_s=case["num_frames"] / fps, gap_s=0.2, fps=fps)
        picture = np.zeros((frames, 56, 56, 3), np.uint8)
        asked = CaptionRequest(
            picture, case["instruction"], 4.0, "k", times_s=tuple(offsets_s.tolist())
        )
        before, after = case["segments"]
        want = (1, *words.EncodeAsIds(before), PICTURE_ID, *words.EncodeAsIds(after))
        assert captioner.prompt_ids(asked) == want
        looked += 1
    assert looked > 2


def test_a_network_of_other_sizes_says_them(folder: Path, tmp_path: Path) -> None:
    """Heads are in no shape of a tensor, so that nothing is guessed."""
    other, kind = tmp_path / "other", CAPTIONERS.get("videochat")
    shutil.copytree(folder, other)
    names = "side patch dim depth heads gathers q_dim q_depth q_heads q_ffn queries extra"
    values = [56, 14, 48, 4, 4, 2, 48, 4, 4, 96, 6, 3]
    sizes = dict(zip(names.split(), values, strict=True))
    random = np.random.default_rng(0)
    asked = CaptionRequest(random.integers(0, 256, (1, 56, 56, 3), dtype=np.uint8), ASK, 0.0, "a")

    def features(**changed: int) -> torch.Tensor:
        (other / "sizes.json").write_text(json.dumps(sizes | changed))
        captioner: Any = create("videochat", checkpoint=other, frames=1)
        made: torch.Tensor = captioner.features([asked])
        return made

    plain: Any = create("videochat", checkpoint=folder, frames=1)
    assert torch.equal(features(), plain.features([asked]))
    assert not torch.equal(features(heads=8), plain.features([asked]))
    with pytest.raises(UsageError, match="wrong shape of"):
        features(queries=7)
    cost, whole = kind.work(other, {}), kind.work(folder, {})
    assert cost is not None
    assert whole is not None
    assert cost.prompt_flops < whole.prompt_flops / 100
    for wrong in ({"heads": 0}, {"layers": 4}, {"side": "56"}, {"q_heads": 5}):
        (other / "sizes.json").write_text(json.dumps(sizes | wrong))
        with pytest.raises(UsageError, match=rf"sizes\.json' has to hold .*{next(iter(wrong))}"):
            kind.check(other, {})
