"""What packets of H.264 and H.265 hold, told by the types of their NAL units, without decoding any."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import av


@dataclass(frozen=True, kw_only=True)
class _Syntax:
    """Types of NAL units (ITU-T H.264, table 7-1; H.265, table 7-1).

    Attributes:
        shift, mask: where the type stands in a unit's first byte.
        length_at: the byte of the container's parameter sets whose last two bits tell how long lengths are.
        slices: of a picture.
        anew: slices of an IDR picture: neither it nor any that is decoded after it refers to one before.
        parameters: without which no slice can be decoded.
    """

    shift: int
    mask: int
    length_at: int
    slices: Container[int]
    anew: Container[int]
    parameters: frozenset[int]


_SYNTAX = {
    "h264": _Syntax(shift=0, mask=31, length_at=4, slices=(1, 5), anew=(5,), parameters=frozenset({7, 8})),
    "hevc": _Syntax(shift=1, mask=63, length_at=21, slices=range(32), anew=(19, 20), parameters=frozenset({33, 34})),
}


class GroupFinder:
    """Finds groups of pictures that can be decoded by themselves, in a stream whose packets it is shown in order.

    A group begins with an IDR picture. There are none where a decoder must have seen more than the group: if parameter
    sets come with other pictures too, or with some of the IDR pictures alone and not the first.

    Args:
        codec: of the stream. Packets hold each NAL unit behind its length, as MP4 and Matroska have them, or behind a
            start code (ISO/IEC 14496-15, 5.3; ITU-T H.264, annex B).
    """

    def __init__(self, codec: av.VideoCodecContext) -> None:
        self._syntax = _SYNTAX.get(codec.name)
        self._extradata = codec.extradata or b""
        self._seen = 0
        self._begins: list[int] = []
        self._complete: list[bool] = []
        self._scattered = False

    def see(self, packet: bytes) -> None:
        """Looks at the next picture's packet."""
        place, self._seen = self._seen, self._seen + 1
        if self._syntax is None or self._scattered:
            return
        parameters = set()
        for kind in _unit_types(packet, self._extradata, self._syntax):
            if kind in self._syntax.parameters:
                parameters.add(kind)
            if kind in self._syntax.slices:  # all slices of a picture are IDR or none, and parameters come first
                if kind in self._syntax.anew:
                    self._begins.append(place)
                    self._complete.append(parameters == self._syntax.parameters)
                    parameters -= self._syntax.parameters if self._complete[-1] else set()
                break
        self._scattered = bool(parameters)

    def begins(self) -> list[int]:
        """Returns the places of the packets seen that groups begin with; empty if not all belong to such a group."""
        first_alone = not any(self._complete[1:]) and bool(self._extradata)
        if self._scattered or self._begins[:1] != [0] or not (all(self._complete) or first_alone):
            return []
        return list(self._begins)


def _unit_types(packet: bytes, extradata: bytes, syntax: _Syntax) -> Iterator[int]:
    if extradata[:1] == b"\x01" and len(extradata) > syntax.length_at:
        size, place = (extradata[syntax.length_at] & 3) + 1, 0
        while place + size < len(packet):
            yield packet[place + size] >> syntax.shift & syntax.mask
            place += size + int.from_bytes(packet[place : place + size])
    else:
        place = packet.find(b"\0\0\1") + 3
        while 3 <= place < len(packet):
            yield packet[place] >> syntax.shift & syntax.mask
            place = packet.find(b"\0\0\1", place) + 3
