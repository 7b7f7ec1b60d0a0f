"""`probe`: what a media file really holds, by decoding all of it in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from data.store.types import Row, Schema
from pipeline.stage import STAGES, Inputs, Item, RowStage
from pipeline.stages.common import Configured, WorkerOptions, built, video_of

if TYPE_CHECKING:
    from data.video import IsolatedDecoder

__all__ = ["ProbeOptions", "ProbeStage"]


class ProbeOptions(WorkerOptions):
    """Section `probe` of pipeline.yaml."""


@STAGES.register("probe")
class ProbeStage(Configured, RowStage):
    """Facts of one video: `VideoFacts` as the row's facts, and its grid.

    A file that cannot be used raises the InputError of the decoder (reasons: `data.video`). What
    happens to a video with undecodable packets is the job's policy `damaged`.
    """

    name = "probe"
    Options: ClassVar[type[Any]] = ProbeOptions
    options: ProbeOptions
    _decoder: IsolatedDecoder | None = None

    @property
    def schema(self) -> Schema:
        """Facts only."""
        return Schema()

    def params(self) -> Mapping[str, Any]:
        """The decoders and the policy; the grid's clip length."""
        return {
            "clip_len_s": self.context.clip_len_s,
            "decoder": self.context.decoder,
            "fallbacks": list(self.context.fallbacks),
            "damaged": self.context.damaged,
        }

    def setup(self) -> None:
        """Make ready a decoder; its child process starts with the first video."""
        from data.video import IsolatedDecoder

        self._decoder = IsolatedDecoder(
            self.context.decoder,
            fallbacks=self.context.fallbacks,
            damaged=self.context.damaged,
            timeout_s=self.context.decode_timeout_s,
            limits=self.context.limits,
        )

    def close(self) -> None:
        """End the child process."""
        if self._decoder is not None:
            self._decoder.close()

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Decode the whole (part of the) video without keeping pictures."""
        del inputs
        facts = built(self._decoder, self.name).probe(video_of(item))
        return Row(item.key, facts.grid(self.context.clip_len_s), facts=facts.to_json())
