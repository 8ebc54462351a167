"""Files, standard input or a topic as an iterator of canonical batches and dead letters, without a Beam pipeline.

Memory is bounded by one batch, however large the source is.
"""

import abc
import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from confluent_kafka import Message

from millrace.pipelines.files.containers import (
    CONTAINERS,
    DEAD_LETTER,
    ParquetSettings,
    ReadFile,
    StreamSettings,
    read_parquet,
    read_records,
)
from millrace.pipelines.files.decode import make_decoder
from millrace.pipelines.files.format import RecordSettings
from millrace.pipelines.files.patterns import match_files
from millrace.pipelines.files.storage import open_file
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_records import KafkaReadError
from millrace.runtime.topic_range import TopicRange, read_messages
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.frames.framing import FrameOptions

_NONE = record_batch.empty(pa.schema([]))
_NO_DEAD_LETTERS = record_batch.empty(dead_letter.SCHEMA)

STANDARD_INPUT = ("-", "/dev/stdin")
"""Names of standard input."""

ReadProgress = Callable[[int, int], None]
"""(how much of a source's `size` has been read, rows or records since the last call): called after each part."""


class Part(NamedTuple):
    """The next piece of a source.

    Attributes:
      rows: canonical rows.
      dead: dead letters.
      done: how much of the source's `size` has been read, this part included.
      block: the raw block that the rows were in; None for files of rows.
    """

    rows: pa.RecordBatch
    dead: pa.RecordBatch
    done: int
    block: pa.RecordBatch | None = None


