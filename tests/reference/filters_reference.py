"""Row-wise references of the filters: one dictionary {column: value} at a time."""

import struct
from typing import Any

import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch.line_id import FIELDS
from tests.reference.rows_reference import uniform_of

Row = dict[str, Any]


def kept_by(row: Row, schema: pa.Schema, config: pb.BasicTransformConfig) -> bool:
    """Whether the filter keeps the row."""
    kind = config.WhichOneof("type") or ""
    message = getattr(config, kind)
    if kind in ("any_of", "all_of", "none_of"):
        kept = [kept_by(row, schema, each) for each in message.predicates]
        return {"any_of": any(kept), "all_of": all(kept), "none_of": not any(kept)}[kind]
    if kind == "filter_by_fid":
        return _by_fid(row, schema, message)
    if kind == "filter_by_action":
        return any(action in message.has_actions for action in row.get("__ACTIONS__") or [])
    if kind == "filter_by_label":
        return _by_label(row, message)
    if kind == "filter_by_value":
        return _by_field(row, message)
    return _by_feature(row, schema, message)


def special_strategy(row: Row, config: pb.SpecialStrategyConfig, seed: int, step: str) -> Row | None:
    """The row as it stays, or None."""
    present = row.get("__SPECIAL_STRATEGIES__") or []
    if not present:
        keep = config.keep_empty_strategy if config.HasField("keep_empty_strategy") else True
        return dict(row) if keep else None
    for strategy in config.strategies:
        if strategy.strategy not in present:
            continue
        place = (row["__SOURCE_PARTITION__"], row["__SOURCE_OFFSET__"], row["__SOURCE_ROW__"])
        if strategy.HasField("sample_rate") and uniform_of(seed, f"{step}/", place) >= strategy.sample_rate:
            return None
        if strategy.HasField("label"):
            return row | {"__LABEL__": [strategy.label, *(row.get("__LABEL__") or [])[1:]]}
        return dict(row)
    return None


def fulfils(op: str, value: Any, operands: list[Any]) -> bool:
    """Whether one value fulfils the operation."""
    first = operands[0]
    if op == "between":
        return first <= value < operands[1]
    if op in ("in", "not-in"):
        return any(value == each for each in operands) is (op == "in")
    if op == "startswith":
        return any(value.startswith(each) for each in operands)
    if op == "endswith":
        return any(value.endswith(each) for each in operands)
    return {
        "gt": value > first,
        "ge": value >= first,
        "eq": value == first,
        "lt": value < first,
        "le": value <= first,
        "neq": value != first,
    }[op]


def set_fulfils(op: str, values: list[int], operands: list[int]) -> bool:
    """Whether the set of values fulfils the operation."""
    if op == "all":
        return set(operands) <= set(values)
    return bool(set(operands) & set(values)) is (op == "any")


def _by_fid(row: Row, schema: pa.Schema, config: pb.FilterByFidConfig) -> bool:
    fids, slots = _fids_and_slots(row, schema)
    if (row.get("__REQ_TIME__") or 0) < config.req_time_min and config.req_time_min:
        return False
    if fids & set(config.filter_fids):
        return False
    if config.has_fids and not fids & set(config.has_fids):
        return False
    if not set(config.select_fids) <= fids or not set(config.select_slots) <= slots:
        return False
    return not config.has_actions or bool(set(config.has_actions) & set(row.get("__ACTIONS__") or []))


def _fids_and_slots(row: Row, schema: pa.Schema) -> tuple[set[int], set[int]]:
    fids, slots = set(), set()
    for field in schema:
        kind = (field.metadata or {}).get(b"millrace.kind")
        if kind not in (b"fid", b"fid_v1"):
            continue
        for value in row[field.name] or []:
            for fid in value if isinstance(value, list) else [value]:
                unsigned = fid % 2**64
                fids.add(unsigned)
                slots.add(unsigned >> 54 if kind == b"fid_v1" else (unsigned >> 48) & 0x7FFF)
    return fids, slots


def _by_label(row: Row, config: pb.FilterByLabelConfig) -> bool:
    labels = row.get("__LABEL__") or []
    if len(labels) < len(config.thresholds):
        return False
    pairs = list(zip(labels, config.thresholds, strict=False))
    return any(label > limit or (label == limit and not config.filter_equal) for label, limit in pairs)


def _by_field(row: Row, config: pb.FilterByValueConfig) -> bool:
    field = FIELDS[config.field_name]
    value: Any = row.get(field.column)
    if field.repeated:
        return set_fulfils(config.op, value, list(config.int_operand)) if value else config.keep_empty
    value = field.default if value is None else value
    ints = list(config.int_operand)
    if field.name in ("uid", "item_id"):
        value, ints = value % 2**64, [each % 2**64 for each in ints]
    if isinstance(value, str):
        return fulfils(config.op, value.encode(), [each.encode() for each in config.string_operand])
    return fulfils(config.op, value, ints if not isinstance(value, float) else list(config.float_operand))


def _by_feature(row: Row, schema: pa.Schema, config: pb.FilterByFeatureValueConfig) -> bool:
    types = {"int64": pa.int64(), "float": pa.float32(), "double": pa.float64(), "bytes": pa.binary()}
    name = config.feature_name
    if name not in row or schema.field(name).metadata or schema.field(name).type != pa.list_(types[config.field_type]):
        return config.keep_empty
    values = row[name] or []
    if config.op in ("any", "all", "diff") and values:
        return set_fulfils(config.op, values, list(config.int_operand))
    if len(values) != 1:
        return config.keep_empty
    if config.field_type == "bytes":
        return fulfils(config.op, values[0], [each.encode() for each in config.string_operand])
    if config.field_type == "int64":
        return fulfils(config.op, values[0], list(config.int_operand))
    return fulfils(config.op, _float32(values[0]), list(config.float_operand))


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
