"""Captioner `vlm` on tiny random models of seven families (`tiny_vlms`), without torchvision's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.generating import Decoding
from models.captioners.vlm import Talk, VlmCaptioner
from tests.models.captioners.tiny_vlms import FAMILIES, write

Folder = Callable[[str], Path]

TOKENS = 10

SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.2}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a family's tiny model."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="module", params=[*FAMILIES])
def captioner(request: pytest.FixtureRequest, folder: Folder) -> Iterator[VlmCaptioner]:
    """Of each family; pictures of up to 112 pixels, three of them in some requests."""
    made = build(folder(request.param), side=112)
    yield made
    made.close()


def build(folder: Path, **options: Any) -> VlmCaptioner:
    made = create("vlm", folder, **{"retries": 0, "max_new_tokens": TOKENS, **options})
    assert isinstance(made, VlmCaptioner)
    return made


def picture(seed: int, height: int = 63, width: int = 112) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def request(
    seed: int, count: int = 1, prompt: str = "what happens?", **size: int
) -> CaptionRequest:
    frames = np.stack([picture(100 * seed + i, **size) for i in range(count)])
    times = tuple(0.5 * i for i in range(count))
    return CaptionRequest(frames, prompt, float(seed), f"video:{seed}", times_s=times)


def mixed() -> list[CaptionRequest]:
    """Requests of three lengths and two shapes of pictures, out of order."""
    upright = {"height": 112, "width": 63}
    return [
        request(0),
        request(1, 2),
        request(2, prompt="who is in the video?"),
        request(3),
        request(4, **upright),
        request(5, 2),
        request(6),
        request(7, **upright),
    ]


def by_transformers(
    captioner: VlmCaptioner, one: CaptionRequest, tokens: int = TOKENS
) -> tuple[int, ...]:
    """The tokens of transformers' own `generate()` for this request alone."""
    asked = captioner._asked(one, captioner.decoding)
    assert isinstance(asked, tuple)
    row = asked[1]
    out = captioner._model.generate(
        input_ids=row.ids,
        attention_mask=torch.ones_like(row.ids),
        **row.inputs,
        max_new_tokens=tokens,
        do_sample=False,
    )
    new = out[0, row.ids.shape[1] :].tolist()
    return tuple(new[:-1] if new[-1] == 2 else new)


def ids_of(captioner: VlmCaptioner, requests: list[CaptionRequest], **decoding: Any) -> list[Any]:
    asked = [captioner._asked(each, captioner.decoding) for each in requests]
    assert all(isinstance(each, tuple) for each in asked)
    rows = [each[1] for each in asked if isinstance(each, tuple)]
    settings = Decoding(**{"max_new_tokens": TOKENS, **decoding})
    return [(each.ids, each.finish_reason) for each in captioner._engine.generate(rows, settings)]


def test_every_family_writes_the_tokens_of_generate(captioner: VlmCaptioner) -> None:
    requests = mixed()
    expected = [by_transformers(captioner, each) for each in requests]
    assert [ids for ids, _ in ids_of(captioner, requests)] == expected
    assert len(set(expected)) > 4  # the text follows the picture


def test_a_batch_equals_single_requests_also_when_sampled(captioner: VlmCaptioner) -> None:
    requests = mixed()
    for settings in ({}, SAMPLED):
        whole = ids_of(captioner, requests, **settings)
        assert whole == [ids_of(captioner, [each], **settings)[0] for each in requests]


