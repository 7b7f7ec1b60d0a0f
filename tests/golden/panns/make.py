"""Writes cnn14.npz beside this file; the README says how to run it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import rule  # noqa: E402 - lies beside this file


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from models import Cnn14  # the public file, not ours: it stands first on the path

    torch.set_num_threads(1)
    net = Cnn14(32000, 1024, 320, 64, 50, 14000, 527).eval()
    state = net.state_dict()
    filled = rule.weights({name: tuple(value.shape) for name, value in state.items()})
    net.load_state_dict(state | {name: torch.from_numpy(value) for name, value in filled.items()})
    written = {"names": np.array(sorted(state)), "melW": state["logmel_extractor.melW"].numpy()}
    for part in ("real", "imag"):
        basis = state[f"spectrogram_extractor.stft.conv_{part}.weight"].numpy()
        written[f"conv_{part}"] = basis[::73, 0, ::37]
    with torch.no_grad():
        for name in rule.LENGTHS:
            out = net(torch.from_numpy(rule.sound(name)))
            log_mel = net.logmel_extractor(
                net.spectrogram_extractor(torch.from_numpy(rule.sound(name)))
            )
            written[f"{name}/embedding"] = out["embedding"].numpy()
            written[f"{name}/clipwise_output"] = out["clipwise_output"].numpy()
            written[f"{name}/log_mel"] = log_mel[:, 0, ::10].numpy()
    np.savez_compressed(HERE / "cnn14.npz", **written)


main()
