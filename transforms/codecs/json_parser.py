"""Records that are JSON objects to columns, and dead letters for what cannot be read.

Plain objects are read in C++ (`ops/cc/records/json/json_reader.h`). `pyarrow.json` parses all others at once, joined
with newlines. One malformed record fails the whole parse, so a failing run of records is split, around the bad record
where the parser names it, else in halves, until the bad one is alone: k bad records among n cost O(k log n) parses at
most, and Python touches no good one.
"""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from millrace.ops import record_library
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.codecs import json_faults

MAX_VALUE_BYTES = 1 << 20
"""Longest record that is parsed, as large as a Kafka message may be by default."""

# pyarrow's parser stops after 100,000 objects per block.
_MAX_PARSE_ROWS = 50_000
# A parse takes 300 us even for one record. After so many failures most of the block is bad, and it is faster to look at
# each record with Python's parser.
_MAX_FAILURES = 32
# A field that an object lacks is a null in its row: a block of `{}` with a wide schema would be a thousand times as
# large as its records. Cells, rows times fields, that each block may have, and per byte of its records; a record of 200
# bytes may so lack all of 3,000 fields.
_MIN_CELLS = 1 << 22
_CELLS_PER_BYTE = 16
_ROW_IN_PROBLEM = re.compile(r" in row (\d+)$")