class DeadLetterCounts:
    """Counts dead letters by reason, and keeps the detail of the first of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._details: dict[str, str] = {}

    def add(self, dead: pa.RecordBatch) -> None:
        if not dead.num_rows:
            return
        self.counts.update(dead_letter.count_by_reason(dead))
        for reason in self.counts.keys() - self._details.keys():
            first = pc.index(dead.column("reason"), reason).as_py()
            self._details[reason] = dead.column("detail")[first].as_py() or ""

    def __str__(self) -> str:
        return ", ".join(f"{reason} {n} ({self._details[reason]})" for reason, n in sorted(self.counts.items()))

    def as_json(self) -> dict[str, dict[str, int | str]]:
        """{reason: {"records": how many, "first": detail of the first}}."""
        return {each: {"records": n, "first": self._details[each]} for each, n in sorted(self.counts.items())}


class RecordSource(abc.ABC):
    """Records of files or of a topic. Each call of `parts` or `blocks` begins at the start.

    Attributes:
      name: as the user gave it.
      size: of the whole source, in the units of `Part.done`; 0 where nobody knows it.
    """

    name: str
    settings: RecordSettings

    @property
    @abc.abstractmethod
    def size(self) -> int: ...

    @abc.abstractmethod
    def parts(self) -> Generator[Part, None, None]:
        """Decoded rows and dead letters. Raises: UserError for a source that cannot be read at all."""

    def with_features(self, features: Collection[str] | None) -> "RecordSource":
        """This source, whose rows need no other features than these; None: they need all. It may give more."""
        return self

    @abc.abstractmethod
    def blocks(self) -> Iterator[Part]:
        """The records undecoded: parts with a raw block and without rows."""


@dataclass(frozen=True)
class FileSource(RecordSource):
    """Files, one after the other; `size` is in bytes.

    Attributes:
      features: that are read of Parquet files, beside all row metadata; None: all.
    """

    name: str
    settings: RecordSettings
    files: Sequence[tuple[int, str]]
    sizes: Sequence[int]
    features: Collection[str] | None = None

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def with_features(self, features: Collection[str] | None) -> "FileSource":
        return replace(self, features=features)

    def parts(self) -> Generator[Part, None, None]:
        settings = self.settings
        if settings.framing is None:
            yield from self._read(self._row_reader())
        else:
            decode = make_decoder(settings, frames=None)
            for block, dead, done, _ in self._read(self._block_reader()):
                rows, refused = decode(block)
                yield Part(rows, record_batch.concat([dead, refused]) if dead.num_rows else refused, done, block)

    def blocks(self) -> Iterator[Part]:
        for block, dead, done, _ in self._read(self._block_reader()):
            yield Part(_NONE, dead, done, block)

    def _row_reader(self) -> ReadFile:
        if self.settings.format == "parquet":
            settings = ParquetSettings(kinds=self.settings.kinds, features=self.features)
            return functools.partial(read_parquet, settings=settings)
        return CONTAINERS[self.settings.format].read

    def _block_reader(self) -> ReadFile:
        assert self.settings.framing is not None
        settings = StreamSettings(self.settings.compression)
        return functools.partial(read_records, framing=self.settings.framing, settings=settings)

    def _open(self, path: str) -> AbstractContextManager[BinaryIO]:
        return open_file(path)

    def _read(self, read: ReadFile) -> Iterator[Part]:
        before = 0
        for (number, path), size in zip(self.files, self.sizes, strict=True):
            try:
                with self._open(path) as file:
                    for batch, dead in read(file, number, path):
                        yield Part(batch, dead, before + (min(size, file.tell()) if file.seekable() else 0))
            except OSError as error:
                raise UserError("SOURCE", path, f"cannot be read ({error.strerror or error})", "name files") from error
            before += size


@dataclass(frozen=True)
class StandardInput(FileSource):
    """Standard input, as one file. A pipe can be read once only.

    Raises: UserError for a second pass over a pipe, and for files of rows, whose readers seek.
    """

    _unread: Iterator[None] = field(default_factory=lambda: iter([None]))

    def _open(self, path: str) -> AbstractContextManager[BinaryIO]:
        if sys.stdin is None:
            raise UserError("SOURCE", path, "standard input is closed", "name a file, or send records to it")
        stream = sys.stdin.buffer
        if stream.seekable():
            stream.seek(0)
        elif self.settings.framing is None:
            raise UserError("SOURCE", path, f"a pipe cannot be read as {self.settings.format}", "name a file")
        elif next(self._unread, self) is self:
            raise UserError("SOURCE", path, "a pipe can be read once, and this takes two passes", "name a file")
        return nullcontext(stream)


@dataclass(frozen=True)
class TopicSource(RecordSource):
    """A range of a topic; `size` is in records."""

    name: str
    settings: RecordSettings
    range: TopicRange

    @property
    def size(self) -> int:
        return self.range.size

    def parts(self) -> Generator[Part, None, None]:
        framing = self.settings.framing
        decode = make_decoder(self.settings, framing if isinstance(framing, FrameOptions) else None)
        done = 0
        for messages in self.messages():
            done += len(messages)
            block = block_of_messages(self.range.topic, messages)
            if self.settings.format == DEAD_LETTER:
                yield Part(_NONE, dead_letters_of(messages), done, block)
            else:
                yield Part(*decode(block), done, block)

    def blocks(self) -> Iterator[Part]:
        done = 0
        for messages in self.messages():
            done += len(messages)
            yield Part(_NONE, _NO_DEAD_LETTERS, done, block_of_messages(self.range.topic, messages))

    def messages(self) -> Iterator[list[Message]]:
        """The Kafka messages, with their keys and headers."""
        try:
            yield from read_messages(self.range)
        except KafkaReadError as error:
            raise UserError("SOURCE", self.name, str(error), "see the brokers, or start elsewhere") from error


def open_files(pattern: str, settings: RecordSettings) -> FileSource:
    """The files that a pattern matches, or standard input for `-`. UserError when there are none."""
    if pattern in STANDARD_INPUT:
        return StandardInput(pattern, settings, [(0, pattern)], [0])
    files = match_files(pattern, "SOURCE")
    sizes = [FileSystems.get_filesystem(path).size(path) for _, path in files]
    return FileSource(pattern, settings, files, sizes)


def block_of_messages(topic: str, messages: Sequence[Message]) -> pa.RecordBatch:
    """The raw block of Kafka messages; the time of a message without one is 0."""
    return raw_block(
        topic,
        [message.value() for message in messages],
        [message.partition() for message in messages],
        [message.offset() for message in messages],
        [max(0, message.timestamp()[1]) for message in messages],
    )


def dead_letters_of(messages: Sequence[Message]) -> pa.RecordBatch:
    """Messages of a dead-letter topic as `dead_letter.SCHEMA`; null where a header is missing."""
    return pa.RecordBatch.from_pylist([_dead_letter(each) for each in messages], schema=dead_letter.SCHEMA)


def _dead_letter(message: Message) -> dict[str, object]:
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or ()}
    numbers = {name: int(text) for name, text in headers.items() if name in _NUMBERS and text.lstrip("-").isdecimal()}
    return {
        "value": message.value() or b"",
        "topic": headers.get("source-topic"),
        "partition": numbers.get("source-partition"),
        "offset": numbers.get("source-offset"),
        "reason": headers.get("reason", "unknown"),
        "detail": headers.get("detail"),
        "truncated_from": numbers.get("truncated-from"),
    }


_NUMBERS = ("source-partition", "source-offset", "truncated-from")
