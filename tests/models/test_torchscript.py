from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.backbones import create
from models.compat import ensure_torchvision
from models.torchscript import is_torchscript, read_torchscript
from models.weights import read_checkpoint

# Files of this kind are made by functions that torch 2.13 calls deprecated; ours only reads them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 64,
        "heads": 1,
        "layers": 1,
    },
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A small CLIP saved as OpenAI saved theirs: traced, in half precision, with three facts."""
    ensure_torchvision()
    import open_clip

    torch.manual_seed(3)
    net = open_clip.model.CLIP(**CONFIG).eval()
    for name, value in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 49408)):
        vars(net).pop(name, None)  # open_clip keeps two of them as numbers
        net.register_buffer(name, torch.tensor(value))
    ids = torch.zeros(1, 16, dtype=torch.long)
    with torch.no_grad():
        program = torch.jit.trace(net, (torch.zeros(1, 3, 32, 32), ids), check_trace=False)
    file = tmp_path_factory.mktemp("traced") / "ViT-small.pt"
    torch.jit.save(program.half(), file)
    return net.half(), file


class Branches(nn.Module):
    """A scripted module: nested, with a shared parameter, lists, a transposed view and text."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.first.weight
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("brain", torch.ones(2, dtype=torch.bfloat16))
        self.sizes = [1, 2, 3]
        self.title = "branches"

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.tied(x) + self.sizes[0]


def test_a_traced_clip_gives_the_tensors_that_torch_itself_would_give(
    traced: tuple[nn.Module, Path],
) -> None:
    net, file = traced
    assert is_torchscript(file)
    state = read_torchscript(file)
    want = torch.jit.load(file).state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[key], want[key]) for key in want)
    assert state.keys() - net.state_dict().keys() == {"attn_mask"}  # a buffer that is not kept
    assert state["visual.conv1.weight"].dtype == torch.float16


def test_a_clip_loads_from_openais_kind_of_file_and_is_called_openais(
    traced: tuple[nn.Module, Path],
) -> None:
    net, file = traced
    backbone = create("clip", file)
    assert (backbone.dim, backbone.size) == (32, 32)
    assert backbone.weights.stored == "float16"
    same = create("clip", dict(net.state_dict()))
    assert backbone.weights.sha256 == same.weights.sha256


def test_a_scripted_module_gives_the_tensors_that_torch_itself_would_give(tmp_path: Path) -> None:
    module = Branches()
    torch.jit.save(torch.jit.script(module), tmp_path / "s.pt")
    state = read_checkpoint(tmp_path / "s.pt")
    want = module.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[key], want[key]) for key in want)


def test_a_file_of_tensors_is_no_program(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    assert not is_torchscript(tmp_path / "w.pt")
    (tmp_path / "n.pt").write_bytes(b"PK\x03\x04 no archive")
    assert not is_torchscript(tmp_path / "n.pt")


# --- hostile archives


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive again, with members changed, or left out where None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def archive(folder: Path, content: bytes, storage: bytes = b"\0" * 16) -> Path:
    with zipfile.ZipFile(folder / "evil.pt", "w") as file:
        file.writestr("m/data.pkl", content)
        file.writestr("m/constants.pkl", b"\x80\x02).")
        file.writestr("m/data/0", storage)
    return folder / "evil.pt"


def plain(value: Any) -> bytes:
    """Instructions that push a value of numbers, strings and tuples."""
    return pickle.dumps(value, protocol=2).removeprefix(b"\x80\x02").removesuffix(b".")


def tensor_pickle(
    size: Any, stride: Any, offset: Any = 0, count: int = 4, key: str = "0", after: bytes = b""
) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride)` inside of a module, written by hand."""
    reference = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain(key) + plain("cpu")
    reference += plain(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + plain(offset) + plain(size)
    call += plain(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR" + after
    return b"\x80\x02c__torch__\nNet\n)\x81}(" + plain("w") + call + b"ub."


def test_the_hand_written_archive_is_read(tmp_path: Path) -> None:
    state = read_torchscript(archive(tmp_path, tensor_pickle((2, 2), (2, 1))))
    assert torch.equal(state["w"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor_pickle((3, 2), (2, 1)), "claims more numbers than were stored"),
        (tensor_pickle((10**12,), (0,)), "claims more numbers than were stored"),
        (tensor_pickle((2, 2), (2, 1), offset=1), "claims more numbers than were stored"),
        (tensor_pickle((2,), (-1,)), "a shape that is no shape"),
        (tensor_pickle((2, 2), (1,)), "a shape that is no shape"),
        (tensor_pickle((2,), (1,), count=400), "does not hold the 400 numbers"),
        (tensor_pickle((2,), (1,), key="9"), "member m/data/9 is missing"),
        (tensor_pickle((2,), (1,), key="../../x"), "is missing"),
        (tensor_pickle((2,), (1,), after=b"}b"), "would change one of the parts that read it"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "would change one of the parts"),
        (b"\x80\x02}.", "it holds no module"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "asks for os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "asks for builtins.eval"),
        (b"\x80\x02c__torch__\nNet\nX\x01\x00\x00\x00a\x85\x81.", "gives arguments to a module"),
        (b"\x80\x02(i__torch__\nNet\n.", "has the instruction INST"),
        (b"\x80\x04\x8c\x01ar\xff\xff\xff\x7f.", "asks for more memory"),
        (b"\x80\x02c__torch__\nNet\n)\x81}(X\x01\x00\x00\x00", "damaged"),
        (b"\x80\x02c__torch__\nNet\n)\x81q\x00}(X\x01\x00\x00\x00mh\x00ub.", "without end"),
    ],
)
def test_a_hostile_or_damaged_archive_is_refused_with_a_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(UsageError, match="cannot be read safely") as caught:
        read_checkpoint(archive(tmp_path, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_that_would_run_something_runs_nothing(
    tmp_path: Path, traced: tuple[nn.Module, Path]
) -> None:
    harm = pickle.dumps(Harm(tmp_path / "harmed"), protocol=2)
    evil = rewritten(
        traced[1],
        tmp_path / "evil.pt",
        lambda name, content: harm if name.endswith("/data.pkl") else content,
    )
    with pytest.raises(UsageError, match=r"mkdir, which is more than modules.*Nothing was run"):
        read_checkpoint(evil)
    assert not (tmp_path / "harmed").exists()


def test_a_program_in_the_archive_is_not_looked_at(
    tmp_path: Path, traced: tuple[nn.Module, Path]
) -> None:
    changed = rewritten(
        traced[1],
        tmp_path / "program.pt",
        lambda name, content: b"raise SystemExit" if "/code/" in name else content,
    )
    assert read_torchscript(changed).keys() == read_torchscript(traced[1]).keys()


def test_compressed_truncated_and_big_endian_archives_are_refused(
    tmp_path: Path, traced: tuple[nn.Module, Path]
) -> None:
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(traced[1]) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UsageError, match="is compressed or too large"):
        read_checkpoint(packed)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(traced[1].read_bytes()[:50_000])
    with pytest.raises(UsageError, match="truncated, or of another kind"):
        read_checkpoint(cut)
    short = rewritten(
        traced[1],
        tmp_path / "short.pt",
        lambda name, content: content[:-2] if name.endswith("/data/1") else content,
    )
    with pytest.raises(UsageError, match="storage 1 does not hold"):
        read_checkpoint(short)
    big = rewritten(
        traced[1],
        tmp_path / "big.pt",
        lambda name, content: b"big" if name.endswith("/byteorder") else content,
    )
    with pytest.raises(UsageError, match="big-endian"):
        read_checkpoint(big)
