"""Where servers of one protocol differ: names of the limit and of the penalty for repetition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.errors import UsageError
from models.captioners.generating import Decoding
from models.captioners.remote.address import OPENAI_HOST

__all__ = ["DIALECTS", "Dialect"]


@dataclass(frozen=True)
class Dialect:
    """What a server calls things.

    Args:
        limit: name of the limit of new tokens.
        penalty: name of the penalty for repetition; "" where there is none.
        frequency: whether that is OpenAI's, which is subtracted from logits as often as a token
            was there, not transformers', by which they are divided once.
        samples: whether it lets itself be told how to sample.
    """

    limit: str
    penalty: str = ""
    frequency: bool = False
    samples: bool = True

    @property
    def names(self) -> set[str]:
        """Fields of the request that this dialect fills."""
        return {self.limit, self.penalty} - {""}

    def fields(self, decoding: Decoding, seed: int) -> dict[str, Any]:
        """The fields of a request that say how tokens are chosen.

        What is not needed is not sent: not every server knows every word. Greedy decoding needs
        neither `top_p` nor a seed.
        """
        fields: dict[str, Any] = {self.limit: decoding.max_new_tokens}
        if not self.samples:
            return fields
        fields["temperature"] = decoding.temperature
        if decoding.temperature > 0:
            fields |= {"top_p": decoding.top_p, "seed": seed}
            fields |= {"top_k": decoding.top_k} if decoding.top_k else {}
        if decoding.repetition_penalty != 1.0:
            fields[self.penalty] = self._penalty(decoding.repetition_penalty)
        return fields

    def _penalty(self, penalty: float) -> float:
        # The two are different things. Only the retry of a caption that loops comes here (1.1):
        # OpenAI's reference calls 0.1 to 1 reasonable to reduce repetition somewhat.
        return min(2.0, round(5 * (penalty - 1), 3)) if self.frequency else penalty

    def check(self, name: str, host: str, decoding: Decoding) -> None:
        """UsageError if this dialect cannot be right for a host or for what is asked.

        Args:
            name: of the dialect.
            host: of the server.
            decoding: as configured.
        """
        if host == OPENAI_HOST and "max_tokens" in self.names:
            raise UsageError(
                f"captioner openai: {OPENAI_HOST} does not speak dialect {name}; set dialect: "
                "openai, or openai-reasoning for models that refuse a temperature"
            )
        of_others = {"repetition_penalty": decoding.repetition_penalty != 1.0}
        of_others["top_k"] = decoding.top_k != 0
        for option, is_set in of_others.items():
            if is_set and (self.frequency or not self.samples):
                raise UsageError(
                    f"captioner openai: {option} is unknown to servers of dialect {name}; leave it "
                    "out (theirs go into extra, e.g. extra: {presence_penalty: 0.5})"
                )
        if not self.samples and (decoding.temperature, decoding.top_p) != (0.0, 1.0):
            raise UsageError(
                f"captioner openai: models of dialect {name} refuse temperature and top_p; leave "
                "them out"
            )


DIALECTS: dict[str, Dialect] = {
    # vLLM, SGLang, LMDeploy; others ignore a penalty that they do not know.
    "vllm": Dialect("max_tokens", "repetition_penalty"),
    "llama.cpp": Dialect("max_tokens", "repeat_penalty"),
    "openai": Dialect("max_completion_tokens", "frequency_penalty", frequency=True),
    "openai-reasoning": Dialect("max_completion_tokens", samples=False),
}
