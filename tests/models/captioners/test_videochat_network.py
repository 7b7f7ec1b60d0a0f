"""What VideoChat sees, and the files that it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from videochat_files import (
    DEPTH,
    drawn,
    own_shapes,
    qformer_shapes,
    sentencepiece_bytes,
    vit_shapes,
    write_llm,
    write_official,
)

from data.errors import UsageError
from models.captioners.videochat_checkpoint import find_files, load_eyes
from models.captioners.videochat_network import PUBLISHED, VideoChatEyes, normalised
from models.captioners.videochat_parts import load_parts
from models.large import build_empty

LLM_DIM = 40


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files with drawn weights; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("videochat")
    write_official(folder, drawn(vit_shapes()), drawn(qformer_shapes()), drawn(own_shapes(64)), 64)
    write_llm(folder / "llm", 330)
    (folder / "llm" / "tokenizer.model").write_bytes(sentencepiece_bytes())
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "videochat"))


def eyes_of(folder: Path, llm_dim: int, dtype: torch.dtype = torch.float32) -> VideoChatEyes:
    eyes, _ = load_eyes(find_files(folder), llm_dim, dtype=dtype, device="cpu")
    return eyes


def golden_folder(goldens: Any, folder: Path) -> Path:
    """The three files with the weights of the reference, and a language model beside them."""
    state = goldens.state(goldens.meta("videochat_tiny"))
    prefix = "visual_encoder."
    own = {key: state[key] for key in own_shapes(LLM_DIM)}
    vit = {key: state[prefix + key] for key in vit_shapes()}
    vit["patch_embed.proj.weight"] = vit["patch_embed.proj.weight"].squeeze(2)
    qformer = {key: state[key] for key in qformer_shapes()}
    qformer["ln_vision.weight"] = torch.full((48,), 7.0)  # VideoChat's own is the one that counts
    write_llm(folder / "llm", 32, LLM_DIM)
    return write_official(folder, vit, qformer, own, LLM_DIM)


def test_the_files_of_the_tests_hold_what_the_public_code_holds(goldens: Any) -> None:
    every = {f"visual_encoder.{key}": shape for key, shape in vit_shapes().items()}
    every |= qformer_shapes() | own_shapes(LLM_DIM)
    public = {key: tuple(shape) for key, shape, _ in goldens.meta("videochat_tiny")["keys"]}
    del public["Qformer.bert.embeddings.position_ids"]
    assert every.keys() == public.keys()
    differing = {key for key in every if every[key] != public[key]}
    assert differing == {"visual_encoder.patch_embed.proj.weight"}  # inflated when it is loaded


@torch.inference_mode()
def test_every_step_is_that_of_the_public_code(goldens: Any, tmp_path: Path) -> None:
    """Ask-Anything 4dd8210b with transformers 4.37.2, from files as they are published."""
    eyes = eyes_of(golden_folder(goldens, tmp_path), LLM_DIM)
    meta, wanted = goldens.meta("videochat_tiny"), goldens.outputs("videochat_tiny")
    clips = goldens.inputs(meta)
    for each in meta["inputs"]:
        frames = torch.from_numpy(clips[each["frames"]["name"]])
        states = eyes.look(normalised(frames))
        found = {
            "visual_encoder": states,
            "ln_vision": eyes.normed(states),
            "qformer": eyes.read(states),
            "tokens": eyes(frames),
        }
        for step, value in found.items():
            expected = torch.from_numpy(wanted[f"{each['key']}/{step}"])
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)])
def test_half_precision_keeps_states_and_norms_in_float32(
    goldens: Any, tmp_path: Path, dtype: torch.dtype, most: float
) -> None:
    """Bounds: what torch's autocast over float32 weights is off by, as the public code runs."""
    folder = golden_folder(goldens, tmp_path)
    half, whole = eyes_of(folder, LLM_DIM, dtype), eyes_of(folder, LLM_DIM)
    frames = torch.from_numpy(goldens.inputs(goldens.meta("videochat_tiny"))["pub_a_8"])
    tokens = half(frames)
    assert tokens.dtype == dtype
    with torch.autocast("cpu", dtype):
        pixels = normalised(frames)
        assert half.look(pixels).dtype == torch.float32
        torch.testing.assert_close(half.look(pixels), whole.look(pixels), rtol=0, atol=1e-6)
    assert float((tokens.float() - whole(frames)).abs().max()) < most
    kept = {name: value.dtype for name, value in half.named_parameters()}
    assert kept["vision.encoder.layers.0.mlp.fc1.weight"] == dtype
    assert kept["gather.0.attn.in_proj_weight"] == dtype
    for name in (
        "vision.post_layernorm.weight",
        "query_tokens",
        "vision.embeddings.class_embedding",
    ):
        assert kept[name] == torch.float32


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_clips_of_a_batch_do_not_touch_each_other(folder: Path, frames: int) -> None:
    eyes = eyes_of(folder, 64)
    clips = torch.randint(0, 256, (3, frames, 56, 56, 3), dtype=torch.uint8)
    alone = torch.cat([eyes(clip[None]) for clip in clips])
    torch.testing.assert_close(eyes(clips), alone, rtol=1e-5, atol=1e-5)
    assert alone.shape == (3, 9, 64)


