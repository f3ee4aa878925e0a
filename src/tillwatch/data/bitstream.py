"""What packets of H.264 and H.265 hold, told by the types of their NAL units, without decoding any."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import av

_START = b"\0\0\1"


@dataclass(frozen=True, kw_only=True)
class _Syntax:
    """Types of NAL units (ITU-T H.264, table 7-1; H.265, table 7-1).

    Attributes:
        shift, mask: where the type stands in a unit's first byte.
        length_at: the byte of the container's parameter sets whose last two bits tell how long lengths are.
        slices: of a picture.
        anew: slices of an IDR picture: neither it nor any that is decoded after it refers to one before.
        parameters: without which no slice can be decoded.
        discards: whether the first slice of an IDR picture throws away pictures that were not shown yet. That of H.264
            may say so too (8.2.5.1), and FFmpeg does not listen.
    """

    shift: int
    mask: int
    length_at: int
    slices: Container[int]
    anew: Container[int]
    parameters: Container[int]
    discards: Callable[[bytes], bool] = lambda unit: False


_SYNTAX = {
    "h264": _Syntax(shift=0, mask=31, length_at=4, slices=(1, 5), anew=(5,), parameters=(7, 8, 13, 15)),
    "hevc": _Syntax(
        shift=1,
        mask=63,
        length_at=21,
        slices=range(32),
        anew=(19, 20),
        parameters=(32, 33, 34),
        discards=lambda unit: len(unit) > 2 and bool(unit[2] & 0x40),  # no_output_of_prior_pics_flag (7.3.6.1)
    ),
}


class GroupFinder:
    """Finds groups of pictures that can be decoded by themselves, in a stream whose packets it is shown in order.

    A group begins with an IDR picture. There are none where a decoder must have seen more than the group: where the
    parameter sets before the groups are not the same bytes for all (or nowhere but in the container), where others come
    with other pictures or beside a packet, or where a picture tells the decoder to throw away what it has not shown.

    Args:
        codec: of the stream. Packets hold each NAL unit behind its length, as MP4 and Matroska have them, or behind a
            start code (ISO/IEC 14496-15, 5.3; ITU-T H.264, annex B).
    """

    def __init__(self, codec: av.VideoCodecContext) -> None:
        self._syntax = _SYNTAX.get(codec.name)
        self._extradata = codec.extradata or b""
        self._seen = 0
        self._begins: list[int] = []
        self._parameters: list[bytes] = []  # of each group
        self._alone = self._syntax is not None

    def see(self, packet: bytes | av.Packet[av.VideoStream], *, parameters_beside: bool = False) -> None:
        """Looks at the next picture's packet.

        Args:
            packet: its bytes, or what holds them.
            parameters_beside: whether the container has other parameter sets for it and what follows.
        """
        place, self._seen = self._seen, self._seen + 1
        if self._syntax is None or not self._alone:
            return
        parameters: list[bytes] = []
        begins = False
        for kind, unit in _units(bytes(packet), self._extradata, self._syntax):
            if kind in self._syntax.parameters:
                parameters.append(unit)
            if kind in self._syntax.slices:  # all slices of a picture are IDR or none, and parameters come first
                begins = kind in self._syntax.anew
                if begins and place and self._syntax.discards(unit):
                    self._alone = False
                break
        if begins:
            self._begins.append(place)
            self._parameters.append(b"".join(parameters))
        if parameters_beside or (parameters and not begins) or self._parameters[-1:] != self._parameters[:1]:
            self._alone = False

    def begins(self) -> list[int]:
        """Returns the places of the packets seen that groups begin with; empty if not all belong to such a group."""
        return list(self._begins) if self._alone and self._begins[:1] == [0] else []


def _units(packet: bytes, extradata: bytes, syntax: _Syntax) -> Iterator[tuple[int, bytes]]:
    """Yields each NAL unit's type, and the unit."""
    if extradata[:1] == b"\x01" and len(extradata) > syntax.length_at:
        size, place = (extradata[syntax.length_at] & 3) + 1, 0
        while place + size < len(packet):
            begin = place + size
            place = begin + int.from_bytes(packet[place:begin])
            yield packet[begin] >> syntax.shift & syntax.mask, packet[begin:place]
    else:
        begin = packet.find(_START)
        while 0 <= begin < len(packet) - len(_START):
            begin += len(_START)
            stop = packet.find(_START, begin)
            yield packet[begin] >> syntax.shift & syntax.mask, packet[begin : stop if stop >= 0 else None].rstrip(b"\0")
            begin = stop
