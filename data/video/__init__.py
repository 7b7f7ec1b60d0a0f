"""Video decoding behind one interface: frames by timestamp, whatever the library.

    with IsolatedDecoder() as decoder:                # child process; what stages get
        facts = decoder.probe(video)
        for window in decoder.windows(video, [request]): ...
    open_decoder("pyav").probe(video)                 # in this process
    fit_picture(pixels, View(336, fit="padded"))      # what a captioner sees of a picture

InputError reasons of all decoders:

| reason | meaning |
|---|---|
| `missing` | no such file, a folder, or no permission to read |
| `empty` | 0 bytes |
| `not-media` | cannot be opened: no media file, a playlist, or cut before its index |
| `no-video-stream` | audio only; a cover picture is no video |
| `no-frames` | a video stream without frames, or a part beyond the end |
| `undecodable` | no frame can be decoded, or timestamps are unusable |
| `too-large` | it declares or holds more than `VideoLimits`: picture, frames, duration, memory |
| `damaged` | some packets were refused and the policy is `quarantine` |
| `decoder-crashed`, `decoder-timeout` | the child process died or hung (`IsolatedDecoder`) |
"""

from __future__ import annotations

import importlib

from data.errors import UsageError
from data.registry import Registry
from data.video.decord import DecordDecoder
from data.video.fits import fit_picture
from data.video.isolated import IsolatedDecoder
from data.video.listing import VideoList, list_videos
from data.video.pyav import PyAVDecoder
from data.video.torchcodec import TorchCodecDecoder
from data.video.types import Decoder, FrameRequest, Video, VideoFacts, View, Window

__all__ = [
    "DECODERS",
    "Decoder",
    "FrameRequest",
    "IsolatedDecoder",
    "Video",
    "VideoFacts",
    "VideoList",
    "View",
    "Window",
    "fit_picture",
    "list_videos",
    "open_decoder",
]

DECODERS: Registry[type[Decoder]] = Registry("video decoder")
"""Decoders by name. Their libraries are imported when one is opened, not before."""

DECODERS.register("pyav")(PyAVDecoder)
DECODERS.register("decord")(DecordDecoder)
DECODERS.register("torchcodec")(TorchCodecDecoder)


def open_decoder(name: str) -> Decoder:
    """A decoder of this process.

    Args:
        name: one of `DECODERS`, or `package.module:Class` for a decoder of your own, which is
            imported and constructed without arguments.

    Raises:
        UsageError: unknown name, or its library is not installed.
    """
    if ":" not in name:
        return DECODERS.get(name)()
    module, _, attribute = name.partition(":")
    try:
        opened: Decoder = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"video decoder '{name}' cannot be imported ({error}); "
            f"give 'module:Class' or one of: {', '.join(DECODERS)}"
        ) from error
    return opened
