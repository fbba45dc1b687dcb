"""Image files made byte by byte, so that no image library has a say in what they store."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def packed(array: np.ndarray, depth: int) -> list[bytes]:
    """The rows of (H, W) samples of 1, 2 or 4 bits, most significant bits first."""
    bits = np.unpackbits(array.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    return [np.packbits(row).tobytes() for row in bits.reshape(len(array), -1)]


def png(array: np.ndarray, depth: int = 8, palette: bytes = b"", alpha: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, C) samples; with a palette they are indices."""
    height, width = array.shape[:2]
    kind = 3 if palette else COLOR_TYPES[1 if array.ndim == 2 else array.shape[2]]
    if depth < 8:
        rows = packed(array, depth)
    else:
        rows = [row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array]
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        [
            SIGNATURE,
            chunk(b"IHDR", head),
            chunk(b"PLTE", palette) if palette else b"",
            chunk(b"tRNS", alpha) if alpha else b"",
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        ]
    )


def pnm(array: np.ndarray, largest: int, plain: bool = False) -> bytes:
    """A PGM or PPM of (H, W) or (H, W, 3) samples, with a comment in its header."""
    kind = (2 if array.ndim == 2 else 3) + (0 if plain else 3)
    head = f"P{kind}\n# made by hand\n{array.shape[1]} {array.shape[0]}\n{largest}\n".encode()
    if plain:
        return head + " ".join(map(str, array.ravel().tolist())).encode()
    return head + array.astype(">u2" if largest > 255 else "u1").tobytes()


def tiff(*pages: np.ndarray, order: str = "<", **tags: int) -> bytes:
    """A TIFF without compression; `tags` are `t281=4095` and replace the usual ones."""
    parts, at = [], 8
    blocks = []
    for array in pages:
        data = array.astype(array.dtype.newbyteorder(order)).tobytes()
        blocks.append((array, data, at))
        parts.append(data)
        at += len(data)
        if at % 2:
            parts.append(b"\0")
            at += 1
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    for number, (array, data, where) in enumerate(blocks):
        channels = 1 if array.ndim == 2 else array.shape[2]
        form = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
        usual = {
            256: array.shape[1],
            257: array.shape[0],
            258: array.dtype.itemsize * 8,
            259: 1,
            262: 2 if channels > 2 else 1,
            273: where,
            277: channels,
            278: array.shape[0],
            279: len(data),
            339: form,
            **{int(name[1:]): value for name, value in tags.items()},
        }
        repeated = {258, 339} if channels > 1 else set()
        if channels in (2, 4):
            usual[338] = 2
        outside = at + 2 + 12 * len(usual) + 4
        entries, extra = b"", b""
        for tag, value in sorted(usual.items()):
            if tag in repeated:
                entries += struct.pack(f"{order}HHI", tag, 3, channels)
                values = struct.pack(f"{order}{channels}H", *[value] * channels)
                if len(values) <= 4:
                    entries += values.ljust(4, b"\0")
                else:
                    entries += struct.pack(f"{order}I", outside + len(extra))
                    extra += values
            else:
                entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
        last = number == len(blocks) - 1
        following = 0 if last else outside + len(extra)
        parts.append(
            struct.pack(f"{order}H", len(usual)) + entries + struct.pack(f"{order}I", following)
        )
        parts.append(extra)
        at = outside + len(extra)
    return head + b"".join(parts)