@torch.inference_mode()
def test_the_order_of_frames_is_seen(folder: Path) -> None:
    eyes = eyes_of(folder, 64)
    clip = torch.randint(0, 256, (1, 4, 56, 56, 3), dtype=torch.uint8)
    assert float((eyes(clip) - eyes(clip.flip(1))).abs().max()) > 1e-3


def test_safetensors_are_read_like_the_published_files(folder: Path) -> None:
    from safetensors.torch import save_file

    before = eyes_of(folder, 64).state_dict()
    for path in list(folder.glob("*.pth")):
        loaded = torch.load(path, weights_only=True)
        state = {key: value.contiguous() for key, value in loaded.get("model", loaded).items()}
        save_file(state, path.with_suffix(".safetensors"))
        path.unlink()
    after = eyes_of(folder, 64).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


Change = Callable[[dict[str, Any]], Any]


def changed(path: Path, change: Change) -> None:
    """Change the table of tensors in a file."""
    loaded = torch.load(path, weights_only=True)
    change(loaded.get("model", loaded))
    torch.save(loaded, path)


VIT, QFORMER, OWN = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "videochat_7b.pth"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (VIT, lambda t: t.pop("blocks.2.attn.v_bias"), "missing 1 tensors.*qkv.bias"),
        (
            VIT,
            lambda t: t.update(blocks=torch.ones(1)),
            r"unexpected 1 tensors: visual_encoder\.blocks",
        ),
        (VIT, lambda t: t.pop("pos_embed"), "not BLIP-2's ViT-g: it has no pos_embed"),
        (VIT, lambda t: t.update(pos_embed=torch.ones(1, 17, 50)), "it is 50 wide, expected 1408"),
        (VIT, lambda t: t.update(cls_token=torch.ones(1, 2, 48)), "wrong shape of 1 tensors"),
        (QFORMER, lambda t: t.pop("query_tokens"), "missing 1 tensors: query_tokens"),
        (OWN, lambda t: t.pop("visual_encoder.gmhra.1.dpe.weight"), "missing 1 .*gather.1.dpe"),
        # BLIP-2's file has one, too, which would be taken without a word.
        (OWN, lambda t: t.pop("ln_vision.weight"), "no checkpoint of VideoChat: it lacks ln_vis"),
        (OWN, lambda t: t.pop("llama_proj.weight"), "no checkpoint of VideoChat: .*llama_proj"),
        (
            OWN,
            lambda t: t.update({"llama_proj.weight": torch.ones(80, 48)}),
            "leads to a language model of width 80, and llm/ is 64",
        ),
        (
            OWN,
            lambda t: t.update({"llama_proj.bias": torch.full((64,), torch.nan)}),
            "llama_proj.bias is not finite",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    folder: Path, file: str, change: Change, said: str
) -> None:
    changed(folder / file, change)
    with pytest.raises(UsageError, match=said):
        eyes_of(folder, 64)


def test_the_q_former_of_another_blip2_is_refused(folder: Path) -> None:
    """That of Flan-T5-XL has all the shapes, and VideoChat was not trained on it."""
    xl = {"query_tokens": torch.ones(1, 32, 768), "t5_proj.weight": torch.ones(2048, 768)}
    changed(folder / QFORMER, lambda table: table.update(xl))
    with pytest.raises(
        UsageError, match=r"t5_proj to 2048, and that of Flan-T5-XXL has one to 4096"
    ):
        eyes_of(folder, 64)
    changed(folder / QFORMER, lambda table: table.pop("t5_proj.weight"))
    with pytest.raises(UsageError, match="it has no t5_proj, and that of Flan-T5-XXL"):
        eyes_of(folder, 64)


def test_a_folder_without_a_file_says_where_it_is_published(folder: Path) -> None:
    (folder / VIT).unlink()
    with pytest.raises(UsageError, match=r"holds no eva_vit_g .*LAVIS/models/BLIP2/eva_vit_g\.pth"):
        find_files(folder)