@pytest.mark.parametrize("settings", [{}, SAMPLED])
def test_prompts_read_one_by_one_and_rows_that_leave_change_nothing(
    captioner: VlmCaptioner, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    requests, engine = mixed(), captioner._engine
    first = ids_of(captioner, requests, **settings)
    ends = {ids[2 + i % 5] for i, (ids, _) in enumerate(first) if len(ids) > 6}
    monkeypatch.setattr(engine, "_eos", frozenset(ends))
    found, steps = [], []
    for compact, prefill_tokens in ((True, 8192), (False, 8192), (True, 1)):
        monkeypatch.setattr(engine, "_compact", compact)
        monkeypatch.setattr(engine.budget, "prefill_tokens", prefill_tokens)
        before = engine.row_steps
        found.append(ids_of(captioner, requests, **settings))
        steps.append(engine.row_steps - before)
    assert found[0] == found[1] == found[2]
    assert "stop" in {reason for _, reason in found[0]}
    assert steps[0] == steps[2] < steps[1]
    # As a model whose cache is of another kind is run: read together, nobody leaves.
    monkeypatch.setattr(engine, "_separable", False)
    assert ids_of(captioner, requests, **settings) == found[0]


@pytest.mark.parametrize(("name", "unit"), [("qwen2_5_vl", 28), ("qwen3_vl", 32)])
def test_rows_of_equal_length_at_other_positions_run_together(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str, unit: int
) -> None:
    """2 x 9 and 3 x 6 tokens of a picture: as many, but the text behind begins at 9 or at 6."""
    captioner = build(folder(name))
    shapes = [(2, 9), (3, 6), (9, 2), (6, 3), (3, 6)]
    requests = [request(i, height=h * unit, width=w * unit) for i, (h, w) in enumerate(shapes)]
    alone = [by_transformers(captioner, each) for each in requests]
    assert [ids for ids, _ in ids_of(captioner, requests)] == alone
    monkeypatch.setattr(captioner._engine, "_eos", frozenset({alone[0][1], alone[2][2]}))
    whole = ids_of(captioner, requests)
    assert whole == [ids_of(captioner, [each])[0] for each in requests]
    assert len({len(ids) for ids, _ in whole}) > 2


def test_a_caption_tells_its_tokens_and_how_it_ended(captioner: VlmCaptioner) -> None:
    made = captioner.caption([request(1)])[0]
    assert made.finish_reason in ("stop", "length")
    assert made.prompt_tokens > 10
    assert 0 < made.new_tokens <= TOKENS
    assert made.text == made.text.strip()


def test_a_layer_with_room_gives_what_a_layer_that_copies_gives() -> None:
    from transformers.cache_utils import DynamicLayer

    from models.captioners.vlm_cache import RoomyLayer

    def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)

    copying, prompt = DynamicLayer(), states(5)
    copying.update(*prompt)
    keys, values = ([each[:1], each[1:]] for each in prompt)
    roomy = RoomyLayer(keys, values, room=2)
    place = roomy.keys.data_ptr()
    for step in range(5):
        new = states(1, rows=3 if step < 3 else 2)
        for ours, theirs in zip(roomy.update(*new), copying.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == copying.get_seq_length() == 6 + step
        assert (roomy.keys.data_ptr() == place) == (step < 2)  # then there was no room
        if step == 2:
            for layer in (roomy, copying):
                layer.batch_select_indices(torch.tensor([0, 2]))


class RunsOut(torch.nn.Module):
    """A model whose memory holds `most` rows."""

    def __init__(self, model: Any, most: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.inner, self.most, self.asked = model, most, list[int]()
        self.error = error or torch.OutOfMemoryError("no memory")

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        rows = len(inputs["input_ids"])
        self.asked.append(rows)
        if rows > self.most:
            raise self.error
        return self.inner(*args, **inputs)


def test_memory_that_runs_out_halves_the_batch_and_loses_no_row(folder: Folder) -> None:
    captioner = build(folder("qwen2_5_vl"), side=112)
    requests = [request(i) for i in range(9)]
    expected = ids_of(captioner, requests)
    model = RunsOut(captioner._model, most=2)
    captioner._engine._model = model
    assert ids_of(captioner, requests) == expected
    assert captioner._engine.budget.rows <= 2
    model.asked.clear()
    ids_of(captioner, requests)
    assert max(model.asked) <= 2  # it is remembered
    model.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        ids_of(captioner, requests[:1])


@pytest.mark.parametrize("name", [*FAMILIES])
def test_half_precision_runs_and_angles_of_positions_are_not_rounded(
    folder: Folder, name: str
) -> None:
    captioner = build(folder(name), side=112, dtype="bfloat16")
    assert captioner.params()["dtype"] == "bfloat16"
    assert {each.finish_reason for each in captioner.caption(mixed()[:4])} <= {"stop", "length"}
    angles = {
        key: each.dtype for key, each in captioner._model.named_buffers() if "inv_freq" in key
    }
    assert angles
    assert set(angles.values()) == {torch.float32}


def test_another_error_is_not_taken_for_memory_that_ran_out(folder: Folder) -> None:
    captioner = build(folder("internvl"), side=112)
    captioner._engine._model = RunsOut(captioner._model, most=2, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        ids_of(captioner, [request(i) for i in range(4)])


def test_a_model_that_gives_no_number_fails_with_that_reason(folder: Folder) -> None:
    captioner = build(folder("internvl"), side=112)
    with torch.no_grad():
        captioner._model.model.language_model.norm.weight.fill_(torch.nan)
    made = captioner.caption([request(0)])[0]
    assert (made.status, made.finish_reason) == ("failed", "error")
    assert "no finite number" in made.reason


def test_times_are_written_before_the_pictures_and_a_system_message_first(folder: Folder) -> None:
    captioner = build(folder("qwen3_vl"), side=112, say_times=True, system="be brief", frames=2)
    assert captioner._talk.text(captioner._processor, request(1, 2)) == (
        "<s>system: be brief\n<s>user: "
        "<0.0 seconds><|vision_start|><|image_pad|><|vision_end|>"
        "<0.5 seconds><|vision_start|><|image_pad|><|vision_end|>what happens?\nassistant:"
    )
    assert captioner.sight.frames == 2


def test_a_template_of_ones_own_replaces_that_of_the_checkpoint(folder: Folder) -> None:
    template = "USER: {images}\n{prompt} ASSISTANT:"
    captioner = build(folder("llava_next"), side=112, template=template)
    text = captioner._talk.text(captioner._processor, request(1, 2, prompt="{images}?"))
    assert text == "USER: <image><image>\n{images}? ASSISTANT:"
    assert captioner.caption([request(1, 2)])[0].new_tokens > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template": "USER: {prompt}"}, "has to hold {images} once"),
        ({"template": "{images}{prompt}", "system": "x"}, "write everything into it"),
        ({"processor": {"max_pixles": 3}}, "did you mean 'max_pixels'"),
        ({"processor": {"size": "large"}}, "makes nothing of 1 pictures"),
        ({"frames": 0}, "option frames is 0; allowed: 1 to 64"),
        ({"side": 0}, "option side is 0"),
        ({"dtype": "half"}, "option dtype is 'half'"),
    ],
)
def test_what_is_wrong_with_options_is_said(
    folder: Folder, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as error:
        build(folder("qwen2_5_vl"), **options)
    assert told in str(error.value)
    if "dtype" not in options:
        with pytest.raises(UsageError):
            VlmCaptioner.check(folder("qwen2_5_vl"), options)


def test_the_first_token_is_never_there_twice(folder: Folder) -> None:
    captioner = build(folder("gemma3"), side=112)
    asked = captioner._asked(request(1), captioner.decoding)
    assert isinstance(asked, tuple)
    assert asked[1].ids[0].tolist().count(1) == 1


def test_options_of_the_image_processor_reach_it_and_the_recipe(folder: Folder) -> None:
    small = {"processor": {"max_pixels": 4 * 28 * 28}}
    few, many = (build(folder("qwen2_5_vl"), side=112, **each) for each in (small, {}))
    tokens = [each.caption([request(1)])[0].prompt_tokens for each in (few, many)]
    assert tokens[0] < tokens[1]
    assert VlmCaptioner.recipe(small)["processor"] == {"max_pixels": 4 * 28 * 28}
    assert "dtype" not in VlmCaptioner.recipe({"dtype": "float32"})


def test_what_a_model_thought_is_no_part_of_the_caption(folder: Folder) -> None:
    from models.captioners.thoughts import after_thinking

    assert (
        after_thinking("a man?\n</think>\n\nA man walks.", thinking=True).strip() == "A man walks."
    )
    assert after_thinking("<think>a man", thinking=False) == ""
    assert after_thinking("a man, or", thinking=True) == ""
    assert after_thinking("A man walks.", thinking=False) == "A man walks."
    captioner = build(folder("internvl"), side=112, template_options={"thinking": True})
    text = captioner._talk.text(captioner._processor, request(1))
    assert text.endswith("assistant:<think>\n")


def test_a_prompt_that_holds_a_mark_of_pictures_fails_alone(folder: Folder) -> None:
    captioner = build(folder("llava_next"), side=112)
    made = captioner.caption([request(0), request(1, prompt="<image> what?"), request(0)])
    assert [each.status == "failed" for each in made] == [False, True, False]
    assert "the processor refused it (ValueError" in made[1].reason
    assert made[0] == made[2]


def test_a_prompt_with_the_caption_longer_than_the_model_can_count_is_refused(
    folder: Folder,
) -> None:
    captioner = build(folder("internvl"), side=112, max_new_tokens=4090)
    with pytest.raises(UsageError, match="more than the 4096 positions"):
        captioner.caption([request(0)])


@pytest.fixture
def copied(folder: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder("qwen2_5_vl"), tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_weights_that_do_not_fit_are_an_error_that_names_them(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    del state["visual.merger.mlp.0.weight"]
    state["mtp.layers.0.weight"] = torch.zeros(2)
    save_file(state, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError) as error:
        build(copied)
    assert "missing 1 tensors: model.visual.merger.mlp.0.weight" in str(error.value)
    assert "unexpected 1 tensors: mtp.layers.0.weight" in str(error.value)
    with pytest.raises(UsageError) as error:
        build(copied, ignore_tensors=["mtp.*"])
    assert "mtp" not in str(error.value)


def test_weights_that_are_no_numbers_are_an_error_that_names_them(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    state["visual.merger.mlp.0.weight"][3] = torch.nan
    save_file(state, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"not finite .* model\.visual\.merger\.mlp\.0\.weight"):
        build(copied)


def test_a_configuration_of_another_size_does_not_give_random_weights(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"cannot be loaded|do not fit"):
        build(copied)


def test_the_trap_of_llavas_own_configuration_is_an_error(folder: Folder, tmp_path: Path) -> None:
    """specs §1.3 trap A: model_type llava beside original names gives a random network."""
    shutil.copytree(folder("llava_next"), tmp_path / "m")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    text = {"model_type": "llama", **sizes, "num_hidden_layers": 1, "vocab_size": 300}
    vision = {"model_type": "clip_vision_model", **sizes, "num_hidden_layers": 1}
    own = {"model_type": "llava", "mm_vision_tower": "x", "text_config": text}
    (tmp_path / "m" / "config.json").write_text(json.dumps(own | {"vision_config": vision}))
    with pytest.raises(UsageError, match=r"do not fit|cannot be loaded"):
        build(tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("qwen2_5_vlx", "did you mean 'qwen2_5_vl'"),
        ("", "is a model of kind ''"),
        ("florence2", "has an encoder and a decoder"),
    ],
)
def test_a_model_that_cannot_be_used_is_told_by_its_kind(
    tmp_path: Path, kind: str, told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UsageError) as error:
        VlmCaptioner.check(tmp_path, {})
    assert told in str(error.value)


def test_a_library_that_a_processor_wants_is_named(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolVLM's processor spells numbers of videos, and wants num2words for pictures, too."""
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    shutil.copytree(folder("idefics3"), tmp_path / "m")
    change(tmp_path / "m" / "processor_config.json", processor_class="SmolVLMProcessor")
    with pytest.raises(UsageError, match="`num2words` is required"):
        VlmCaptioner.check(tmp_path / "m", {})


def test_code_in_the_folder_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')")
    remote = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(remote))
    with pytest.raises(UsageError, match="never run"):
        VlmCaptioner.check(tmp_path, {})


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_code_for_pictures_in_the_folder_of_a_checkpoint_is_not_run_whatever_one_answers(
    file: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless told not to, transformers asks on the terminal, and runs it for a `y`."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    (copied / "evil.py").write_text(f"open({str(copied / 'run')!r}, 'w')\nclass Evil: pass\n")
    kind = {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}}
    change(copied / file, **(kind if file.startswith("pre") else {"image_processor": kind}))
    with pytest.raises(UsageError, match=r"processor in '.*' cannot be loaded .*custom code"):
        VlmCaptioner.check(copied, {})
    assert (asked, (copied / "run").exists()) == ([], False)


@pytest.mark.parametrize("value", ["evil/attention", {"text_config": "evil/attention"}])
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_does_not_have_attention_downloaded(
    name: str, value: object, copied: Path
) -> None:
    """With the package `kernels` transformers gets `ORG/NAME` from the hub, and runs it."""
    change(copied / "config.json", **{name: value})
    with pytest.raises(UsageError, match=r"'evil/attention'.*, which is code to be downloaded"):
        VlmCaptioner.check(copied, {})


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError: .*unsafe"),
        ("{% for i in range(1000000) %}x{% endfor %}", "Range too big"),
        ("{{ messages[7].content }}", "UndefinedError"),
    ],
)
def test_a_chat_template_that_takes_no_request_is_told_before_the_first(
    template: str, told: str, copied: Path
) -> None:
    (copied / "chat_template.jinja").write_text(template)
    for attempt in (lambda: VlmCaptioner.check(copied, {}), lambda: build(copied)):
        with pytest.raises(UsageError, match=f"does not take a request .*{told}"):
            attempt()


def test_a_checkpoint_is_needed_and_has_to_be_a_folder_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a checkpoint, got none"):
        create("vlm")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        create("vlm", tmp_path)


def test_a_checkpoint_without_chat_template_wants_one(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="write option template"):
        build(copied)
    template = "{images}{prompt}"
    assert build(copied, side=112, template=template).caption([request(0)])[0].prompt_tokens


def test_a_checkpoint_without_end_token_is_refused(copied: Path) -> None:
    change(copied / "tokenizer_config.json", eos_token=None)
    change(copied / "generation_config.json", eos_token_id=None)
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    (copied / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(UsageError, match="ends a text"):
        build(copied)


def test_without_torchvision_the_same_captions_come(folder: Folder, tmp_path: Path) -> None:
    """Its video processors need torchvision; a machine without it gives the same tokens."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "from models.compat import ensure_torchvision\n"
        "assert ensure_torchvision() == 'absent'\n"
        "import numpy as np\n"
        "from models.captioners import CaptionRequest, create\n"
        "made = create('vlm', sys.argv[1], side=112, max_new_tokens=6, retries=0)\n"
        "assert made._processor.video_processor is None\n"
        "frames = np.random.default_rng(100).integers(0, 256, (1, 63, 112, 3), dtype=np.uint8)\n"
        "print(made.caption([CaptionRequest(frames, 'what happens?', 0.0, 'k')])[0].raw, end='')\n"
    )
    where = str(folder("qwen3_vl"))
    done = subprocess.run(
        [sys.executable, str(program), where],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    frames = np.random.default_rng(100).integers(0, 256, (1, 63, 112, 3), dtype=np.uint8)
    here = build(folder("qwen3_vl"), side=112, max_new_tokens=6)
    assert done.stdout == here.caption([CaptionRequest(frames, "what happens?", 0.0, "k")])[0].raw


def test_it_is_offered_under_its_name() -> None:
    assert CAPTIONERS.get("vlm") is VlmCaptioner
    assert Talk().template is None
