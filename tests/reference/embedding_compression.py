"""qtz8mm of one embedding."""

import math
import struct
from collections.abc import Sequence

_LARGEST = 65504.0


def compress(numbers: Sequence[float]) -> bytes:
    numbers = [_clamp(number) for number in numbers]
    if len(numbers) <= 4:
        return b"UE_QTZ" + struct.pack(f"<{len(numbers)}e", *numbers)
    ends = struct.pack("<2e", min(numbers), max(numbers))
    low, high = struct.unpack("<2e", ends)
    step = (high - low) / 255
    steps = [min(max(math.floor((number - low) / step + 0.5), 0), 255) if step else 0 for number in numbers]
    return b"UE_QTZ" + ends + bytes(steps)


def decompress(value: bytes | None, dim: int) -> list[float] | None:
    if value is None or value[:6] != b"UE_QTZ":
        return None
    body = value[6:]
    if len(body) != (2 * dim if dim <= 4 else 4 + dim):
        return None
    if dim <= 4:
        numbers = [_clamp(number) for number in struct.unpack(f"<{dim}e", body)]
        return None if any(math.isnan(number) for number in numbers) else numbers
    low, high = (_clamp(end) for end in struct.unpack("<2e", body[:4]))
    return [low + (high - low) / 255 * step for step in body[4:]] if low <= high else None


def _clamp(number: float) -> float:
    return min(max(number, -_LARGEST), _LARGEST) if number == number else number
