"""CRC-32C of files, as manifests and exports record it."""

from pathlib import Path

import google_crc32c

_CHUNK_BYTES = 1 << 20


def crc32c_of_file(path: Path) -> int:
    """CRC-32C (Castagnoli) of a file's content, 0..2^32-1."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = google_crc32c.extend(value, chunk)
    return value
