"""What the actions of `millrace records` share: the flags that describe a source, and how they open it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli.common import add_kafka_flags, add_tf_features_flag, frame_options, kafka_connection, topics
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.pipelines.files.format import RecordSettings
    from millrace.pipelines.records.source import RecordSource
    from millrace.transforms.recipe.chain import TransformChain

SOURCES = """\
A source is a path, which may hold wildcards, {DATE(20260101, 20260107)} for these days, {SINCE(20260101)} for the days
up to yesterday and {INT(0, 9)} for these numbers; topic:NAME; or - for records from standard input. The ending of a
path, such as .parquet or .gz, tells format and compression; where it does not, --records and --compression do."""

_TOPIC_MARK = "topic:"
_COMPRESSIONS = {"none": "NO", "snappy": "SNAPPY", "zstd": "ZSTD", "zlib": "ZLIB", "gzip": "GZIP"}


def add_records_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how SOURCE is read."""
    source = parser.add_argument_group("source")
    source.add_argument(
        "--records",
        metavar="FORMAT",
        help="format: example, example_batch, instance, tf_example, json, arrow, parquet, avro or dead_letter",
    )
    source.add_argument(
        "--frames",
        metavar="HEADERS",
        help="what stands before each record, as in `millrace feed --frames` (default: nothing in a Kafka value, "
        "which is one record; sort-id in a file)",
    )
    source.add_argument(
        "--compression", choices=tuple(_COMPRESSIONS), help="compression of files (default: as their names tell)"
    )
    source.add_argument("--fids-v1", action="store_true", help="keep fids v1 (default: convert them to v2)")
    add_tf_features_flag(source)
    source.add_argument(
        "--column-types",
        type=Path,
        metavar="FILE",
        help='JSON file of the types of columns of Parquet or JSON: {"item": 2}; 1 fid_v1, 2 fid_v2, 3 float, '
        "4 double, 5 int, 6 bytes",
    )
    topic = parser.add_argument_group("topic")
    topic.add_argument(
        "--start",
        default="earliest",
        metavar="POSITION",
        help='where to begin: earliest, latest, group, time:MILLISECONDS, or JSON of offsets like {"0": 17} '
        "(default: %(default)s)",
    )
    topic.add_argument(
        "--until",
        default="end",
        metavar="POSITION",
        help="where to stop: as --start, or `end`, where the topic ends when the command starts (default)",
    )
    topic.add_argument("--partition", type=int, metavar="P", help="read this partition only")
    topic.add_argument(
        "--group",
        default="millrace-records",
        metavar="NAME",
        help="consumer group whose offsets `--start group` takes (default: %(default)s)",
    )
    add_kafka_flags(parser)


def open_source(arguments: argparse.Namespace, name: str, records: str | None = None) -> "RecordSource":
    """Opens the source `name`. Raises UserError when it does not exist or its format is unknown.

    Args:
      records: its format; default: as --records says, or as the name tells.
    """
    from millrace.pipelines.records.source import TopicSource, open_files
    from millrace.runtime.topic_range import resolve_range

    settings = _settings(arguments, name, records or arguments.records)
    if not is_topic(name):
        return open_files(name, settings)
    connection = kafka_connection(arguments)
    found = resolve_range(
        connection, topic_name(arguments, name), arguments.start, arguments.until, arguments.partition, arguments.group
    )
    return TopicSource(name, settings, found)


def is_topic(name: str) -> bool:
    return name.startswith(_TOPIC_MARK)


def topic_name(arguments: argparse.Namespace, name: str) -> str:
    """The whole name of the topic that `topic:NAME` or NAME means."""
    return f"{arguments.topic_prefix}{name.removeprefix(_TOPIC_MARK)}"


def dest_settings(arguments: argparse.Namespace, name: str) -> "RecordSettings":
    """How the file or topic `name` is written, by --to, --to-frames and its name."""
    return _settings(arguments, name, arguments.to, "--to", arguments.to_frames)


def row_settings(arguments: argparse.Namespace) -> "RecordSettings":
    """How rows become values of a topic, by --to."""
    return _settings(arguments, _TOPIC_MARK, arguments.to, "--to")


def _settings(
    arguments: argparse.Namespace, name: str, format: str | None, flag: str = "--records", frames: str | None = None
) -> "RecordSettings":
    from millrace.pipelines.files.format import (
        RecordSettings,
        check_settings,
        file_framing,
        format_of_path,
        read_tf_features,
    )
    from millrace.transforms.codecs.tables import read_kinds
    from millrace.transforms.frames.compression import Compression, compression_of

    reads = flag == "--records"
    headers = frame_options(arguments.frames if reads else frames)
    if headers and not reads:
        headers.header()  # refuses headers that cannot be written, before a file is opened
    format = format or (_format_of_topic(arguments, name) if is_topic(name) else format_of_path(name))
    if format is None:
        raise UserError(
            flag, "", f"missing, and the name {name} does not tell the format", "give example, instance ..."
        )
    given = Compression[_COMPRESSIONS[arguments.compression]] if reads and arguments.compression else None
    settings = RecordSettings(
        format,
        headers if is_topic(name) else file_framing(name, format, headers),
        given or compression_of(name),
        "as_is" if arguments.fids_v1 else "v2",
        read_tf_features(arguments.tf_features, "--tf-features") if arguments.tf_features else None,
        read_kinds(arguments.column_types) if arguments.column_types else {},
    )
    check_settings(settings, name, flag)
    return settings


def _format_of_topic(arguments: argparse.Namespace, name: str) -> str:
    """The format of Millrace's own topics; Arrow blocks for all others."""
    own = topics(arguments)
    known = {own.dead_letter: "dead_letter", own.impressions: "json", own.actions: "json"}
    return known.get(topic_name(arguments, name), "arrow")


def read_chain(path: Path | None) -> "TransformChain | None":
    """The steps of a recipe file; None without one."""
    if path is None:
        return None
    from millrace.transforms.recipe.chain import TransformChain

    return TransformChain.read(str(path))
