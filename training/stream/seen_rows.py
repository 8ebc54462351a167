"""Which source rows were applied: one bit per row of every record that the feed may still send rows of."""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD

_ROWS = ROWS_PER_RECORD * MAX_COPIES
# Records of a chunk: an hour at 5,000 impressions per second is some 1,100 chunks, so that copying all references takes
# microseconds, and the first write to one after that copies at most 128 KB.
_CHUNK_BITS = 14
_CHUNK = 1 << _CHUNK_BITS
_WIDTHS = (np.uint8, np.uint16, np.uint32, np.uint64)  # words of a chunk: as narrow as the rows of its records allow
_ROW_BITS = 6  # of a mark: 64 rows per record
_MOST_MARKS = 2048  # of a list, int32: 8 KB, half of the smallest chunk with words
_LIST_BYTES = 200  # of a list beside its marks: an array, and its place among the chunks
_FILE, _OLD_FILE = "seen.arrow", "seen.npz"
_FORMAT_KEY, _FORMAT, _FORMATS = b"millrace.seen", b"3", (b"2", b"3")  # 2: without lists of marks
_BASES_KEY = b"millrace.seen.bases"
_SCHEMA = pa.schema(
    [("partition", pa.int64()), ("copy", pa.int32()), ("chunk", pa.int64()), ("words", pa.large_binary())]
)
_CHUNKS_PER_BATCH = 64  # so many are copied at a time when a state is saved: at most 8 MB


class ProvenanceError(ValueError):
    """A row index that no step makes, a negative offset, or a saved state that cannot be read."""


@dataclass(frozen=True)
class Admission:
    """What `SeenRows.admit` found: `new` is bool [n]; of the rows that are not new, some are repeats, some too old."""

    new: np.ndarray
    duplicates: int
    too_old: int


