"""Which format, framing and compression the records of a path or topic have: by its name, or as somebody says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.json
import yaml

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.record_codec import FORMATS, FidLayout
from millrace.transforms.codecs.tables import to_canonical
from millrace.transforms.frames.compression import SUFFIXES, Compression, compression_of
from millrace.transforms.frames.framing import FILE_FRAMES, LINES, TF_RECORDS, FrameOptions, Framing

if TYPE_CHECKING:
    from millrace.transforms.codecs.tf_example import TfExampleOptions

CONTAINERS = ("parquet", "avro", "arrow")
"""Formats of files that hold rows and no records."""

DEAD_LETTER = "dead_letter"
"""What `feed.dead-letter` holds: a refused record with the reason in its headers; in files, Parquet."""

TF_EXAMPLE = "tf_example"
FORMAT_NAMES = tuple(dict.fromkeys((*FORMATS, *CONTAINERS, TF_EXAMPLE, DEAD_LETTER)))

_EXTENSIONS = {
    ".parquet": "parquet",
    ".avro": "avro",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".tfrecord": TF_EXAMPLE,
}
_MAX_TEXT_BYTES = 1 << 20
_SAMPLE = 10_000


@dataclass(frozen=True)
class RecordSettings:
    """How records are read or written.

    Attributes:
      format: one of FORMAT_NAMES.
      framing: of records in files, or in Kafka values that hold several; None: a value is one record.
      compression: of files; UNKNOWN: by the end of their names.
      fids: "as_is" keeps fids v1, "v2" converts them.
      tf_example: which features of a `tf.Example` become what.
      kinds: {column: one of `parquet_codec.KINDS`} of Parquet and JSON.
    """

    format: str
    framing: Framing | None = None
    compression: Compression = Compression.UNKNOWN
    fids: FidLayout = "v2"
    tf_example: "TfExampleOptions | None" = None
    kinds: Mapping[str, str] = field(default_factory=dict)


def format_of_path(path: str) -> str | None:
    """The format that the end of a path tells, compression aside; None when it tells nothing."""
    suffixes = [each for each in Path(path).suffixes if each not in SUFFIXES]
    return _EXTENSIONS.get(suffixes[-1]) if suffixes else None


def file_framing(path: str, format: str, frames: FrameOptions | None) -> Framing | None:
    """How the records of a file lie one after the other; None for files of rows."""
    if format in CONTAINERS or format == DEAD_LETTER:
        return None
    if format == "json":
        return LINES
    if format == TF_EXAMPLE or format_of_path(path) == TF_EXAMPLE:
        return TF_RECORDS
    return frames or FILE_FRAMES


def check_settings(settings: RecordSettings, path: str, flag: str) -> None:
    """Raises UserError naming `flag` for a format that does not exist or lacks what it needs."""
    if settings.format not in FORMAT_NAMES:
        raise UserError(flag, settings.format, "unknown", f"choose {', '.join(FORMAT_NAMES)}")
    if settings.format == TF_EXAMPLE and settings.tf_example is None:
        raise UserError(
            "--tf-features", "", f"missing, and {path} holds tf.Examples", f"describe them, or name another {flag}"
        )
    compressed = compression_of(path, settings.compression) != Compression.NO
    if settings.format in CONTAINERS and compressed and not path.startswith("topic:"):
        raise UserError(
            flag, settings.format, f"{path} is compressed, but the format compresses by itself", "decompress it"
        )


def read_tf_features(path: Path, flag: str) -> "TfExampleOptions":
    """The description of a `tf.Example`, JSON or YAML: `sparse_features` {name: slot}, `dense_features` [name], `label`
    and `instance_weight`. UserError names `flag`."""
    from millrace.transforms.codecs.tf_example import TfExampleOptions

    given = _read_text(path, flag)
    names = ("sparse_features", "dense_features", "label", "instance_weight")
    if not isinstance(given, dict) or not set(given) <= set(names):
        raise UserError(flag, path, "describes no features", f"write an object with {', '.join(names)}")
    sparse, dense, *plain = (given.get(name, default) for name, default in zip(names, ({}, [], "", ""), strict=True))
    if not (
        isinstance(sparse, dict)
        and all(type(slot) is int for slot in sparse.values())
        and isinstance(dense, list)
        and all(isinstance(name, str) for name in (*sparse, *dense, *plain))
    ):
        raise UserError(flag, path, "a value has the wrong type", 'write {"sparse_features": {"item": 2}, ...}')
    return TfExampleOptions(sparse, dense, *plain)


def _read_text(path: Path, flag: str) -> object:
    """What a JSON or YAML file says."""
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise UserError(flag, path, f"has more than {_MAX_TEXT_BYTES} bytes", "give the right file")
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(flag, path, f"cannot be read ({error.strerror})", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(flag, path, "is neither JSON nor YAML", "write an object of features") from error


def json_schema(block: pa.RecordBatch, kinds: Mapping[str, str]) -> pa.Schema:
    """Columns and types of JSON objects, from the first 10,000 of a raw block; metadata columns have their own types.

    What only ever is null or an empty list there has no type and is left out. Raises: UserError where a key has values
    of several types.
    """
    lines = [value for value in block.column("value").slice(0, _SAMPLE).to_pylist() if _is_object(value)]
    if not lines:
        return pa.schema([])
    text = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    options = pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    try:
        found = pa.json.read_json(pa.BufferReader(text), read_options=options).schema
    except pa.ArrowInvalid as error:
        raise UserError(
            "SOURCE", "json", str(error), "name the keys' types with --column-types, or correct it"
        ) from error
    typed = [_typed(each, kinds) for each in found]
    return pa.schema([each for each in typed if not _is_unknown(each.type)])


def _is_object(value: bytes | None) -> bool:
    try:
        return isinstance(json.loads(value or b""), dict)
    except (ValueError, RecursionError):
        return False


def _typed(found: pa.Field, kinds: Mapping[str, str]) -> pa.Field:
    if found.name in kinds or record_batch.is_metadata_name(found.name):
        bare = pa.field(found.name, pa.int64()) if _is_unknown(found.type) else found
        made = to_canonical(record_batch.empty(pa.schema([bare])), _only(kinds, found.name)).schema.field(0)
        as_list = pa.types.is_list(found.type) or pa.types.is_null(found.type)
        leaf = made.type.value_type if pa.types.is_list(made.type) and not as_list else made.type
        return pa.field(found.name, leaf, metadata=made.metadata)
    return pa.field(found.name, _without_times(found.type))


def _only(kinds: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: kinds[name]} if name in kinds else {}


def _is_unknown(type: pa.DataType) -> bool:
    return pa.types.is_null(type.value_type if pa.types.is_list(type) else type)


def _without_times(type: pa.DataType) -> pa.DataType:
    """Text that looks like a time stays text."""
    if pa.types.is_timestamp(type):
        return pa.string()
    return pa.list_(_without_times(type.value_type)) if pa.types.is_list(type) else type
