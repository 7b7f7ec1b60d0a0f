"""The study itself: how many unreasonable triplets become reasonable, and the other way round.

Hong et al., "Prior Knowledge Integration via LLM Encoding and Pseudo Event Regulation for Video
Moment Retrieval" (LLMEPET), ACM MM 2024, §3. A triplet of a pair (a, b) and a third concept c is
unreasonable if sim(a, b) is below the larger of sim(a, c) and sim(b, c); a tie is reasonable. What
the paper leaves open is an option here (specs/llmepet_and_pseudo_events.md §7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.llama_files import LlamaLayers
from training.feasibility.inputs import Lift, Triplets, lifted
from training.feasibility.refining import Context, Control, Refiner, refined, refiner_of

__all__ = ["Outcome", "Setting", "Study", "fused", "is_reasonable", "mcnemar"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """One cell of the sweep.

    Args:
        layers: zero-based numbers.
        control: what takes the place of the layers.
        alpha: share of the random vectors in the fused ones (Eq. 1).
        p: probability that an element of a random vector is zero.
        seed: of the random vectors, of the lift, of random weights and permuted roles.
    """

    layers: tuple[int, ...]
    control: Control
    alpha: float
    p: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one setting did to N triplets.

    Args:
        setting: which.
        unreasonable: triplets that were unreasonable before.
        improved: of those, how many are reasonable afterwards.
        reasonable: triplets that were reasonable before.
        deteriorated: of those, how many are unreasonable afterwards.
        difference_ci: interval of the net gain, `(improved − deteriorated) / N`, from a bootstrap
            over triplets.
        p_value: of McNemar's exact test that both changes are as likely.
        cosine_before: mean cosine of the three pairs of a triplet; near 1 all concepts collapsed.
        cosine_after: the same afterwards.
    """

    setting: Setting
    unreasonable: int
    improved: int
    reasonable: int
    deteriorated: int
    difference_ci: tuple[float, float]
    p_value: float
    cosine_before: float
    cosine_after: float

    @property
    def improved_share(self) -> float | None:
        """Of the unreasonable; None if there were none."""
        return self.improved / self.unreasonable if self.unreasonable else None

    @property
    def deteriorated_share(self) -> float | None:
        """Of the reasonable; None if there were none."""
        return self.deteriorated / self.reasonable if self.reasonable else None

    @property
    def difference(self) -> float:
        """Net gain, a share of all triplets."""
        return (self.improved - self.deteriorated) / (self.unreasonable + self.reasonable)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        shares = {
            "improved_share": self.improved_share,
            "deteriorated_share": self.deteriorated_share,
            "difference": self.difference,
        }
        values = asdict(self)
        return {**values.pop("setting"), **values, **shares}


