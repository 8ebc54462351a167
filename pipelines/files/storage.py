"""Opens files and publishes whole ones, on every file system that Beam knows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem

from millrace.runtime.atomic_file import sync_folder


def open_file(path: str) -> BinaryIO:
    """The bytes of a file as they are stored; those of `.bz2` decompressed."""
    kind = CompressionTypes.AUTO if path.endswith(".bz2") else CompressionTypes.UNCOMPRESSED
    return FileSystems.open(path, compression_type=kind)


def publish(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Puts what `write` writes at `path`: a reader sees the old file or the whole new one."""
    if not isinstance(FileSystems.get_filesystem(path), LocalFileSystem):
        beside = f"{path}.tmp"
        with FileSystems.create(beside, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            write(file)
        FileSystems.rename([beside], [path])
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
