"""`assets.extra/millrace.json` of an export: what it holds, where its deltas go on, and the checksum of every file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.runtime.checksum import crc32c_of_file
from millrace.serving.server.errors import ExportError

MANIFEST_PATH = Path("assets.extra/millrace.json")
_SCHEMA_VERSIONS = (1, 2)


@dataclass(frozen=True)
class ExportedFile:
    path: str
    size_bytes: int
    crc32c: int


@dataclass(frozen=True)
class ExportManifest:
    """Fields as in the JSON file.

    `delta_offsets` is {partition: offset of the first delta that may be missing from the export}, `delta_sequence`
    the last delta whose content is inside, `store` the shared name of the embedding store ("" without tables). In
    schema 1 `lineage` is "", `epoch` and `event_time_ms` 0, and `cut_at_ms` the time when the export was written.
    """

    model_name: str
    version: int
    store: str
    tables: tuple[str, ...]
    dense_variables: tuple[str, ...]
    delta_topic: str
    delta_offsets: dict[int, int]
    delta_sequence: int
    files: tuple[ExportedFile, ...]
    lineage: str = ""
    epoch: int = 0
    event_time_ms: int = 0
    cut_at_ms: int = 0


def read_verified(folder: Path) -> ExportManifest:
    """Reads the manifest of the export in `folder` and checks every file that it lists.

    Raises:
      ExportError: naming the file that is missing, torn or corrupt.
    """
    path = folder / MANIFEST_PATH
    try:
        manifest = _parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); the export is not complete") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: not an export manifest ({type(error).__name__}: {error})") from error
    for file in manifest.files:
        _check(folder, file)
    return manifest


def _parse(fields: dict[str, Any]) -> ExportManifest:
    if fields["schema_version"] not in _SCHEMA_VERSIONS:
        raise ValueError(f"schema_version is {fields['schema_version']!r}, this server reads 1 and 2")
    return ExportManifest(
        model_name=str(fields["model_name"]),
        version=int(fields["version"]),
        store=str(fields.get("store") or ""),
        tables=tuple(_name(table) for table in fields.get("tables", ())),
        dense_variables=tuple(fields.get("dense_variables", ())),
        delta_topic=str(fields.get("delta_topic") or ""),
        delta_offsets={int(key): int(value) for key, value in fields.get("delta_offsets", {}).items()},
        delta_sequence=int(fields.get("delta_sequence", 0)),
        files=tuple(
            ExportedFile(file["path"], int(file["size_bytes"]), int(file["crc32c"])) for file in fields["files"]
        ),
        lineage=str(fields.get("lineage") or ""),
        epoch=int(fields.get("epoch", 0)),
        event_time_ms=int(fields.get("event_time_ms", 0)),
        cut_at_ms=int(fields.get("cut_at_ms") or fields.get("created_at_ms", 0)),
    )


def _name(table: Any) -> str:
    """A table is listed by its name or as an object with a `name`."""
    return str(table["name"] if isinstance(table, dict) else table)


def _check(folder: Path, file: ExportedFile) -> None:
    path = folder / file.path
    if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
        raise ExportError(f"{folder / MANIFEST_PATH}: {file.path!r} points out of the export")
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            raise ExportError(f"{path}: {size} bytes, the manifest says {file.size_bytes}")
        if crc32c_of_file(path) != file.crc32c:
            raise ExportError(f"{path}: checksum differs from the manifest's")
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from error
