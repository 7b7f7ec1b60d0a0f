# ruff: noqa: ANN001, ANN202, E501, PIE810
"""Deterministic weights and inputs for the golden fixtures.

The fixtures hold only configuration and outputs.  Weights, features, masks and
targets are rebuilt from this file: every value depends only on a NAME (plus an
integer seed) and a SHAPE, never on torch's or numpy's distribution code.

Reproducibility: values come from the raw 64-bit output of numpy's PCG64 bit
generator (a stream numpy guarantees to keep) seeded with crc32 of the name.
Each raw word is split into four 16-bit integers whose sum is an (almost) normal
variate; everything up to one final float64 multiplication is integer arithmetic,
so the values are bit-identical on every platform.

Needs numpy and torch only.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

_SIGMA = math.sqrt(4.0 * (65536.0**2 - 1.0) / 12.0)  # std of a sum of four 16-bit uniforms


# --------------------------------------------------------------------------- primitives
def _raw(name: str, n: int) -> np.ndarray:
    if n == 0:
        return np.zeros(0, dtype=np.uint64)
    words = np.random.PCG64(zlib.crc32(name.encode("utf-8"))).random_raw(n)
    return np.asarray(words, dtype=np.uint64).reshape(n)


def int_normals(name: str, n: int) -> np.ndarray:
    """n integers, mean 0, standard deviation ~37837.2 (int64)."""
    w = _raw(name, n)
    m = np.uint64(0xFFFF)
    s = (w & m).astype(np.int64)
    for shift in (16, 32, 48):
        s += ((w >> np.uint64(shift)) & m).astype(np.int64)
    return s - 131070


def normals(name: str, shape, scale: float = 1.0) -> torch.Tensor:
    """float32 tensor of about-normal values, mean 0, std `scale`."""
    shape = tuple(int(x) for x in shape)
    v = int_normals(name, int(np.prod(shape, dtype=np.int64)) if shape else 1).astype(np.float64)
    v = v * (scale / _SIGMA)
    return torch.from_numpy(v.astype(np.float32)).reshape(shape)


def integers(name: str, n: int, lo: int, hi: int) -> list[int]:
    """n integers in [lo, hi)."""
    return [lo + int(w % np.uint64(hi - lo)) for w in _raw(name, n)]


def unit_rows(name: str, rows: int, dim: int) -> torch.Tensor:
    """rows x dim, each row of Euclidean length 1 (exact integer sum of squares)."""
    v = int_normals(name, rows * dim).reshape(rows, dim)
    length = np.sqrt((v * v).sum(axis=1).astype(np.float64))
    return torch.from_numpy((v.astype(np.float64) / length[:, None]).astype(np.float32))


# --------------------------------------------------------------------------- weights
# Parameters that are looked up or used as tokens / starting points, not multiplied with an
# activation: they get standard deviation 1 whatever their number of dimensions.
UNIT_STD = (
    "query_embed.weight",
    "rep_token",
    "rep_pos",
    "token_type_embeddings.weight",
    "position_embeddings.weight",
    "slots",
    "txt_mu",
    "vid_mu",
    "decoder.span_embed",
    "word_emb.unk_vec",
    "word_emb.glove_vec",
    "char_emb.char_emb.weight",
)
# Gains other than 1.  They keep tokens and object queries distinguishable: with gain 1 everywhere a
# randomly weighted decoder gives nearly the same answer for every query.
GAIN = (
    ("self_attn.out_proj.weight", 0.5),
    ("cross_attn.out_proj.weight", 2.0),
    ("multihead_attn.out_proj.weight", 2.0),
    ("ca_qpos_sine_proj.weight", 2.0),
    ("ca_qpos_proj.weight", 2.0),
    ("ca_kpos_proj.weight", 2.0),
    ("ca_qcontent_proj.weight", 2.0),
    ("ca_kcontent_proj.weight", 2.0),
    ("class_embed.weight", 1.5),
)
# The moment encoder of the CG-DETR family feeds sigmoid(token . clip) into a plain binary cross entropy;
# its last norm is made small so that the sigmoid does not saturate in float32 (where log(1 - p) has no digits left).
SMALL_NORM = ("mcls_encoder.", "norm2.", 0.25)
UNTOUCHED = (".pe",)  # fixed sine tables kept as buffers
ZERO = (".pad_vec",)  # padding word vector


def _fill_one(name: str, t: torch.Tensor) -> torch.Tensor:
    shape = tuple(t.shape)
    if not t.is_floating_point() or any(name.endswith(s) for s in UNTOUCHED):
        return t.clone()  # counters, pointers, sine tables
    if any(name.endswith(s) for s in ZERO):
        return torch.zeros(shape)
    if name.endswith("vid_queue") or name.endswith("txt_queue"):  # (d, length), unit columns
        return unit_rows(name, shape[1], shape[0]).t().contiguous()
    if name.endswith("running_mean"):
        return normals(name, shape, 0.1)
    if name.endswith("running_var"):
        return 1.0 + normals(name, shape, 0.1).abs()
    if len(shape) == 0:  # learned temperature
        return 0.07 * (1.0 + normals(name, shape, 0.1))
    if name.endswith("activation.weight"):  # PReLU slope
        return 0.25 + normals(name, shape, 0.02)
    if any(name.endswith(s) for s in UNIT_STD):
        return normals(name, shape, 1.0)
    last = name.rsplit(".", 1)[-1]
    if len(shape) == 1:
        if SMALL_NORM[0] in name and SMALL_NORM[1] in name:
            return SMALL_NORM[2] * (normals(name, shape, 0.1) + (0.0 if "bias" in last else 1.0))
        if "bias" in last:  # bias, in_proj_bias, bias_ih_l0 ...
            return normals(name, shape, 0.1)
        return 1.0 + normals(name, shape, 0.1)  # norm gains
    fan_in = shape[0] if (len(shape) == 2 and shape[1] == 1) else int(np.prod(shape[1:]))
    gain = next((g for suffix, g in GAIN if name.endswith(suffix)), 1.0)
    return normals(name, shape, gain / math.sqrt(fan_in))


def fill_state_dict(sd: dict, tied: dict | None = None, seed: int = 0) -> dict:
    """New state dict with the same keys; see README.md for the rules.

    `tied` maps an alias key to its canonical key (the two names are one tensor in the
    public implementation); aliases receive the values of the canonical key.
    `seed` != 0 makes another set of values: every name is prefixed with "<seed>/".
    Values are made in float32 and cast to the tensor's own floating dtype.
    """
    tied = tied or {}
    prefix = f"{seed}/" if seed else ""
    out = {}
    for name, t in sd.items():
        v = _fill_one(prefix + tied.get(name, name), t)
        out[name] = v.to(t.dtype) if t.is_floating_point() else v
    return out


# --------------------------------------------------------------------------- inputs
def _features(name, lengths, dim):
    top = max(lengths)
    out = torch.zeros(len(lengths), top, dim)
    mask = torch.zeros(len(lengths), top)
    for i, n in enumerate(lengths):
        out[i, :n] = unit_rows(f"{name}/{i}", n, dim)
        mask[i, :n] = 1.0
    return out, mask


def _add_tef(feat, lengths):
    b, top, _ = feat.shape
    tef = torch.zeros(b, top, 2)
    for i, n in enumerate(lengths):
        for k in range(n):
            tef[i, k, 0] = k / n
            tef[i, k, 1] = (k + 1) / n
    return torch.cat([feat, tef], dim=2)


def _windows(name, n):
    """1-3 disjoint windows [s, e) in clips; clip n-1 is always outside."""
    count = max(1, min(1 + integers(name + "/count", 1, 0, 3)[0], (n - 1) // 2))
    edges = [(n - 1) * k // count for k in range(count + 1)]
    res = []
    for k in range(count):
        lo, hi = edges[k], edges[k + 1]
        s = integers(f"{name}/s{k}", 1, lo, max(lo + 1, hi - 1))[0]
        e = integers(f"{name}/e{k}", 1, s + 1, hi + 1)[0] if hi > s + 1 else s + 1
        res.append((s, e))
    return res


def make_inputs(case: dict) -> dict:
    """case: seed, video_lengths, text_lengths, video_dim, text_dim, tef (bool), vids (list of str).

    All padding is zero.  Spans are (centre, width) / own length, shifted by a quarter clip so that
    no window edge falls on a clip edge: a window [s, e) has start (s+.25)/L and end (e+.25)/L.
    """
    seed, vl, tl = case["seed"], list(case["video_lengths"]), list(case["text_lengths"])
    tag = f"in{seed}"
    vid, vmask = _features(tag + "/video", vl, case["video_dim"])
    txt, tmask = _features(tag + "/text", tl, case["text_dim"])
    neg, nmask = _features(tag + "/negtext", tl[::-1], case["text_dim"])
    shifted = torch.zeros_like(vid)
    for i, n in enumerate(vl):
        shifted[i, :n] = vid[i, :n].flip(0)
    if case.get("tef", True):
        vid, shifted = _add_tef(vid, vl), _add_tef(shifted, vl)

    b, top = vmask.shape
    spans, windows = [], []
    relevant = torch.zeros(b, top)
    label = torch.zeros(b, top)
    pos = torch.zeros(b, 2, dtype=torch.long)
    negi = torch.zeros(b, 2, dtype=torch.long)
    ts = torch.zeros(b, top, 2)
    ts_win = torch.zeros(b, top)
    nn_span = torch.zeros(b, top, 2)
    for i, n in enumerate(vl):
        w = _windows(f"{tag}/win/{i}", n)
        windows.append(w)
        xx = [((s + 0.25) / n, (e + 0.25) / n) for s, e in w]
        spans.append(torch.tensor([[(a + c) / 2, c - a] for a, c in xx], dtype=torch.float32))
        inside = [k for s, e in w for k in range(s, e)]
        outside = [k for k in range(n) if k not in inside]
        marks = integers(f"{tag}/mark/{i}", n, 1, 13)
        for k in inside:
            relevant[i, k] = 1.0
            label[i, k] = float(marks[k])
        best = max(inside, key=lambda k: (marks[k], -k))
        worst = min(inside, key=lambda k: (marks[k], k))
        pos[i] = torch.tensor([best, inside[integers(f"{tag}/pos/{i}", 1, 0, len(inside))[0]]])
        negi[i] = torch.tensor([worst, outside[integers(f"{tag}/neg/{i}", 1, 0, len(outside))[0]]])
        for k in range(n):
            c = (k + 0.5) / n
            a, e = min(xx, key=lambda p: abs(c - p[0]) + abs(c - p[1]))
            ts[i, k] = c
            nn_span[i, k, 0], nn_span[i, k, 1] = a, e
            ts_win[i, k] = float(a <= c <= e)
    return {
        "src_vid": vid,
        "src_vid_mask": vmask,
        "src_txt": txt,
        "src_txt_mask": tmask,
        "neg_src_txt": neg,
        "neg_src_txt_mask": nmask,
        "shifted_vid": shifted,
        "vid": list(case.get("vids") or [f"video{i}_0.0_150.0" for i in range(b)]),
        "qid": list(range(b)),
        "windows": windows,
        "spans": spans,
        "relevant_clips": relevant,
        "saliency_all_labels": label,
        "saliency_pos_labels": pos,
        "saliency_neg_labels": negi,
        "timestamp": ts,
        "timestamp_mask": vmask.clone(),
        "timestamp_window": ts_win,
        "span_labels_nn": nn_span,
        "saliency_scores": label / 12.0,
    }


def make_word_inputs(case: dict) -> dict:
    """Inputs of the span-based baseline (word ids instead of text features).

    case: seed, video_lengths, text_lengths, video_dim, word_size, char_size.
    """
    seed, vl, tl = case["seed"], list(case["video_lengths"]), list(case["text_lengths"])
    tag = f"in{seed}"
    vid, vmask = _features(tag + "/video", vl, case["video_dim"])
    b, n = len(tl), max(tl)
    words = torch.zeros(b, n, dtype=torch.long)
    chars = torch.zeros(b, n, 6, dtype=torch.long)
    start, end, duration = [], [], []
    for i, k in enumerate(tl):
        words[i, :k] = torch.tensor(integers(f"{tag}/word/{i}", k, 1, case["word_size"]))
        chars[i, :k] = torch.tensor(integers(f"{tag}/char/{i}", k * 6, 1, case["char_size"])).view(
            k, 6
        )
        s = integers(f"{tag}/start/{i}", 1, 0, vl[i] // 2)[0]
        start.append(s)
        end.append(integers(f"{tag}/end/{i}", 1, s + 2, vl[i] - 2)[0])
        duration.append(float(vl[i]) * 0.75 + i)
    return {
        "video": vid,
        "video_mask": vmask,
        "video_lengths": torch.tensor(vl),
        "word_ids": words,
        "char_ids": chars,
        "query_mask": (words != 0).float(),
        "start": torch.tensor(start),
        "end": torch.tensor(end),
        "duration": torch.tensor(duration),
    }
