"""`tf.Example` records as canonical rows and back, by tfx-bsl's decoder; TensorFlow is not imported.

A feature that a record does not have is null. The order of features within an encoded record is not specified.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tfx_bsl.coders import example_coder

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.fid import MAX_SLOT, SIGNATURE_MASK, fid_v2, hash_strings
from millrace.transforms.batch.list_columns import list_array, splits_of, values_and_splits
from millrace.transforms.batch.provenance import PROVENANCE
from millrace.transforms.frames.framing import with_source

Bucket = Callable[[np.ndarray], np.ndarray]
"""float [n] to int64 [n]: the signature that each value of a sparse feature gets."""


def log2_bucket(values: np.ndarray) -> np.ndarray:
    """int64 [n]: log2(|x| + 1), truncated; the sign is lost. NaN falls into bucket 0, infinity into 128."""
    size = np.nan_to_num(np.abs(np.asarray(values, np.float64)), nan=0.0, posinf=2.0**128)
    return np.log2(size + 1).astype(np.int64)


@dataclass(frozen=True)
class TfExampleOptions:
    """Which features of a record are decoded, and how; all others are dropped.

    Args:
      sparse_features: {name: slot}: integers x become v2(slot, x), floats v2(slot, bucket(x)), bytes v2(slot, hash).
      dense_features: names of the features that stay as they are.
      label: name of the feature with the labels, floats or integers.
      instance_weight: name of the feature with the weight, one float; without exactly one value the weight is 1.
      bucket: turns floats of sparse features into signatures.

    Raises: UserError for a slot that is out of range or there twice, and for a name that is there twice.
    """

    sparse_features: Mapping[str, int]
    dense_features: Sequence[str] = ()
    label: str = ""
    instance_weight: str = ""
    bucket: Bucket = log2_bucket

    def __post_init__(self) -> None:
        seen: dict[int, str] = {}
        for name, slot in self.sparse_features.items():
            if not 1 <= slot <= MAX_SLOT:
                raise UserError(
                    "sparse_features", f"{name}: {slot}", "the slot is out of range", f"take 1 to {MAX_SLOT}"
                )
            if seen.setdefault(slot, name) != name:
                raise UserError("sparse_features", name, f"has the slot {slot} of {seen[slot]}", "take another slot")
        names = [*self.sparse_features, *self.dense_features, self.label, self.instance_weight]
        for name in names:
            if name and names.count(name) > 1:
                raise UserError("features", name, "is named for two purposes", "name each feature once")


def decode_tf_examples(block: pa.RecordBatch, options: TfExampleOptions) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows, dead letters) of a raw block whose values are serialized `tf.Example`s.

    Refused are records that are no such message (`malformed_frame`), and records in which a dense feature has another
    type than in the first record of the block that has it, or a label is bytes (`wrong_type`).
    """
    refusals = Refusals(block)
    refusals.add(np.flatnonzero(block.column("value").is_null().to_numpy(zero_copy_only=False)), *_NO_BYTES)
    decoder = example_coder.ExamplesToRecordBatchDecoder()
    kinds: dict[str, pa.DataType] = {}
    parts, order = [], []
    rows = refusals.accepted()
    values = block.column("value").take(pa.array(rows)).to_pylist()
    for start, stop, decoded in _decoded(decoder, values, 0, len(values), refusals, rows):
        problem = _conflict(decoded, options, kinds)
        if problem:
            refusals.add(rows[start:stop], Reason.WRONG_TYPE, problem)
            continue
        parts.append(_canonical(decoded, options, kinds, stop - start))
        order.append(rows[start:stop])
    batch = record_batch.concat(parts, _empty(options).schema)
    taken = np.concatenate(order) if order else np.zeros(0, np.int64)
    return with_source(batch, block.take(pa.array(taken))), refusals.to_batch()


_NO_BYTES = (Reason.EMPTY_VALUE, "no bytes")