class SeenRows:
    """Which source rows (source partition, offset, row) were applied, exactly, from a base per source partition on.

    The 64 rows of a source record are the bits of one word. Rows that a step copied have other numbers: their first
    copies are the bits of another word, and so on. The words are kept in chunks of 16,384 records, which exist once one
    of their rows was seen, and until the base is above them. A word has 8, 16, 32 or 64 bits, as the highest row of its
    chunk needs. A chunk with few rows is a list of them instead: rows whose records lie far apart would take a chunk
    of words each, of thousands of times their own size. What is below a base was sent before, and is refused.

    Attributes:
      nbytes: bytes of all chunks; those that copies share are counted by each.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[int, int], _Window] = {}
        self._bases: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        return sum(window.nbytes for window in self._windows.values())

    def admit(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> Admission:
        """Marks the rows that are new; of equal rows in one call the first is new.

        Args:
          partition, offset, row: int64 [n].

        Raises:
          ProvenanceError: a row's number or offset is out of range; nothing is marked then.
        """
        if len(row) and (row.min() < 0 or row.max() >= _ROWS or offset.min() < 0):
            raise ProvenanceError(
                f"source rows {row.min()}..{row.max()} from offset {offset.min()} on: not in 0..{_ROWS - 1}, >= 0"
            )
        new = np.zeros(len(row), bool)
        too_old = 0
        for run in _runs(partition, offset, row):
            reached = run.offset >= self._bases.get(run.partition, 0)
            window = self._window(run)
            chosen = run.first & reached & ~window.has(run.chunk, run.word, run.bit)
            if chosen.any():
                window.mark(run.chunk, run.word[chosen], run.bit[chosen])
            new[run.places] = chosen
            too_old += int((~reached).sum())
        return Admission(new, int(len(row) - new.sum() - too_old), too_old)

    def mark(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> None:
        """Marks rows, int64 [n] each, that an `admit` of another object with the same rows found to be new."""
        for run in _runs(partition, offset, row):
            if run.offset[-1] >= self._bases.get(run.partition, 0):
                self._window(run).mark(run.chunk, run.word, run.bit)

    def raise_bases(self, bases: Mapping[int, int]) -> None:
        """From now on refuses rows of records below {source partition: offset}; a base never goes back."""
        for partition, base in bases.items():
            before = self._bases.get(partition, 0)
            if base <= before:
                continue
            self._bases[partition] = base
            if base >> _CHUNK_BITS == before >> _CHUNK_BITS:
                continue
            for key in [key for key in self._windows if key[0] == partition]:
                self._windows[key].drop_below(base >> _CHUNK_BITS)
                if not self._windows[key].chunks:
                    del self._windows[key]

    def copy(self) -> "SeenRows":
        """An independent copy. It takes as long as copying a reference per chunk: each side copies what it changes."""
        copied = SeenRows()
        copied._bases = dict(self._bases)
        copied._windows = {key: window.copy() for key, window in self._windows.items()}
        return copied

    def save(self, folder: Path) -> None:
        """Writes the state as `seen.arrow` into `folder`."""
        bases = json.dumps({str(partition): base for partition, base in self._bases.items()})
        schema = _SCHEMA.with_metadata({_FORMAT_KEY: _FORMAT, _BASES_KEY: bases.encode("ascii")})
        chunks = [
            (partition, copy, number, words)
            for (partition, copy), window in self._windows.items()
            for number, words in window.chunks.items()
        ]
        # Words of neighbouring records are mostly equal: lz4 takes them to a fraction at some GB per second.
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(str(folder / _FILE), schema, options=options) as writer:
            for start in range(0, len(chunks), _CHUNKS_PER_BATCH):
                columns = zip(*chunks[start : start + _CHUNKS_PER_BATCH], strict=True)
                partitions, copies, numbers, words = (list(column) for column in columns)
                data = [each.tobytes() for each in words]
                writer.write_batch(
                    pa.RecordBatch.from_arrays(
                        [
                            pa.array(values, field.type)
                            for values, field in zip((partitions, copies, numbers, data), _SCHEMA, strict=True)
                        ],
                        schema=schema,
                    )
                )

    @classmethod
    def load(cls, folder: Path) -> "SeenRows":
        """The state that `save` wrote into `folder`, now or when it was `seen.npz`.

        Raises:
          ProvenanceError: there is no such state.
        """
        try:
            if not (folder / _FILE).exists():
                return _load_old((folder / _OLD_FILE).read_bytes())
            with pa.memory_map(str(folder / _FILE)) as source, pa.ipc.open_file(source) as reader:
                return cls._read(reader)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
            raise ProvenanceError(f"saved provenance cannot be read: {error}") from error

    @classmethod
    def _read(cls, reader: pa.ipc.RecordBatchFileReader) -> "SeenRows":
        metadata = reader.schema.metadata or {}
        if metadata.get(_FORMAT_KEY) not in _FORMATS or not reader.schema.equals(_SCHEMA):
            raise ValueError(f"format {metadata.get(_FORMAT_KEY)!r} is not one of {_FORMATS}")
        seen = cls()
        seen._bases = {int(partition): int(base) for partition, base in json.loads(metadata[_BASES_KEY]).items()}
        for index in range(reader.num_record_batches):
            for partition, copy, number, words in zip(*reader.get_batch(index).to_pydict().values(), strict=True):
                seen._windows.setdefault((partition, copy), _Window()).put(number, _chunk_of(words))
        return seen

    def _window(self, run: "_Run") -> "_Window":
        return self._windows.setdefault((run.partition, run.copy), _Window())


class _Run(NamedTuple):
    """Rows of one chunk, ordered by record and row.

    Attributes:
      places: where they stand in the call, int64 [n].
      offset: int64 [n].
      word, bit: place of the record in the chunk, and of the row in the record, int64 [n].
      first: bool [n], false for a row that is equal to the one before it.
    """

    partition: int
    copy: int
    chunk: int
    places: np.ndarray
    offset: np.ndarray
    word: np.ndarray
    bit: np.ndarray
    first: np.ndarray


def _runs(partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> Iterator[_Run]:
    """The rows, int64 [n] each, by chunk."""
    if not len(row):
        return
    copy, bit = row // ROWS_PER_RECORD, row % ROWS_PER_RECORD
    order = np.lexsort((bit, offset, copy, partition))  # stable: of equal rows the first stays first
    partition, copy, offset, bit = partition[order], copy[order], offset[order], bit[order]
    chunk = offset >> _CHUNK_BITS
    edges = _differs(partition) | _differs(copy) | _differs(chunk)
    first = edges | _differs(offset) | _differs(bit)
    starts = np.flatnonzero(edges)
    word = offset & (_CHUNK - 1)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        part = slice(start, stop)
        yield _Run(
            int(partition[start]), int(copy[start]), int(chunk[start]),
            order[part], offset[part], word[part], bit[part], first[part],
        )  # fmt: skip


def _differs(values: np.ndarray) -> np.ndarray:
    """bool [n]: whether a value differs from the one before it; the first does."""
    differs = np.ones(len(values), bool)
    differs[1:] = values[1:] != values[:-1]
    return differs


class _Window:
    """The chunks of one source partition and number of the copy; those in `_own` are in no other window.

    A chunk is 16,384 words, or a sorted list of at most 2,048 marks, int32 [n]: word x 64 + bit. Lists are replaced,
    never changed.
    """

    def __init__(self) -> None:
        self.chunks: dict[int, np.ndarray] = {}
        self.nbytes = 0
        self._own: set[int] = set()

    def has(self, chunk: int, word: np.ndarray, bit: np.ndarray) -> np.ndarray:
        """bool [n]: which of these rows, int64 [n], are marked."""
        words = self.chunks.get(chunk)
        if words is None:
            return np.zeros(len(word), bool)
        if _is_list(words):
            return np.isin(_marks(word, bit), words)
        return (words[word].astype(np.uint64) >> bit.astype(np.uint64)) & np.uint64(1) != 0

    def mark(self, chunk: int, word: np.ndarray, bit: np.ndarray) -> None:
        """Marks these rows, int64 [n]."""
        words = self.chunks.get(chunk)
        if words is None or _is_list(words):
            marks = np.unique(_marks(word, bit)) if words is None else np.union1d(words, _marks(word, bit))
            if len(marks) <= _MOST_MARKS:
                self.put(chunk, marks)
                return
            word, bit = marks >> _ROW_BITS, marks & (ROWS_PER_RECORD - 1)
            self.put(chunk, np.zeros(_CHUNK, _width_for(int(bit.max()))))
        words = self._writable(chunk, int(bit.max()))
        np.bitwise_or.at(words, word, (np.uint64(1) << bit.astype(np.uint64)).astype(words.dtype))

    def put(self, chunk: int, words: np.ndarray) -> None:
        """Replaces a chunk."""
        before = self.chunks.get(chunk)
        self.nbytes += _size(words) - (0 if before is None else _size(before))
        self.chunks[chunk] = words
        self._own.add(chunk)

    def drop_below(self, chunk: int) -> None:
        """Removes the chunks with lower numbers."""
        for number in [number for number in self.chunks if number < chunk]:
            self.nbytes -= _size(self.chunks.pop(number))
            self._own.discard(number)

    def copy(self) -> "_Window":
        copied = _Window()
        copied.chunks, copied.nbytes = dict(self.chunks), self.nbytes
        self._own.clear()
        return copied

    def _writable(self, chunk: int, highest_bit: int) -> np.ndarray:
        """The words of a chunk that has words: they may be changed, and have room for `highest_bit`."""
        words = self.chunks[chunk]
        if words.dtype.itemsize * 8 <= highest_bit:
            self.put(chunk, words.astype(_width_for(highest_bit)))
        elif chunk not in self._own:
            self.put(chunk, words.copy())
        return self.chunks[chunk]


def _marks(word: np.ndarray, bit: np.ndarray) -> np.ndarray:
    """int32 [n] of words and bits, integers [n]."""
    return (word << _ROW_BITS | bit).astype(np.int32)


def _is_list(chunk: np.ndarray) -> bool:
    """Whether a chunk is a list of marks; words are unsigned."""
    return chunk.dtype.kind == "i"


def _size(chunk: np.ndarray) -> int:
    """Bytes of memory."""
    return chunk.nbytes + (_LIST_BYTES if _is_list(chunk) else 0)


def _chunk_of(data: bytes) -> np.ndarray:
    """A chunk as it was saved: a list is always shorter than the narrowest words."""
    width = len(data) // _CHUNK
    chunk = np.frombuffer(data, np.dtype(f"<u{width}" if width else "<i4")).copy()
    if width and len(chunk) != _CHUNK:
        raise ValueError(f"a chunk of {len(data)} bytes")
    return chunk


def _width_for(highest_bit: int) -> type[np.unsignedinteger]:
    return next(width for width in _WIDTHS if np.dtype(width).itemsize * 8 > highest_bit)


def _load_old(data: bytes) -> SeenRows:
    """The state of `seen.npz`: a ring of words per partition and copy, that forgot what was `horizon` records old."""
    seen, bases = SeenRows(), dict[int, int]()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        horizon = int(arrays["horizon"])
        for name in arrays.files:
            if not name.startswith("base_"):
                continue
            window = name.removeprefix("base_")
            partition, _, copy = window.partition("_")
            base, words = int(arrays[name]), arrays[f"words_{window}"].astype(np.uint64)
            _put_words(seen, (int(partition), int(copy or 0)), base, words)
            if len(words) >= horizon:  # what stood below was forgotten
                bases[int(partition)] = max(base, bases.get(int(partition), 0))
    seen.raise_bases(bases)
    return seen


def _put_words(seen: SeenRows, key: tuple[int, int], base: int, words: np.ndarray) -> None:
    """Stores the words of the records from `base` on."""
    window = seen._windows.setdefault(key, _Window())
    at = 0
    while at < len(words):
        number, place = divmod(base + at, _CHUNK)
        part = words[at : at + _CHUNK - place]
        chunk = np.zeros(_CHUNK, _width_for(int(part.max()).bit_length() - 1 if part.any() else 0))
        chunk[place : place + len(part)] = part
        window.put(number, chunk)
        at += len(part)
