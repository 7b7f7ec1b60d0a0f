"""How media files begin: for decoders that cannot be told which formats they may open."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_container"]

_STARTS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"OggS\x00",
    b"\x06\x0e+4\x02\x05\x01\x01",  # MXF
    b"YUV4MPEG2 ",
)

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""First boxes of MP4 and QuickTime files."""

_PACKET = 188
"""Bytes of a packet of an MPEG transport stream; Blu-ray (.m2ts) puts 4 bytes before each."""


def is_container(path: Path) -> bool:
    """Whether a file begins as one of the containers of moving pictures.

    FFmpeg recognises playlists by text at the beginning, also after an ID3 tag, so a file that
    passes here is none: the first bytes are those of a container and no letters.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    # The size of the first box: letters there would be the beginning of some text.
    if head[4:8] in _BOXES and not head[:4].isalnum() and head[:1] not in b"#<":
        return True
    return any(
        len(head) > 2 * step + offset and head[offset::step][:3] == b"GGG"
        for offset, step in ((0, _PACKET), (4, _PACKET + 4))
    )
