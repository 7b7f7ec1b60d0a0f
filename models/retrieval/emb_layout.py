"""The layout of EMB's public checkpoints (`models.retrieval.emb`), and how one reads a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data.errors import UsageError
from models.retrieval.official import ForStore, OfficialLayout, Weights
from models.retrieval.parts.word_encoders import place_code

__all__ = ["EMB_LAYOUT", "PLACE"]

PLACE = 2
"""Columns of a clip's place, at the end of its features."""

_STACKS = {
    "clips_self": "f2f",
    "clips_words": "f2w",
    "clips_again": "v2v",
    "words_self": "w2w",
    "words_clips": "w2f",
    "words_again": "vq2q",
    "proposals_self": "p2p",
    "proposals_words": "p2w",
    "proposals_again": "s2s",
    "words_proposals": "w2p",
    "words_of_proposals": "pq2q",
}
_UNIT = {
    "query": "attention.query.conv1d",
    "key": "attention.key.conv1d",
    "value": "attention.value.conv1d",
    "mix1": "dense.0.conv1d",
    "mix2": "dense.2.conv1d",
    "norm1": "norm1",
    "norm2": "norm2",
    "depth": "guide.conv_layers.0",
    "point": "guide.conv_layers.1",
    "norm": "guide.layer_norm",
}
_READS = {
    "similarity.context": "cq_attention.w4C",
    "similarity.query": "cq_attention.w4Q",
    "similarity.both": "cq_attention.w4mlu",
    "mix.weight": "cq_attention.cqa_linear.conv1d.weight",
    "mix.bias": "cq_attention.cqa_linear.conv1d.bias",
    "pool": "cq_concat.weighted_pool.weight",
    "join.weight": "cq_concat.conv1d.conv1d.weight",
    "join.bias": "cq_concat.conv1d.conv1d.bias",
}
_TABLE = {"pad": "pad_vec", "unknown": "unk_vec", "known": "glove_vec"}
_PREDICTOR = r"heads\.0\.predictor\.predictor\."
_NAMES = (
    (r"encoders\.words\.(\w+)", lambda m: f"embedding_net.word_emb.{_TABLE[m[1]]}"),
    (r"encoders\.text\.(.*)", r"embedding_net.linear.conv1d.\1"),
    (r"encoders\.video\.(.*)", r"video_affine.linear.conv1d.\1"),
    (
        r"fuser\.(\w+)\.(?:layers|units|guides)\.(\d+)\.(\w+)\.(.*)",
        lambda m: f"encoder.{_STACKS[m[1]]}.layers.{m[2]}.{_UNIT[m[3]]}.{m[4]}",
    ),
    (r"fuser\.read_clips\.(.*)", lambda m: f"fuser1.{_READS.get(m[1], m[1])}"),
    (r"fuser\.read_proposals\.(.*)", lambda m: f"fuser2.{_READS.get(m[1], m[1])}"),
    (r"heads\.0\.predictor\.highlight\.(.*)", r"highlight_layer.conv1d.conv1d.\1"),
    (_PREDICTOR + r"(\w+)_states\.ahead\.(.*)", r"predictor.\1_encoder.rnn.\2"),
    (_PREDICTOR + r"(\w+)_states\.back\.(.*)", r"predictor.\1_encoder.rnn.\2_reverse"),
    (_PREDICTOR + r"(\w+)_states\.mix\.(.*)", r"predictor.\1_encoder.dense_output.conv1d.\2"),
    (_PREDICTOR + r"(\w+)_mix\.(.*)", r"predictor.\1_block.0.conv1d.\2"),
    (_PREDICTOR + r"(start|end)\.(.*)", r"predictor.\1_block.2.conv1d.\2"),
    (r"heads\.1\.scorer\.layers\.(.*)", r"ranker.encoders.\1"),
    (r"heads\.1\.scorer\.score\.(.*)", r"ranker.predictor.\1"),
)
_OPTIONS = {
    "dim": "hidden",
    "num_heads": "heads",
    "drop_rate": "dropout",
    "max_pos_len": "max_clips",
    "min_iou": "target_low",
    "max_iou": "target_high",
    "threshold": "elastic_low",
    "epochs": "epochs",
    "extend": "highlight_extend",
    "highlight_lambda": "highlight_weight",
    "rank_lambda": "proposal_weight",
}


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Our options; sizes are read from the tensors themselves."""
    layers = public.get("num_layers", 1)
    words = _shape(weights, "embedding_net.word_emb.glove_vec")
    characters = _shape(weights, "embedding_net.char_emb.char_emb.weight")
    return {ours: public[theirs] for theirs, ours in _OPTIONS.items() if theirs in public} | {
        "attention_layers": layers,
        "proposal_layers": layers,
        "video_dim": _shape(weights, "video_affine.linear.conv1d.weight")[1],
        "text_dim": words[1],
        "words": "ids",
        "vocabulary": words[0] + 2,
        "characters": characters[0],
        "character_dim": characters[1],
    }


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    if key not in weights:
        raise UsageError(
            f"the checkpoint has no '{key}', from which the size of the model is read; it is not "
            "of this model, or 'model' is not its state dict"
        )
    return tuple(weights[key].shape)


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The sine table, which is made by formula here, and the character branch, which the public
    code computes and does not use; a model of word vectors has no tables of words."""
    shapes: dict[str, tuple[int, ...]] = {"position.pe": (recipe["max_clips"], recipe["hidden"])}
    if recipe["words"] == "ids":
        branch, features = "embedding_net.char_emb", recipe["character_dim"]
        shapes[f"{branch}.char_emb.weight"] = (recipe["characters"], features)
        for i in range(4):
            outputs = 10 * (i + 1)
            shapes[f"{branch}.char_convs.{i}.0.weight"] = (outputs, features, 1, i + 1)
            shapes[f"{branch}.char_convs.{i}.0.bias"] = (outputs,)
    return shapes


def _dropped(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The tables of words and characters, of a model that is given vectors."""
    return (r"embedding_net\.(word|char)_emb\..*",) if recipe["words"] == "vectors" else ()


def _for_store(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "words": "vectors",
        "vocabulary": 0,
        "clip_place": "ignored",
        "video_dim": found["video_dim"] + PLACE,
    }


_FOR_STORE = ForStore(
    options=_for_store,
    data={"normalise": False, "max_tokens": None},
    word_encoder="glove",
    notes=(
        "its table of words is dropped: the word vectors of the store take its place, which must "
        "be those that it was trained with (GloVe, 840B, 300 numbers: the text encoder 'glove')",
        "the learned vector that all unknown words shared is lost: the text encoder leaves such "
        "words out (unknown: skip) or has zeros in their place (unknown: zero)",
        "features of clips and words are read as they are stored, not normalised, as its loader "
        "read them (data.normalise: false)",
    ),
)


def _tables(recipe: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"position.pe": place_code(recipe["max_clips"], recipe["hidden"])}


EMB_LAYOUT = OfficialLayout(
    names=_NAMES,
    options=_from_public,
    unused=_unused,
    tables=_tables,
    dropped=_dropped,
    for_store=_FOR_STORE,
    unseen={"num_heads": "heads"},
)
"""Names, options and tensors of the public code."""
