"""The tokens of an image, from its size and the detail asked for.

In: the `url` and `detail` of an image part. Out: OpenAI's tile count. Not covered: fetching an address; its size is
assumed.
"""

from __future__ import annotations

import base64
import binascii
import math

LOW_DETAIL_TOKENS = 85
TILE_TOKENS = 170
ASSUMED_SIZE = (1024, 1024)
_HEAD_CHARS = 1 << 18
"""So much of a data URL is decoded to find the size: a JPEG may hold a large preview before it."""


def image_tokens(url: str, detail: str = "auto") -> int:
    """Tokens of one image: 85 at low detail, else 85 + 170 for each tile of 512 pixels (`auto` counts as high).

    >>> image_tokens("https://example.com/cat.png", "low"), image_tokens("https://example.com/cat.png", "high")
    (85, 765)
    """
    if detail == "low":
        return LOW_DETAIL_TOKENS
    width, height = image_size(url) or ASSUMED_SIZE
    # OpenAI's vision guide: fit into 2048 x 2048, then bring the shorter side down to 768, then count tiles of 512.
    scale = min(1.0, 2048 / max(width, height))
    width, height = width * scale, height * scale
    scale = min(1.0, 768 / min(width, height))
    # Rounded first: 1536 * (768 / 1536) may come out a hair above 768, and a hair must not cost a tile.
    n_tiles = math.ceil(round(width * scale, 6) / 512) * math.ceil(round(height * scale, 6) / 512)
    return LOW_DETAIL_TOKENS + TILE_TOKENS * n_tiles


def image_size(url: str) -> tuple[float, float] | None:
    """Width and height of a PNG, JPEG, GIF or WEBP in a data URL; None for anything else."""
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        return None
    body = body[:_HEAD_CHARS]
    try:
        data = base64.b64decode(body[: len(body) // 4 * 4])
    except (binascii.Error, ValueError):
        return None
    size = _png(data) or _gif(data) or _webp(data) or _jpeg(data)
    return size if size is not None and min(size) > 0 else None


def _png(data: bytes) -> tuple[int, int] | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"GIF8" or len(data) < 10:
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _jpeg(data: bytes) -> tuple[int, int] | None:
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        # Start-of-frame markers hold the size; C4, C8 and CC share the range and are other things.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 7 : place + 9], "big"), int.from_bytes(
                data[place + 5 : place + 7], "big"
            )
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
