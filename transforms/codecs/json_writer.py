"""Rows to the text of JSON objects, written column by column."""

import base64
import json
from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import SIGNATURE_BITS, SIGNATURE_BITS_V1, SIGNATURE_MASK, SIGNATURE_MASK_V1
from millrace.transforms.batch.list_columns import lengths, list_array, splits_of

FidText = Literal["int64", "unsigned", "slots"]
"""How fids are written: as the int64 of the column, as unsigned numbers, or as text slot/signature.

The text of a fid v2 is `"2/17"`, that of a fid v1 `"v1:2/17"`.
"""

_LAYOUTS = {
    b"fid": ("", SIGNATURE_BITS, SIGNATURE_MASK),
    b"fid_v1": ("v1:", SIGNATURE_BITS_V1, SIGNATURE_MASK_V1),
}


def json_lines(batch: pa.RecordBatch, fids: FidText = "int64") -> pa.StringArray:
    """string [rows]: each row as one JSON object without line feeds, in the order of the columns; nulls are left out.

    Bytes are written as text where they are UTF-8, else as `{"base64": ...}`; infinite floats and NaN as text.
    """
    return _objects(batch.schema, batch.columns, batch.num_rows, fids)


def json_values(field: pa.Field, column: pa.Array, fids: FidText = "int64") -> pa.StringArray:
    """string [rows]: the JSON of each value of a column, null where it is null."""
    return _text(column, (field.metadata or {}).get(record_batch.KIND_KEY), fids)


def _objects(fields: Iterable[pa.Field], columns: list[pa.Array], rows: int, fids: FidText) -> pa.StringArray:
    members = []
    for field, column in zip(fields, columns, strict=True):
        text = json_values(field, column, fids)
        name = json.dumps(field.name, ensure_ascii=False)
        # Not null_handling="skip": Arrow then leaves out rows of nulls alone.
        members.append(pc.fill_null(pc.binary_join_element_wise(f",{name}:", text, ""), ""))
    if not members:
        return pa.repeat(pa.scalar("{}"), rows)
    inside = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*members, ""), 1)
    return pc.binary_join_element_wise("{", inside, "}", "")


def _text(column: pa.Array, kind: bytes | None, fids: FidText) -> pa.StringArray:
    """string [rows]: the JSON of each value, null where it is null."""
    type = column.type
    if pa.types.is_dictionary(type):
        return _text(column.dictionary_decode(), kind, fids)
    if pa.types.is_list(type):
        return _lists(column, kind, fids)
    if pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return _lists(column.cast(pa.list_(type.value_type)), kind, fids)
    if pa.types.is_struct(type):
        return _structs(column, fids)
    if kind in _LAYOUTS and pa.types.is_int64(type) and fids != "int64":
        return _unsigned(column) if fids == "unsigned" else _slots(column, *_LAYOUTS[kind])
    if pa.types.is_floating(type):
        return _floats(column)
    if pa.types.is_integer(type) or pa.types.is_boolean(type) or pa.types.is_null(type):
        return column.cast(pa.string())
    if _is_bytes(type):
        return _quoted(column.cast(pa.binary()))
    return _quoted(column.cast(pa.string()).cast(pa.binary()))


def _is_bytes(type: pa.DataType) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type)


def _lists(column: pa.ListArray, kind: bytes | None, fids: FidText) -> pa.StringArray:
    values = pc.fill_null(_text(column.flatten(), kind, fids), "null")
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    joined = pc.binary_join(list_array(values, splits_of(lengths(column)), nulls=nulls), ",")
    return pc.binary_join_element_wise("[", joined, "]", "")


def _structs(column: pa.StructArray, fids: FidText) -> pa.StringArray:
    text = _objects(list(column.type), column.flatten(), len(column), fids)
    return pc.if_else(column.is_valid(), text, pa.scalar(None, pa.string()))


def _unsigned(column: pa.Array) -> pa.StringArray:
    return column.view(pa.uint64()).cast(pa.string())


def _slots(column: pa.Array, mark: str, bits: int, mask: int) -> pa.StringArray:
    values = column.view(pa.uint64())
    slot = pc.shift_right(values, pa.scalar(bits, pa.uint64())).cast(pa.string())
    signature = pc.bit_wise_and(values, pa.scalar(mask, pa.uint64())).cast(pa.string())
    return pc.binary_join_element_wise(f'"{mark}', slot, "/", signature, '"', "")


def _floats(column: pa.Array) -> pa.StringArray:
    """The shortest text that reads back as the same float; whole numbers keep a fraction, so that they stay floats."""
    text = column.cast(pa.float32() if pa.types.is_float16(column.type) else column.type).cast(pa.string())
    whole = pc.match_substring_regex(text, r"^-?\d+$")
    text = pc.if_else(whole, pc.binary_join_element_wise(text, ".0", ""), text)
    finite = pc.is_finite(column)
    if pc.all(finite).as_py() is not False:
        return text
    return pc.if_else(finite, text, pc.binary_join_element_wise('"', text, '"', ""))


def _quoted(column: pa.BinaryArray) -> pa.StringArray:
    """Each distinct value is escaped once."""
    encoded = pc.dictionary_encode(column)
    escaped = pa.array([_quote(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return escaped.take(encoded.indices)


def _quote(value: bytes) -> str:
    try:
        content: Any = value.decode("utf-8")
    except UnicodeDecodeError:
        content = {"base64": base64.b64encode(value).decode("ascii")}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