@dataclass(frozen=True)
class Study:
    """Everything that a sweep keeps fixed.

    Args:
        triplets: of concepts.
        vectors: (C, E) one per concept.
        held: layers of an LLM.
        context: what a concept is refined together with.
        lift: how vectors get the width of the LLM.
        similarity: `cos`, or `dot` of the vectors as they are.
        before: whether triplets are judged before the refinement by the `text` vectors, as the
            paper words it, or by the `fused` ones, so that only the refinement counts.
        final_norm: of the LLM: `loaded`, `ones` or `none`.
        rope: whether tokens have rotary positions.
        causal: whether a token reads only those before it.
        resamples: of the bootstrap.
        level: of its interval.
        device: where the layers run.
    """

    triplets: Triplets
    vectors: Floats
    held: LlamaLayers
    context: Context = "triplet"
    lift: Lift = "pad"
    similarity: Literal["cos", "dot"] = "cos"
    before: Literal["text", "fused"] = "text"
    final_norm: Literal["loaded", "ones", "none"] = "loaded"
    rope: bool = False
    causal: bool = False
    resamples: int = 2000
    level: float = 0.95
    device: str = "cpu"

    def run(self, settings: Sequence[Setting]) -> Iterator[Outcome]:
        """The outcome of every setting, in order."""
        for setting in settings:
            yield self.outcome(setting)

    def options(self) -> dict[str, Any]:
        """What a sweep keeps fixed beside its inputs, plain."""
        inputs = {"triplets", "vectors", "held"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in inputs}

    def outcome(self, setting: Setting) -> Outcome:
        """Of one setting."""
        rows = self._roles(setting)
        mixed = fused(self.vectors, setting.alpha, setting.p, setting.seed)
        old = (self.vectors if self.before == "text" else mixed)[rows]
        new = self._refined(setting, mixed, rows, self.context)
        was, now = (is_reasonable(similarities(each, self.similarity)) for each in (old, new))
        change = now.astype(int) - was.astype(int)
        improved, deteriorated = int((change > 0).sum()), int((change < 0).sum())
        return Outcome(
            setting,
            unreasonable=int((~was).sum()),
            improved=improved,
            reasonable=int(was.sum()),
            deteriorated=deteriorated,
            difference_ci=self._interval(change, setting.seed),
            p_value=mcnemar(improved, deteriorated),
            cosine_before=float(similarities(old, "cos").mean()),
            cosine_after=float(similarities(new, "cos").mean()),
        )

    def matrices(self, setting: Setting) -> tuple[Floats, Floats]:
        """Cosines of all concepts before and after (Fig. 1 d–f), each (C, C); all concepts are
        refined together, as those of a matrix must be."""
        mixed = fused(self.vectors, setting.alpha, setting.p, setting.seed)
        new = self._refined(setting, mixed, np.arange(len(mixed))[None], "all")[0]
        before, after = (
            each / np.linalg.norm(each, axis=1, keepdims=True) for each in (mixed, new)
        )
        return before @ before.T, after @ after.T

    def _refined(
        self, setting: Setting, mixed: Floats, rows: NDArray[np.int64], context: Context
    ) -> Floats:
        seed = setting.seed if setting.control == "random-weights" else 0
        refiner = self._refiner(setting.control, setting.layers, seed)
        wide = lifted(mixed, self.held.spec.width, self.lift, setting.seed)
        return refined(refiner, wide, rows, context, self.device)

    def _refiner(self, control: Control, layers: tuple[int, ...], seed: int) -> Refiner:
        """The last one is kept, and it alone: random layers of a 7B LLaMA take longer to draw than
        to run, and two sets of layers may not fit the device."""
        key = control, layers, seed
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = refiner_of(
                control,
                self.held,
                layers,
                final_norm=self.final_norm,
                rope=self.rope,
                causal=self.causal,
                seed=seed,
                device=self.device,
            )
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[Control, tuple[int, ...], int], Refiner]:
        return {}

    def _roles(self, setting: Setting) -> NDArray[np.int64]:
        """Concepts of each triplet; for `permuted` in an order that means nothing."""
        if setting.control != "permuted":
            return self.triplets.rows
        rng = np.random.default_rng(setting.seed)
        return rng.permuted(self.triplets.rows, axis=1)

    def _interval(self, change: NDArray[np.int64], seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        count = len(change)
        means = [change[rng.integers(0, count, count)].mean() for _ in range(self.resamples)]
        tail = (1 - self.level) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)


def fused(vectors: Floats, alpha: float, p: float, seed: int) -> Floats:
    """`(1 − α) c + α c'` (Eq. 1): c' is a random vector of each concept, as long as c, whose
    elements are zero with probability p."""
    rng = np.random.default_rng(seed)
    random = rng.normal(size=vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    random *= lengths / np.linalg.norm(random, axis=1, keepdims=True)
    random *= rng.random(vectors.shape) >= p
    return ((1 - alpha) * vectors + alpha * random).astype(np.float32)


def similarities(vectors: Floats, how: Literal["cos", "dot"]) -> NDArray[np.float64]:
    """(N, 3) of (a, b), (a, c), (b, c) for (N, 3, W)."""
    x = vectors.astype(np.float64)
    if how == "cos":
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    return np.stack([(a * b).sum(-1), (a * c).sum(-1), (b * c).sum(-1)], axis=1)


def is_reasonable(pairs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the pair is at least as similar as either is to the third; (N, 3) as (N,)."""
    found: NDArray[np.bool_] = pairs[:, 0] >= pairs[:, 1:].max(axis=1)
    return found


def mcnemar(improved: int, deteriorated: int) -> float:
    """Two-sided exact p that `improved` and `deteriorated` come from a fair coin."""
    count, few = improved + deteriorated, min(improved, deteriorated)
    tail: float = sum(math.comb(count, k) for k in range(few + 1)) / 2**count
    return min(1.0, 2 * tail)
