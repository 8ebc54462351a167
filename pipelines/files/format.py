"""Which format, framing and compression the records of a path or topic have: as its name or the user says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from millrace.pipelines.files.containers import CONTAINERS, DEAD_LETTER
from millrace.runtime.errors import UserError
from millrace.transforms.codecs.record_codec import FORMATS, FidLayout
from millrace.transforms.frames.compression import SUFFIXES, Compression, compression_of
from millrace.transforms.frames.framing import FILE_FRAMES, LINES, TF_RECORDS, FrameOptions, Framing

if TYPE_CHECKING:
    from millrace.transforms.codecs.tf_example import TfExampleOptions

ROW_FORMATS = tuple(name for name, each in CONTAINERS.items() if each.framing is None and each.format == name)
"""Formats of files that hold rows and no records: Parquet, Avro and Arrow."""

TF_EXAMPLE = "tf_example"
FORMAT_NAMES = tuple(dict.fromkeys((*FORMATS, *ROW_FORMATS, TF_EXAMPLE, DEAD_LETTER)))
"""Every format that `--records` and `--to` of `millrace records` take."""

_FORMATS = {each.suffix: each.format for each in CONTAINERS.values() if each.format} | {".json": "json"}
# A list of features has some KB; a larger file is some other file, named by mistake.
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class RecordSettings:
    """How records are read or written.

    Attributes:
      format: one of FORMAT_NAMES.
      framing: of records in files, or in Kafka values that hold several records. None: a value is one record, a file
        holds rows.
      compression: of files; UNKNOWN: as the end of their names tells.
      fids: "as_is" keeps fids v1, "v2" converts them to v2.
      tf_example: what the features of a `tf.Example` become; needed for this format.
      kinds: {column: one of `tables.KINDS`} of Parquet and JSON.
    """

    format: str
    framing: Framing | None = None
    compression: Compression = Compression.UNKNOWN
    fids: FidLayout = "v2"
    tf_example: "TfExampleOptions | None" = None
    kinds: Mapping[str, str] = field(default_factory=dict)


def format_of_path(path: str) -> str | None:
    """The format that the end of a path tells, without the suffix of a compression; None when it tells none."""
    suffixes = [each for each in Path(path).suffixes if each not in SUFFIXES]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def file_framing(path: str, format: str, frames: FrameOptions | None) -> Framing | None:
    """How the records of a file are framed; None for files of rows.

    Args:
      frames: as the user says; default: frames with sort ids. JSON and TFRecord files have frames of their own.
    """
    if format in ROW_FORMATS or format == DEAD_LETTER:
        return None
    if format == "json":
        return LINES
    if format == TF_EXAMPLE or format_of_path(path) == TF_EXAMPLE:
        return TF_RECORDS
    return frames or FILE_FRAMES


def check_format(name: str, field: str, files: bool) -> None:
    """Raises UserError naming `field` unless a feed can read records, or files, of this format.

    JSON is left out: a feed must know the types of columns before the first record.
    """
    known = dict.fromkeys([*FORMATS, TF_EXAMPLE, *(ROW_FORMATS if files else ())])
    choices = [each for each in known if each != "json"]
    if name not in choices:
        raise UserError(field, name, "unknown", f"choose {', '.join(choices)}")


def check_settings(settings: RecordSettings, path: str, flag: str) -> None:
    """Raises UserError naming `flag` for an unknown format, or the flag that the format needs and lacks."""
    if settings.format not in FORMAT_NAMES:
        raise UserError(flag, settings.format, "unknown", f"choose {', '.join(FORMAT_NAMES)}")
    if settings.format == TF_EXAMPLE and settings.tf_example is None:
        raise UserError(
            "--tf-features", "", f"missing, and {path} holds tf.Examples", f"describe them, or name another {flag}"
        )
    compressed = compression_of(path, settings.compression) != Compression.NO
    if settings.format in ROW_FORMATS and compressed and not path.startswith("topic:"):
        raise UserError(
            flag, settings.format, f"{path} is compressed, but the format compresses by itself", "decompress it"
        )


def read_tf_features(path: Path, flag: str) -> "TfExampleOptions":
    """The options that a JSON or YAML file describes: `sparse_features` {name: slot}, `dense_features` [name], `label`
    and `instance_weight`. Raises UserError naming `flag`."""
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
    """The value of a JSON or YAML file."""
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise UserError(flag, path, f"has more than {_MAX_TEXT_BYTES} bytes", "give the right file")
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(flag, path, f"cannot be read ({error.strerror})", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(flag, path, "is neither JSON nor YAML", "write an object of features") from error