def parse_objects(
    block: pa.RecordBatch, schema: pa.Schema, refusals: Refusals, version: int | None = None
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Parses the records that can be parsed; the others are refused.

    Args:
      block: raw block.
      schema: fields to parse; all others are ignored, and what an object lacks is null.
      refusals: takes the refused records.
      version: the supported value of `schema_version`, where objects have that field: an object that cannot be parsed
        and has another value is refused as `unknown_schema_version`.

    Returns: (one row per parsed record, with the columns of `schema`; int64 positions of these records in `block`).
    """
    values = _within_cells(block.column("value"), schema, refusals)
    plain = record_library.read_json(values, schema, MAX_VALUE_BYTES)
    if plain is None:
        return parse_unusual(values, np.arange(len(values)), schema, refusals, version)
    rows, is_plain = plain
    if is_plain.all():
        return rows, np.arange(len(values))
    others, found = parse_unusual(values, np.flatnonzero(~is_plain), schema, refusals, version)
    positions = np.concatenate([np.flatnonzero(is_plain), found])
    if not len(found):
        return rows, positions
    order = np.argsort(positions)
    return record_batch.concat([rows, others]).take(pa.array(order)), positions[order]


def _within_cells(values: pa.BinaryArray, schema: pa.Schema, refusals: Refusals) -> pa.BinaryArray:
    """The first of `values`, as many as may become rows of so many fields; the others are refused."""
    size = pc.sum(pc.binary_length(values)).as_py() or 0
    most = (_MIN_CELLS + _CELLS_PER_BYTE * size) // max(1, len(schema))
    if len(values) > most:
        detail = f"{len(values)} rows x {len(schema)} fields in one block, at most {most} rows for records of this size"
        refusals.add(np.arange(most, len(values)), Reason.TOO_MANY_ROWS, detail)
    return values.slice(0, most)


def parse_unusual(
    values: pa.BinaryArray, rows: np.ndarray, schema: pa.Schema, refusals: Refusals, version: int | None = None
) -> tuple[pa.RecordBatch, np.ndarray]:
    """`parse_objects` for the values at `rows`, by `pyarrow.json` alone."""
    _refuse_unreadable(values, rows, refusals)
    batches, positions, failures = [], [], 0
    todo = _runs(rows[refusals.keep(rows)])
    while todo:
        rows = todo.pop()
        batch, problem = _parse_run(values.take(pa.array(rows)), schema)
        if batch is not None:
            batches.append(batch)
            positions.append(rows)
            continue
        failures += 1
        if len(rows) == 1:
            reason, detail = json_faults.diagnose(values[int(rows[0])].as_py(), schema, problem, version)
            refusals.add(rows, reason, detail)
        else:
            todo += _split(rows, problem)
        if failures == _MAX_FAILURES:
            todo = [kept for run in todo if len(kept := _screen(values, run, schema, refusals, version))]
    found = np.concatenate(positions) if positions else np.zeros(0, np.int64)
    return record_batch.concat(batches, schema), found


def _screen(
    values: pa.BinaryArray, rows: np.ndarray, schema: pa.Schema, refusals: Refusals, version: int | None
) -> np.ndarray:
    """Refuses the records that Python's parser finds bad, one at a time; returns the other rows."""
    for row in rows.tolist():
        fault = json_faults.find_fault(values[row].as_py(), schema, version)
        if fault:
            refusals.add(np.array([row]), *fault)
    return rows[refusals.keep(rows)]


def _runs(rows: np.ndarray) -> list[np.ndarray]:
    """`rows` in pieces of as many records as the parser takes, last piece first."""
    return [rows[at : at + _MAX_PARSE_ROWS] for at in range(0, len(rows), _MAX_PARSE_ROWS)][::-1]


def _split(rows: np.ndarray, problem: str) -> list[np.ndarray]:
    """`rows` without its bad record, where the parser says which one, else its halves; later rows first."""
    named = _ROW_IN_PROBLEM.search(problem)
    at = int(named[1]) if named else -1
    if 0 <= at < len(rows):
        pieces = [rows[at + 1 :], rows[at : at + 1], rows[:at]]
    else:
        pieces = [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
    return [piece for piece in pieces if len(piece)]


def _parse_run(values: pa.BinaryArray, schema: pa.Schema) -> tuple[pa.RecordBatch | None, str]:
    """(one row per value, "") or (None, what is wrong).

    Each value begins with `{` and ends with `}` (`_refuse_unreadable`). Between values there is then `}` newline `{`,
    which is valid JSON only between two objects. So every value gives at least one object, and as many objects as
    values means one object per value: a row cannot be taken for that of another record.
    """
    one_list = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    text = pc.binary_join(one_list, b"\n")[0].as_buffer()
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=text.size + 1)
    parse = pyarrow.json.ParseOptions(
        explicit_schema=schema, newlines_in_values=True, unexpected_field_behavior="ignore"
    )
    try:
        table = pyarrow.json.read_json(pa.BufferReader(text), read_options=read, parse_options=parse)
    except pa.ArrowInvalid as error:
        return None, str(error)
    if table.num_rows != len(values):
        return None, "more than one JSON object"
    return table.combine_chunks().to_batches()[0], ""


def _refuse_unreadable(values: pa.BinaryArray, rows: np.ndarray, refusals: Refusals) -> None:
    """Refuses values that are empty, too large, not UTF-8, or do not begin and end as one JSON object does."""
    lengths = pc.fill_null(pc.binary_length(values.take(pa.array(rows))), 0).to_numpy(zero_copy_only=False)
    refusals.add(rows[lengths == 0], Reason.EMPTY_VALUE, "no value")
    refusals.add(rows[lengths > MAX_VALUE_BYTES], Reason.TOO_LARGE, f"more than {MAX_VALUE_BYTES} bytes")
    rows = rows[refusals.keep(rows)]
    for bad in _not_utf8(values, rows):
        refusals.add(bad, Reason.NOT_UTF8, "not UTF-8")
    rows = rows[refusals.keep(rows)]
    first, last, has_nul = _outer_bytes(values.take(pa.array(rows)))
    odd = (first != ord("{")) | (last != ord("}")) | has_nul
    # White space around an object is legal and rare, so these values are checked one by one.
    for row, nul in zip(rows[odd].tolist(), has_nul[odd].tolist(), strict=True):
        stripped = values[row].as_py().strip(b" \t\r\n")
        if nul or not (stripped.startswith(b"{") and stripped.endswith(b"}")):
            refusals.add(np.array([row]), *json_faults.not_an_object(stripped))


def _not_utf8(values: pa.BinaryArray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Positions among `rows` of values that are not UTF-8, one at a time."""
    todo = [rows] if len(rows) else []
    while todo:
        some = todo.pop()
        try:
            values.take(pa.array(some)).cast(pa.string())
        except pa.ArrowInvalid:
            if len(some) == 1:
                yield some
            else:
                middle = len(some) // 2
                todo += [some[middle:], some[:middle]]


def _outer_bytes(values: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First byte, last byte, and whether a NUL is inside (JSON has none, and the parser stops there), of each value."""
    if not len(values):
        return np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0, bool)
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, values.offset * 4)
    data = np.frombuffer(values.buffers()[2], np.uint8)
    nul_at = np.flatnonzero(data[offsets[0] : offsets[-1]] == 0) + offsets[0]
    has_nul = np.zeros(len(values), bool)
    has_nul[np.searchsorted(offsets, nul_at, side="right") - 1] = True
    return data[offsets[:-1]], data[offsets[1:] - 1], has_nul