def test_the_language_model_may_have_its_own_name_if_there_is_one(folder: Path) -> None:
    (folder / "llm").rename(folder / "vicuna-7b-v0")
    assert find_files(folder).llm == folder / "vicuna-7b-v0"
    shutil.copytree(folder / "vicuna-7b-v0", folder / "stable-vicuna-13b")
    with pytest.raises(UsageError, match="found several: stable-vicuna-13b, vicuna-7b-v0"):
        find_files(folder)
    shutil.rmtree(folder / "vicuna-7b-v0")
    shutil.rmtree(folder / "stable-vicuna-13b")
    with pytest.raises(UsageError, match=r"must hold one language model .* found none"):
        find_files(folder)


def test_of_two_videochats_the_one_of_the_language_model_is_read(folder: Path) -> None:
    shutil.copy(folder / OWN, folder / "videochat_13b.pth")
    with pytest.raises(UsageError, match="several files that could be VideoChat's"):
        find_files(folder)
    config = folder / "llm" / "config.json"
    for dim, name in ((5120, "videochat_13b.pth"), (4096, "videochat_7b.pth")):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": dim}))
        assert find_files(folder).own.name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"model_type": "mistral", "hidden_size": 64}',
            "no configuration of a LLaMA .*is 'mistral'",
        ),
        ('{"model_type": "llama", "hidden_size": 64}', "'llama' with hidden_size, intermediate"),
        ("[1]", "expected a JSON object"),
        ("{", "is not JSON that can be used"),
    ],
)
def test_another_language_model_is_refused(folder: Path, text: str, said: str) -> None:
    (folder / "llm" / "config.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        find_files(folder)


def load(folder: Path) -> Any:
    return load_parts(folder, dtype=torch.float32, device="cpu")


def test_a_language_model_that_is_not_whole_is_refused(folder: Path) -> None:
    write_llm(folder / "llm", 330, num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"missing 9 tensors: model\.layers\.2"):
        load(folder)


def test_a_delta_is_told_from_a_language_model(folder: Path) -> None:
    """As published, Vicuna is a difference from LLaMA; it loads and babbles (Ask-Anything #38)."""
    lm = write_llm(folder / "llm", 330)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(0.01)
    lm.save_pretrained(folder / "llm")
    with pytest.raises(
        UsageError, match=r"holds no whole language model but a delta .*apply_delta"
    ):
        load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    write_llm(folder / "llm", 300)
    with pytest.raises(UsageError, match="has 330 pieces and the language model knows 300"):
        load(folder)


def test_a_table_of_tensors_and_a_file_are_no_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="from a folder of files, got a table of tensors"):
        find_files({"a": torch.ones(1)})
    with pytest.raises(UsageError, match="from a folder, got the file"):
        find_files(folder / VIT)


def test_blocks_beyond_those_of_blip2_are_not_needed(folder: Path) -> None:
    def cut(table: dict[str, Any]) -> None:
        for key in [key for key in table if key.startswith((f"blocks.{DEPTH}", "norm", "head"))]:
            del table[key]

    before = eyes_of(folder, 64).state_dict()
    changed(folder / VIT, cut)
    after = eyes_of(folder, 64).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("llm_dim", "megabytes"), [(5120, 825.3), (4096, 822.2)])
def test_at_its_true_size_it_has_as_many_numbers_as_the_published_files(
    llm_dim: int, megabytes: float
) -> None:
    """specs/captioners.md §2.2 (k): videochat_{13b,7b}.pth have 825.3 and 822.2 MB in float32,
    blip2_pretrained_flant5xxl.pth 433 MB with a projection to Flan-T5-XXL, eva_vit_g.pth about 2 GB
    in float16. Nothing of it is in memory here.
    """
    eyes = build_empty(lambda: VideoChatEyes(PUBLISHED, llm_dim))
    counts = {name: value.numel() for name, value in eyes.named_parameters()}

    def million(*starts: str) -> float:
        return sum(count for name, count in counts.items() if name.startswith(starts)) / 1e6

    own = ("gather", "vision.post_layernorm", "extra_query_tokens", "llama_proj")
    assert 4 * million(*own) == pytest.approx(megabytes, abs=0.1)
    qformer = million("qformer", "query_tokens", "vision.post_layernorm")
    assert 4 * qformer + 4 * (768 + 1) * 4096 / 1e6 == pytest.approx(433, abs=1)
    assert 2 * million("vision.embeddings", "vision.encoder") == pytest.approx(2000, abs=50)
