"""What a compressed picture says of itself, read without decoding: only as much as the scan asks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_H264_IDR, _H264_SPS, _HEVC_SPS = 5, 7, 33
_AV1_SEQUENCE = 1
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def has_idr(packet: bytes, extradata: bytes) -> bool:
    """Return whether an H.264 packet holds an IDR picture (NAL type 5): no later frame refers to anything before it."""
    return any(unit[0] & 31 == _H264_IDR for unit in _units(packet, _length_size("h264", extradata)))


def size_mark(codec: str, packet: bytes, extradata: bytes) -> bytes:
    """Return bytes that change whenever the size of the pictures does; empty when this packet says nothing of it.

    For h264, hevc, av1 and mpeg4 these are the headers that hold the size, for the other codecs the size itself as two
    big-endian 16-bit numbers.
    """
    if codec == "h264":
        return b"".join(u for u in _units(packet, _length_size(codec, extradata)) if u[0] & 31 == _H264_SPS)
    if codec == "hevc":
        return b"".join(u for u in _units(packet, _length_size(codec, extradata)) if u[0] >> 1 & 63 == _HEVC_SPS)
    if codec == "av1":
        return _av1_sequence(packet)
    if codec == "mpeg4":
        return b"".join(part[:24] for part in packet[:4096].split(b"\0\0\1")[1:] if part[:1] and part[0] >> 4 == 2)
    if codec == "vp8":
        return _vp8_size(packet)
    if codec == "vp9":
        return _vp9_size(packet)
    if codec == "mjpeg":
        return _jpeg_size(packet)
    return packet[16:20] if codec == "prores" and packet[4:8] == b"icpf" else b""


def _length_size(codec: str, extradata: bytes) -> int:
    """Return how many bytes hold the length of a NAL unit (ISO 14496-15); 0: start codes delimit them (Annex B)."""
    at = 4 if codec == "h264" else 21
    return (extradata[at] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > at else 0


def _units(packet: bytes, length_size: int) -> Iterator[bytes]:
    if not length_size:
        yield from (unit for unit in packet.split(b"\0\0\1")[1:] if unit)
        return
    at = 0
    while at + length_size < len(packet):
        length = int.from_bytes(packet[at : at + length_size], "big")
        at += length_size
        if length:
            yield packet[at : at + length]
        at += length


def _av1_sequence(packet: bytes) -> bytes:
    """Return the sequence header among the OBUs of a temporal unit (AV1 specification, 5.3)."""
    at = 0
    while at + 2 < len(packet):
        kind, extended, sized = packet[at] >> 3 & 15, packet[at] >> 2 & 1, packet[at] >> 1 & 1
        at += 1 + extended
        if not sized:
            return b""
        length = shift = 0
        for byte in packet[at : at + 8]:
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        if kind == _AV1_SEQUENCE:
            return packet[at : at + length]
        at += length
    return b""


def _vp8_size(packet: bytes) -> bytes:
    """Return the size in a key frame's header (RFC 6386, 9.1)."""
    if len(packet) < 10 or packet[0] & 1 or packet[3:6] != b"\x9d\x01\x2a":
        return b""
    width, height = struct.unpack("<HH", packet[6:10])
    return struct.pack(">HH", width & 0x3FFF, height & 0x3FFF)


def _vp9_size(packet: bytes) -> bytes:
    """Return the size if the uncompressed header spells it out, as every frame of a new size does (VP9, 6.2)."""
    bits = int.from_bytes(packet[:32].ljust(32, b"\0"), "big")
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (256 - at) & ((1 << count) - 1)

    def colours(profile: int) -> None:
        if profile >= 2:
            read(1)
        if read(3) != 7:
            read(1 if profile % 2 == 0 else 4)
        elif profile % 2:
            read(1)

    if read(2) != 2:
        return b""
    profile = read(1) | read(1) << 1
    if profile == 3:
        read(1)
    if read(1):  # shows an earlier frame
        return b""
    inter, shown, resilient = read(1), read(1), read(1)
    if not inter:
        read(24)
        colours(profile)
    else:
        alone = 0 if shown else read(1)
        if not resilient:
            read(2)
        if alone:
            read(24)
            if profile:
                colours(profile)
            read(8)
        else:
            read(8 + 3 * 4)
            if any(read(1) for _ in range(3)):  # as large as a frame it refers to
                return b""
    return struct.pack(">HH", (read(16) + 1) & 0xFFFF, (read(16) + 1) & 0xFFFF)


def _jpeg_size(packet: bytes) -> bytes:
    """Return the size in the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 < len(packet) and packet[at] == 0xFF:
        if packet[at + 1] in _JPEG_FRAMES:
            return packet[at + 7 : at + 9] + packet[at + 5 : at + 7]
        at += 2 + int.from_bytes(packet[at + 2 : at + 4], "big")
    return b""