def _decoded(
    decoder: Any, values: list[bytes], start: int, stop: int, refusals: Refusals, rows: np.ndarray
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """(start, stop, decoded) of runs of values; what cannot be decoded together is halved until it can."""
    if start == stop:
        return
    try:
        yield start, stop, decoder.DecodeBatch(values[start:stop])
    except RuntimeError as error:
        if stop - start == 1:
            refusals.add(rows[start:stop], Reason.MALFORMED_FRAME, f"no tf.Example: {str(error).strip()}"[:500])
            return
        middle = (start + stop) // 2
        yield from _decoded(decoder, values, start, middle, refusals, rows)
        yield from _decoded(decoder, values, middle, stop, refusals, rows)


def _conflict(decoded: pa.RecordBatch, options: TfExampleOptions, kinds: dict[str, pa.DataType]) -> str:
    """What is wrong with the types of the decoded records; remembers those of dense features."""
    for name in (*options.dense_features, options.label):
        column = record_batch.column_of(decoded, name)
        if column is None or pa.types.is_null(column.type) or not len(column.flatten()):
            continue
        found = _plain_type(column.type)
        if name == options.label:
            if found == pa.list_(pa.binary()):
                return f"{name} holds bytes, not labels"
        elif kinds.setdefault(name, found) != found:
            return f"{name} is {found}, in earlier records {kinds[name]}"
    return ""


def _plain_type(type: pa.DataType) -> pa.DataType:
    """tfx-bsl's large lists as canonical lists."""
    value = type.value_type
    return pa.list_(pa.binary() if pa.types.is_large_binary(value) else value)


def _canonical(
    decoded: pa.RecordBatch, options: TfExampleOptions, kinds: Mapping[str, pa.DataType], rows: int
) -> pa.RecordBatch:
    fields, columns = [], []
    for name, slot in options.sparse_features.items():
        metadata = record_batch.FID_METADATA | {record_batch.ID_KEY: str(slot).encode()}
        fields.append(pa.field(name, pa.list_(pa.int64()), metadata=metadata))
        columns.append(_fids(_list_of(decoded, name, rows), slot, options.bucket))
    for name in options.dense_features:
        if name in kinds:
            fields.append(pa.field(name, kinds[name]))
            columns.append(_cast(_list_of(decoded, name, rows), kinds[name]))
    if options.label:
        fields.append(pa.field(record_batch.LABEL, pa.list_(pa.float32())))
        columns.append(_cast(_list_of(decoded, options.label, rows), pa.list_(pa.float32())))
    fields.append(pa.field(record_batch.WEIGHT, pa.float32()))
    columns.append(_weights(_list_of(decoded, options.instance_weight, rows)))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _empty(options: TfExampleOptions) -> pa.RecordBatch:
    return _canonical(pa.RecordBatch.from_pylist([], schema=pa.schema([])), options, {}, 0)


def _list_of(decoded: pa.RecordBatch, name: str, rows: int) -> pa.ListArray:
    """The feature `name`; nulls where no record has a value of it."""
    column = record_batch.column_of(decoded, name) if name else None
    if column is None or pa.types.is_null(column.type):
        return pa.nulls(rows, pa.list_(pa.float32()))
    return column.cast(_plain_type(column.type))


def _cast(column: pa.ListArray, kind: pa.DataType) -> pa.ListArray:
    """`column` as `kind`; lists without any value fit every kind."""
    if len(column.flatten()):
        return column.cast(kind, safe=False)
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    return list_array(pa.array([], kind.value_type), np.zeros(len(column) + 1, np.int64), nulls=nulls)


def _fids(column: pa.ListArray, slot: int, bucket: Bucket) -> pa.ListArray:
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    if column.type.value_type == pa.binary():
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        signatures, splits = hash_strings(column.flatten()), splits_of(lengths.astype(np.int64))
    else:
        signatures, splits = values_and_splits(column)
        if column.type.value_type == pa.float32():
            signatures = bucket(signatures)
    return list_array(fid_v2(slot, signatures), splits, pa.int64(), nulls)


def _weights(column: pa.ListArray) -> pa.Array:
    """float [rows]: the one value of each row, or 1."""
    if column.type.value_type != pa.float32():
        return pa.array(np.ones(len(column), np.float32))
    values, splits = values_and_splits(column)
    single = np.diff(splits) == 1
    weights = np.ones(len(column), np.float32)
    weights[single] = values[splits[:-1][single]]
    return pa.array(weights)


def encode_tf_examples(batch: pa.RecordBatch, options: TfExampleOptions) -> pa.BinaryArray:
    """binary [rows]: the rows as serialized `tf.Example`s.

    Sparse features are written as the signatures of their fids, which decode to the same fids again; labels and weights
    under the names of `options`; every other column but the provenance as it is. Raises: UserError for nested lists.
    """
    if not batch.num_rows:
        return pa.array([], pa.binary())
    names, columns = [], []
    renamed = {record_batch.LABEL: options.label, record_batch.WEIGHT: options.instance_weight}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        name = renamed.get(field.name, field.name)
        if name and field.name not in PROVENANCE:
            names.append(name)
            columns.append(_feature(field, column, field.name in options.sparse_features))
    return pa.array(example_coder.RecordBatchToExamples(pa.RecordBatch.from_arrays(columns, names)), pa.binary())


def _feature(field: pa.Field, column: pa.Array, sparse: bool) -> pa.ListArray:
    """A column as one of the three lists that a tf.Example knows."""
    if not pa.types.is_list(field.type):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        column = list_array(column.drop_null(), splits_of(valid.astype(np.int64)), nulls=~valid)
    value = column.type.value_type
    if pa.types.is_nested(value):
        raise UserError("column", field.name, "a tf.Example holds no nested lists", "drop it before")
    kind = pa.binary()
    if pa.types.is_integer(value) or pa.types.is_boolean(value):
        kind = pa.int64()
    elif pa.types.is_floating(value):
        kind = pa.float32()
    plain = column.cast(pa.list_(kind), safe=False)
    if not sparse:
        return plain
    fids, splits = values_and_splits(plain)
    return list_array(fids & SIGNATURE_MASK, splits, pa.int64(), plain.is_null().to_numpy(zero_copy_only=False))
