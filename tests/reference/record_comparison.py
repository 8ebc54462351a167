"""Whether the codecs in C++ agree with `record_reference`."""

import math
from typing import Any

import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.codecs.record_codec import DecodeOptions, decode_records
from tests.reference import record_reference

FIRST_OFFSET = 100
_PROVENANCE = [record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW]


def block_of(values: list[bytes | None]) -> pa.RecordBatch:
    """A raw block of topic `records`, partition 3."""
    return raw_block("records", values, 3, range(FIRST_OFFSET, FIRST_OFFSET + len(values)))


def assert_as_reference(values: list[bytes | None], format: str, as_is: bool) -> None:
    """The same rows, the same types and the same records refused.

    But for one case: text that a later one in the record replaces may be no UTF-8 for Protobuf; here it may not.
    """
    options = DecodeOptions(fids="as_is" if as_is else "v2", pruning="as_is")
    batch, dead = decode_records(block_of(values), format, options)
    batch.validate(full=True)
    rows, types, refused = record_reference.decode(values, format, as_is, keep_raw=True)
    ours = {row["offset"] - FIRST_OFFSET: row["detail"] for row in dead.to_pylist()}
    stricter = {index for index, detail in ours.items() if index not in refused and "not UTF-8" in detail}
    if stricter:
        assert_as_reference([None if i in stricter else value for i, value in enumerate(values)], format, as_is)
        return
    assert set(ours) == set(refused), dead.to_pylist()
    assert feature_types(batch) == types
    assert plain_rows(batch) == [{name: _plain(value) for name, value in row.items()} for row in rows]


def plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows without nulls and provenance, so that equal bits are equal: NaN, and 0.0 beside -0.0."""
    rows = batch.drop_columns(_PROVENANCE).to_pylist()
    return [{name: _plain(value) for name, value in row.items() if value is not None} for row in rows]


def feature_types(batch: pa.RecordBatch) -> dict[str, str]:
    """{feature: type and kind} as `record_reference.decode` gives them."""
    types = {}
    for field in batch.schema:
        if field.name in record_reference.METADATA:
            continue
        kind = (field.metadata or {}).get(record_batch.KIND_KEY, b"").decode()
        types[field.name] = f"{field.type} {kind}".replace("item: ", "").strip()
    return types


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value
