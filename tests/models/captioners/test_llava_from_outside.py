"""LLaVA as somebody has it who knows transformers, LLaVA's files and the public names here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.compat import ensure_torchvision
from pipeline.stage import StageContext
from pipeline.stages.captions import CaptionsOptions, CaptionsStage

SIDE, VOCAB, IMAGE = 28, 704, 640
QUESTION = "What is happening in this image?"
SHORT = {"max_new_tokens": 12, "retries": 0}


class Model:
    """A tiny LLaVA of transformers, and its folders.

    Args:
        place: where they are written.
        tokenizer: a tokenizer.model of 640 pieces.
    """

    def __init__(self, place: Path, tokenizer: Path) -> None:
        ensure_torchvision()
        import transformers as library
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        self.seen: Any = library.CLIPVisionConfig(
            **sizes, num_attention_heads=2, image_size=SIDE, patch_size=14
        )
        text = library.LlamaConfig(
            **sizes, num_attention_heads=4, vocab_size=VOCAB, max_position_embeddings=512
        )
        config = library.LlavaConfig(
            vision_config=self.seen, text_config=text, image_token_id=IMAGE
        )
        self.net: Any = library.LlavaForConditionalGeneration(config).eval()
        with torch.no_grad():  # the default spread of 0.02 says the same whatever it sees
            for weight in self.net.parameters():
                if weight.ndim == 2:
                    weight.mul_(8)
        self.eyes = CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
        shutil.copy(tokenizer, place / "tokenizer.model")
        words = library.LlamaTokenizer.from_pretrained(place)
        words.add_special_tokens({"additional_special_tokens": ["<image>"]})
        self.hf, self.own, self.clip = place / "hf", place / "llava-v1.5-tiny", place / "clip"
        self.net.save_pretrained(self.hf, max_shard_size="60KB")
        library.LlavaProcessor(
            self.eyes,
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ).save_pretrained(self.hf)
        tower = library.CLIPVisionModel(self.seen)
        tower.load_state_dict(self.net.model.vision_tower.state_dict())
        tower.save_pretrained(self.clip)
        self.write_own(tokenizer)

    def own_state(self) -> dict[str, torch.Tensor]:
        """Under the names of LLaVA's code."""
        renamed = (
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
            ("model.language_model.", "model."),
            ("lm_head.", "lm_head."),
        )
        return {
            new + name.removeprefix(old): value.clone()
            for name, value in self.net.state_dict().items()
            for old, new in renamed
            if name.startswith(old)
        }

    def write_own(self, tokenizer: Path) -> None:
        self.own.mkdir()
        state = self.own_state()
        files: dict[str, str] = {}
        for number in (1, 2):
            file = f"pytorch_model-{number:05}-of-00002.bin"
            part = {name: state[name] for name in sorted(state)[number - 1 :: 2]}
            torch.save(part, self.own / file)
            files |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (self.own / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        shutil.copy(tokenizer, self.own / "tokenizer.model")
        text = self.net.config.text_config
        config = {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "vocab_size": VOCAB,
            "torch_dtype": "float32",
            "image_aspect_ratio": "pad",
            "mm_hidden_size": self.seen.hidden_size,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": str(self.clip),
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
        }
        (self.own / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def model(goldens: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("outside"), goldens.folder / "llama_sp_tiny.model")


def requests(count: int = 4) -> list[CaptionRequest]:
    frames = np.random.default_rng(0).integers(0, 256, (count, 1, SIDE, SIDE, 3), dtype=np.uint8)
    return [
        CaptionRequest(each, QUESTION + " Tell." * (i % 2), 0.0, f"key {i}")
        for i, each in enumerate(frames)
    ]


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_both_layouts_give_identical_logits_and_captions_those_of_transformers(
    model: Model, model_type: str, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(model.own, folder)
    change(folder, model_type=model_type)
    hf: Any = create("llava", checkpoint=model.hf, **SHORT)
    own: Any = create("llava", checkpoint=str(folder), **SHORT)
    asked = requests()
    # Of random weights: bytes that are no UTF-8 among them, which each file's library reads its way
    assert hf.caption(asked) == own.caption(asked)
    sampled = {"temperature": 1.0, "top_k": 0, **SHORT, "max_new_tokens": 30}
    one, other = (
        create("llava", checkpoint=each, **sampled).caption(asked) for each in (model.hf, folder)
    )
    assert one == other
    for request, a, b in zip(asked, hf.logits(asked), own.logits(asked), strict=True):
        assert torch.equal(a, b)
        ids = [
            each
            for index in hf.prompt_ids(request)
            for each in ([IMAGE] * hf.soft_tokens if index < 0 else [index])
        ]
        with torch.no_grad():
            want = model.net(
                input_ids=torch.tensor([ids]), pixel_values=hf.pixels(request.frames)
            ).logits[0]
        torch.testing.assert_close(a, want, rtol=0, atol=1e-5)


def test_pixels_are_those_of_the_processor_that_transformers_saved(
    model: Model, tmp_path: Path
) -> None:
    """transformers 5 writes its settings into processor_config.json, not preprocessor_config."""
    from PIL import Image

    folder = tmp_path / "hf"
    shutil.copytree(model.hf, folder)
    assert not (folder / "preprocessor_config.json").exists()
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    file.write_text(json.dumps(settings))
    picture = requests(1)[0].frames
    for place, mean, std in (
        (model.hf, model.eyes.image_mean, model.eyes.image_std),
        (folder, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
    ):
        captioner: Any = create("llava", checkpoint=place, **SHORT)
        want = model.eyes(
            Image.fromarray(picture[0]), return_tensors="np", image_mean=mean, image_std=std
        )["pixel_values"]
        np.testing.assert_allclose(captioner.pixels(picture), want, atol=1e-6)
    assert captioner.sight.background == (127, 102, 76)  # int(mean * 255), as LLaVA's code


def change(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def dropped(folder: Path, key: str) -> None:
    """Take a tensor out of shard and index."""
    index = folder / "pytorch_model.bin.index.json"
    told = json.loads(index.read_text())
    shard = folder / told["weight_map"].pop(key)
    index.write_text(json.dumps(told))
    table = torch.load(shard)
    del table[key]
    torch.save(table, shard)


def test_a_key_that_is_missing_is_an_error_where_transformers_draws_a_7b_at_random(
    model: Model, tmp_path: Path
) -> None:
    from transformers import LlavaConfig

    # The trap: read as its model_type says, all sizes are those of a 7B.
    assert LlavaConfig.from_pretrained(model.own).text_config.hidden_size == 4096
    folder = tmp_path / "own"
    shutil.copytree(model.own, folder)
    dropped(folder, "model.mm_projector.2.bias")
    with pytest.raises(UsageError, match=r"missing 1 tensors: .*linear_2\.bias.*would be random"):
        create("llava", checkpoint=folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 shards .* are missing"):
        create("llava", checkpoint=folder)


def without_tower(model: Model, folder: Path) -> Path:
    shutil.copytree(model.own, folder)
    for key in model.own_state():
        if "vision_tower" in key:
            dropped(folder, key)
    return folder


def test_a_tower_that_only_config_json_names_is_in_the_recipe(model: Model, tmp_path: Path) -> None:
    kind = CAPTIONERS.get("llava")
    bare = without_tower(model, tmp_path / "bare")
    tower = tmp_path / "tower"
    shutil.copytree(model.clip, tower)
    change(bare, mm_vision_tower=str(tower))
    first = kind.recipe({}, bare)
    assert first["vision"] is not None
    stage = CaptionsStage(StageContext(2.0), CaptionsOptions(captioner="llava", checkpoint=bare))
    assert stage.params()["options"] == first
    assert kind.recipe({"vision": str(tower)}, bare) == first  # the same tower, named otherwise
    assert kind.recipe({}, model.own)["vision"] is None  # its shards hold one
    (tower / "config.json").write_text((tower / "config.json").read_text() + "\n")
    assert kind.recipe({}, bare) != first


def test_a_tower_may_lie_in_the_folder_of_the_model(model: Model, tmp_path: Path) -> None:
    bare = without_tower(model, tmp_path / "bare")
    shutil.copytree(model.clip, bare / "clip")
    change(bare, mm_vision_tower="clip")
    captioner: Any = create("llava", checkpoint=bare, **SHORT)
    own: Any = create("llava", checkpoint=model.own, **SHORT)
    asked = requests(1)
    assert torch.equal(captioner.logits(asked)[0], own.logits(asked)[0])


def test_a_tower_that_would_not_be_used_is_refused_and_one_of_sizes_alone_is_not(
    model: Model, tmp_path: Path
) -> None:
    kind: Any = CAPTIONERS.get("llava")
    options = {"vision": str(model.clip)}
    for refuse in (lambda: kind(model.own, **options), lambda: kind.check(model.own, options)):
        with pytest.raises(
            UsageError, match=r"holds a vision tower, and so does .* leave `vision`"
        ):
            refuse()
    folder, sizes = tmp_path / "own", tmp_path / "sizes"
    shutil.copytree(model.own, folder)
    change(folder, mm_vision_tower="somebody/clip-of-their-own")
    with pytest.raises(UsageError, match="option `vision`"):
        kind(folder)
    sizes.mkdir()
    shutil.copy(model.clip / "config.json", sizes)
    assert kind(folder, vision=str(sizes)).soft_tokens == 4


def test_a_captioner_that_is_closed_holds_no_network(model: Model) -> None:
    import weakref

    captioner: Any = create("llava", checkpoint=model.hf, **SHORT)
    captioner.caption(requests(1))
    networks = [weakref.ref(each) for each in (captioner.net, captioner.lm)]
    captioner.close()
    captioner.close()
    assert [each() for each in networks] == [None, None]


def test_the_end_of_a_text_behind_the_pieces_ends_a_caption(model: Model, tmp_path: Path) -> None:
    """As in LLaVA on Llama 3, whose `<|eot_id|>` is an added token."""
    folder = tmp_path / "hf"
    shutil.copytree(model.hf, folder)
    file = folder / "tokenizer_config.json"
    # 640, behind 640 pieces
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<image>"}))
    captioner: Any = create("llava", checkpoint=folder, **SHORT)
    asked = requests(1)
    with torch.no_grad():
        state = captioner.lm.model(inputs_embeds=captioner.embed(asked)[0][None])
        captioner.lm.lm_head.weight.zero_()
        captioner.lm.lm_head.weight[IMAGE] = state.last_hidden_state[0, -1]
    (made,) = captioner.caption(asked)
    assert (made.finish_reason, made.new_tokens) == ("stop", 0)


def test_a_table_that_words_share_is_read_as_transformers_saved_it(
    goldens: Any, tmp_path: Path
) -> None:
    import transformers as library
    from safetensors.torch import load_file, save_file

    model = Model(tmp_path, goldens.folder / "llama_sp_tiny.model")
    config = model.net.config
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    folder = tmp_path / "tied"
    library.LlavaForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(model.own / "tokenizer.model", folder)
    captioner: Any = create("llava", checkpoint=folder, **SHORT)
    tables = captioner.lm.lm_head.weight, captioner.lm.model.embed_tokens.weight
    assert tables[0].data_ptr() == tables[1].data_ptr()
    state = load_file(folder / "model.safetensors")
    assert not [name for name in state if "lm_head" in name]
    words = next(value for name, value in state.items() if "embed_tokens" in name)
    save_file(state | {"lm_head.weight": words + 1}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"other numbers for .*lm_head\.weight.* they are one"):
        create("llava", checkpoint=folder)


def test_the_config_itself_is_no_checkpoint(model: Model) -> None:
    with pytest.raises(UsageError, match=rf"is a file; .*: give '{model.own}'"):
        create("llava", checkpoint=model.own / "config.json")


def test_what_the_page_shows_runs(model: Model, root: Path) -> None:
    page = (root / "docs" / "captioners.md").read_text()
    code = page.split("from Python\n")[1].split("```python\n")[1].split("```")[0]
    shown = code.replace("models/llava-v1.5-7b", str(model.own)).replace("=60", "=4")
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    names: dict[str, Any] = {"frame": frame}
    exec(shown, names)
    captioner, asked = names["captioner"], names["asked"]
    ids, soft = captioner.prompt_ids(asked), captioner.soft_tokens
    assert captioner.pixels(names["picture"][None]).shape == (1, 3, SIDE, SIDE)
    assert captioner.features([asked]).shape == (1, soft, 32)
    assert captioner.embed([asked])[0].shape == (len(ids) - 1 + soft, 32)
    assert captioner.logits([asked])[0].shape == (len(ids) - 1 + soft, VOCAB)
