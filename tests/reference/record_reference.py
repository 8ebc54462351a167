"""Records row by row, by the Protobuf runtime: what `transforms/codecs/record_codec.py` decodes in C++."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError, Message

from millrace.protos.instance_pb2 import Instance
from millrace.protos.line_id_pb2 import LineId
from millrace.protos.record_pb2 import SHARED, Example, ExampleBatch, Feature
from millrace.transforms.batch import line_id

_ROWS_PER_RECORD = 64
_KINDS = {
    "fid_v1_list": "list<int64> fid_v1",
    "fid_v2_list": "list<int64> fid",
    "float_list": "list<float>",
    "double_list": "list<double>",
    "int64_list": "list<int64>",
    "bytes_list": "list<binary>",
    "fid_v1_lists": "list<list<int64>> fid_v1",
    "fid_v2_lists": "list<list<int64>> fid",
    "float_lists": "list<list<float>>",
    "double_lists": "list<list<double>>",
    "int64_lists": "list<list<int64>>",
    "bytes_lists": "list<list<binary>>",
    "int64_value": "int64",
    "float_value": "float",
    "double_value": "double",
    "bytes_value": "binary",
}
_INSTANCE_KINDS = {
    "fid": "fid_v2_list",
    "float_value": "float_list",
    "int64_value": "int64_list",
    "bytes_value": "bytes_list",
    "fid_list": "fid_v2_lists",
    "float_list": "float_lists",
    "int64_list": "int64_lists",
    "bytes_list": "bytes_lists",
}
_RESERVED = {"__LINE_ID__", "__LABEL__", "instance_weight"}
METADATA = {field.column for field in line_id.FIELDS.values()} | {
    "__LABEL__",
    "__WEIGHT__",
    "__DATA_SOURCE_KEY__",
    "__SOURCE_PARTITION__",
    "__SOURCE_OFFSET__",
    "__SOURCE_ROW__",
}


class RefusedError(ValueError):
    """The record is refused; the message is the reason."""


class _Record:
    """Rows of one record, and the types of features so far: empty for a name that has never come with a value."""

    def __init__(self, rows: int, types: dict[str, str], as_is: bool) -> None:
        self.rows: list[dict[str, Any]] = [{} for _ in range(rows)]
        self.types = dict(types)
        self._as_is = as_is
        self._names: set[str] = set()

    def name(self, name: str | bytes) -> str:
        if isinstance(name, bytes):
            raise RefusedError("not_utf8")
        if name in METADATA - _RESERVED or "\0" in name:
            raise RefusedError("reserved_name")
        if name in self._names:
            raise RefusedError("duplicate_feature")
        self._names.add(name)
        self.types.setdefault(name, "")
        return name

    def put(self, row: int, name: str, kind: str, value: Any) -> None:
        found = _KINDS.get(kind, kind)
        if not self._as_is and found.endswith(("fid", "fid_v1")):
            value = _each(value, _to_v2 if found.endswith("fid_v1") else _check_v2)
            found = found.replace("fid_v1", "fid")
        if self.types[name] not in ("", found):
            raise RefusedError("wrong_type")
        self.types[name] = found
        self.rows[row][name] = _each(value, _signed) if "fid" in found else value


def decode(
    values: Iterable[bytes | None], format: str, as_is: bool = False, keep_raw: bool = False
) -> tuple[list[dict[str, Any]], dict[str, str], dict[int, str]]:
    """Decodes values of different offsets.

    Returns: (rows without nulls and provenance, {feature: type in order of appearance}, {refused value: reason}).
    """
    read = {"example": _example, "example_batch": _example_batch, "instance": _instance}[format]
    rows: list[dict[str, Any]] = []
    types: dict[str, str] = {}
    refused: dict[int, str] = {}
    for index, value in enumerate(values):
        try:
            record = read(value, types, as_is, keep_raw)
        except RefusedError as error:
            refused[index] = str(error)
            continue
        rows += record.rows
        types = record.types
    return rows, {name: found for name, found in types.items() if found}, refused


def _parse(message: Message, value: bytes | None, reason: str = "malformed_proto") -> Any:
    if not value:
        raise RefusedError("empty_value")
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise RefusedError(reason) from error
    return message


def _example(value: bytes | None, types: dict[str, str], as_is: bool, keep_raw: bool) -> _Record:
    example = _parse(Example(), value)
    record = _Record(1, types, as_is)
    row = record.rows[0]
    who, labels = example.line_id, list(example.label)
    fields = {field.name for field, _ in example.ListFields()}
    if "instance_weight" in fields:
        row["__WEIGHT__"] = example.instance_weight
    for named in example.named_feature:
        if record.name(named.name) in _RESERVED:
            found = _reserved(named.name, named.feature)
            if named.name == "__LINE_ID__":
                who = who if found is None else found
            elif named.name == "__LABEL__":
                labels += found or []
            elif found is not None:
                row["__WEIGHT__"] = found[0] if found else 1.0
        else:
            _put_feature(record, 0, named.name, named.feature)
    for raw in example.named_raw_feature if keep_raw else ():
        if record.name(raw.name) in _RESERVED:
            raise RefusedError("reserved_name")
        if raw.raw_feature.feature:
            record.put(0, raw.name, "list<binary> raw", list(raw.raw_feature.feature))
    row |= _line_id(who)
    if labels:
        row["__LABEL__"] = labels
    if example.data_source_key:
        row["__DATA_SOURCE_KEY__"] = example.data_source_key
    return record


def _example_batch(value: bytes | None, types: dict[str, str], as_is: bool, keep_raw: bool) -> _Record:
    batch = _parse(ExampleBatch(), value)
    if batch.batch_size <= 0:
        raise RefusedError("batch_size_mismatch")
    if batch.batch_size > _ROWS_PER_RECORD:
        raise RefusedError("too_many_rows")
    record = _Record(batch.batch_size, types, as_is)
    for named in batch.named_feature_list:
        name = record.name(named.name)
        for row, feature in enumerate(_spread(named, batch.batch_size)):
            if name not in _RESERVED:
                _put_feature(record, row, name, feature)
                continue
            found = _reserved(name, feature)
            if name == "__LINE_ID__" and found is not None:
                record.rows[row] |= _line_id(found)
            elif name == "__LABEL__" and found:
                record.rows[row]["__LABEL__"] = found
            elif name == "instance_weight" and found is not None:
                record.rows[row]["__WEIGHT__"] = found[0] if found else 1.0
    for named in batch.named_raw_feature_list if keep_raw else ():
        name = record.name(named.name)
        features = _spread(named, batch.batch_size, "raw_feature")
        if name in _RESERVED:
            raise RefusedError("reserved_name")
        for row, raw in enumerate(features):
            if raw.feature:
                record.put(row, name, "list<binary> raw", list(raw.feature))
    for row in record.rows:
        if batch.data_source_key:
            row["__DATA_SOURCE_KEY__"] = batch.data_source_key
    return record


def _spread(named: Any, size: int, field: str = "feature") -> list[Any]:
    """One feature per row."""
    features = list(getattr(named, field))
    if named.type == SHARED and features:
        return features[:1] * size
    if len(features) != size:
        raise RefusedError("batch_size_mismatch")
    return features


def _instance(value: bytes | None, types: dict[str, str], as_is: bool, keep_raw: bool) -> _Record:
    instance = _parse(Instance(), value)
    record = _Record(1, types, as_is)
    row = record.rows[0]
    if instance.value:
        record.put(0, record.name("value"), "float_list", list(instance.value))
    by_slot: dict[int, list[int]] = {}
    for fid in instance.fid:
        by_slot.setdefault(fid >> 54, []).append(fid)
    for slot, fids in by_slot.items():
        record.put(0, record.name(f"fc_slot_{slot}"), "fid_v1_list", fids)
    for feature in instance.feature:
        if record.name(feature.name) in _RESERVED:
            raise RefusedError("reserved_name")
        for field, kind in _INSTANCE_KINDS.items():
            values = getattr(feature, field)
            if values:
                nested = kind.endswith("lists")
                record.put(0, feature.name, kind, [list(each.value) for each in values] if nested else list(values))
                break
    row |= _line_id(instance.line_id)
    if instance.label:
        row["__LABEL__"] = list(instance.label)
    if instance.HasField("instance_weight"):
        row["__WEIGHT__"] = instance.instance_weight
    if instance.HasField("data_source_key"):
        row["__DATA_SOURCE_KEY__"] = instance.data_source_key
    return record


def _reserved(name: str, feature: Feature) -> Any:
    """A LineId, or floats; None when it is not set."""
    kind = feature.WhichOneof("type")
    if kind is None:
        return None
    if kind != ("bytes_list" if name == "__LINE_ID__" else "float_list"):
        raise RefusedError("wrong_type")
    values = list(getattr(feature, kind).value)
    if name != "__LINE_ID__":
        return values
    if not values:
        return None
    return _parse(LineId(), values[0], "malformed_line_id") if values[0] else LineId()


def _put_feature(record: _Record, row: int, name: str, feature: Feature) -> None:
    kind = feature.WhichOneof("type")
    if kind is None:
        return
    value = getattr(feature, kind)
    if kind.endswith("_lists"):
        value = [list(each.value) for each in value.list]
    elif kind.endswith("_list"):
        value = list(value.value)
    record.put(row, name, kind, value)


def _line_id(message: LineId) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in line_id.FIELDS.values():
        value = getattr(message, field.name)
        if field.repeated:
            if value:
                row[field.column] = list(value)
        elif message.HasField(field.name):
            if isinstance(field.default, str) and isinstance(value, bytes):
                raise RefusedError("malformed_line_id")
            row[field.column] = _signed(value) if field.name in ("uid", "item_id") else value
    return row


def _each(value: Any, change: Any) -> Any:
    return [_each(item, change) for item in value] if isinstance(value, list) else change(value)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _to_v2(fid: int) -> int:
    return (fid >> 54) << 48 | fid & ((1 << 48) - 1)


def _check_v2(fid: int) -> int:
    if fid >> 63:
        raise RefusedError("out_of_range")
    return fid
