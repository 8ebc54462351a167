"""Hypothesis batches for the filters: every kind of column, unset, null, empty, and sliced."""

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from millrace.transforms.batch.fid import fid_v1, fid_v2
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.batch.record_batch import FID_METADATA, FID_V1_METADATA, RAW_METADATA

FIDS_V1 = [int(fid_v1(slot, signature)) for slot in (1, 2, 600) for signature in (1, 7)]
FIDS_V2 = [int(fid_v2(slot, signature)) for slot in (1, 2, 600) for signature in (1, 7)]
INTS = [-1, 0, 1, 2, 3, 10, -(2**63), 2**63 - 1]
SMALL_INTS = [-1, 0, 1, 2, 3, 10]
FLOATS = [-0.0, 0.0, 0.1, 1.0, 2.5, -3.0, float("inf")]
TEXTS = ["", "hell", "hello", "hello1", "llo", "é", "\U0001f600"]

_Cell = Callable[[random.Random], Any]


def _one(choices: list[Any]) -> _Cell:
    return lambda source: source.choice(choices)


def _some(cell: _Cell, most: int) -> _Cell:
    return lambda source: [cell(source) for _ in range(source.randint(0, most))]


_FLOAT = _one([*FLOATS, float("nan")])
_BYTES = _some(_one([text.encode() for text in TEXTS]), 2)

_COLUMNS: list[tuple[pa.Field, _Cell]] = [
    (pa.field("a", pa.list_(pa.int64()), metadata=FID_METADATA), _some(_one(FIDS_V2), 3)),
    (pa.field("b", pa.list_(pa.int64()), metadata=FID_V1_METADATA), _some(_one(FIDS_V1), 3)),
    (pa.field("nested", pa.list_(pa.list_(pa.int64())), metadata=FID_METADATA), _some(_some(_one(FIDS_V2), 3), 2)),
    (pa.field("ints", pa.list_(pa.int64())), _some(_one(INTS), 3)),
    (pa.field("floats", pa.list_(pa.float32())), _some(_FLOAT, 2)),
    (pa.field("doubles", pa.list_(pa.float64())), _some(_FLOAT, 2)),
    (pa.field("texts", pa.list_(pa.binary())), _BYTES),
    (pa.field("raw", pa.list_(pa.binary()), metadata=RAW_METADATA), _BYTES),
    (pa.field("number", pa.int64()), _one(INTS)),
    (pa.field("__UID__", pa.int64()), _one(INTS)),
    (pa.field("__REQ_TIME__", pa.int64()), _one(INTS)),
    (pa.field("__READ_COUNT__", pa.int64()), _one(INTS)),
    (pa.field("__RANK__", pa.int32()), _one(SMALL_INTS)),
    (pa.field("__IS_DRAW__", pa.bool_()), _one([True, False])),
    (pa.field("__VIDEO_PLAY_TIME__", pa.float32()), _FLOAT),
    (pa.field("__DID__", pa.string()), _one(TEXTS)),
    (pa.field("__VID__", pa.dictionary(pa.int32(), pa.string())), _one(TEXTS)),
    (pa.field("__ACTIONS__", pa.list_(pa.int32())), _some(_one(SMALL_INTS), 4)),
    (pa.field("__CHNIDS__", pa.list_(pa.int64())), _some(_one(INTS), 4)),
    (pa.field("__SPECIAL_STRATEGIES__", pa.list_(pa.int32())), _some(_one(SMALL_INTS), 4)),
    (pa.field("__LABEL__", pa.list_(pa.float32())), _some(_FLOAT, 3)),
    (pa.field("__DATA_SOURCE_KEY__", pa.uint32()), _one([0, 914176, 1250992640, 2782803200, 256])),
]


@st.composite
def batches(draw: st.DrawFn, *names: str) -> pa.RecordBatch:
    """A batch of 0 to 12 rows with provenance, and some of the columns `names`; of all columns, when none are named."""
    source = random.Random(draw(st.integers(0, 2**32 - 1)))
    rows, before, after = source.choice([0, 1, 5, 12]), source.choice([0, 3]), source.choice([0, 3])
    arrays, fields = [], []
    for field, cell in _COLUMNS:
        nulls = source.choice([0.0, 0.0, 0.3, 0.3, 0.3, 1.0])
        if (names and field.name not in names) or source.random() < 0.15:
            continue
        cells = [None if source.random() < nulls else cell(source) for _ in range(before + rows + after)]
        arrays.append(pa.array(cells, field.type))
        fields.append(field)
    placeholder = pa.nulls(before + rows + after, pa.list_(pa.float32()))
    batch = pa.RecordBatch.from_arrays(
        [*arrays, placeholder], schema=pa.schema([*fields, pa.field("empty", placeholder.type)])
    )
    return with_provenance(batch, 3, 100).slice(before, rows)
