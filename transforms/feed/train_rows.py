"""Joined rows to train batches: fids, labels, down-sampled negatives."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import fid, list_columns, record_batch
from millrace.transforms.batch.label_column import label_lists, label_matrix
from millrace.transforms.batch.list_columns import lengths, one_each, row_of_value, splits_of
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.feed import join
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.early_negatives import corrected_labels
from millrace.transforms.feed.sampling import sample_negatives


def rows_to_train_batch(rows: pa.RecordBatch, config: FeedConfig) -> tuple[pa.RecordBatch, int]:
    """The train batch of joined rows.

    With `config.early_negatives` a row with its action has INVALID_LABEL for the heads for which it is not positive,
    because as an early negative it was a negative of every head.

    Args:
      rows: of `join.joined_schema(config)`.

    Returns: (batch of `config.train_schema()`, number of negatives dropped by sampling).
    """
    fids = row_fids(rows, config.features, config.audit)
    actions, values = rows.column(join.JOINED_ACTIONS), rows.column(join.JOINED_VALUES)
    timestamps = record_batch.numpy_column(rows, "timestamp_ms")
    ones = pa.array(np.ones(rows.num_rows, np.float32))
    metadata = {
        record_batch.LABEL: _labels(actions, values, config),
        record_batch.WEIGHT: ones,
        record_batch.SAMPLE_RATE: ones,
        record_batch.UID: rows.column("user_id"),
        record_batch.ITEM_ID: rows.column("item_id"),
        record_batch.REQ_ID: rows.column("request_id"),
        record_batch.REQ_TIME: pa.array(timestamps // 1000),
        record_batch.EVENT_TIME_MS: rows.column(join.EVENT_TIME_MS),
        record_batch.ACTIONS: actions,
    }
    provenance = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    metadata |= {name: rows.column(name) for name in provenance}
    columns = [*fids.columns, *(metadata[field.name] for field in record_batch.METADATA_FIELDS)]
    batch = pa.RecordBatch.from_arrays(columns, schema=config.train_schema())
    return sample_negatives(batch, config.negative_rate, config.seed)


def _labels(actions: pa.ListArray, values: pa.ListArray, config: FeedConfig) -> pa.ListArray:
    labels = label_rows(actions, values, config.labels)
    if not config.early_negatives:
        return labels
    return label_lists(corrected_labels(label_matrix(labels), list_columns.lengths(actions) > 0))


def label_rows(actions: pa.ListArray, values: pa.ListArray, rules: Sequence[LabelRule]) -> pa.ListArray:
    """One label per rule for each row: 1.0 if the row has an action of the rule with a sufficient value, else 0.0.

    Args:
      actions: list<string> [rows], the actions of each row.
      values: list<double> [rows], their values in the same order, null where an action has none.

    Returns: list<float32> [rows], labels in the order of `rules`.
    """
    rows = len(actions)
    names, numbers = actions.flatten(), values.flatten()
    parents = row_of_value(splits_of(lengths(actions)))
    labels = np.zeros((rows, len(rules)), np.float32)
    for column, rule in enumerate(rules):
        seen = pc.is_in(names, value_set=pa.array(rule.actions, pa.string()))
        if rule.min_value is not None:
            seen = pc.and_(seen, pc.fill_null(pc.greater_equal(numbers, rule.min_value), False))
        labels[parents[seen.to_numpy(zero_copy_only=False)], column] = 1.0
    return label_lists(labels)


def row_fids(batch: pa.RecordBatch, features: Sequence[FidFeature], audit: bool = False) -> pa.RecordBatch:
    """The fid columns of impression rows.

    Args:
      batch: rows with the columns that the features name, and with provenance if `audit`.
      audit: whether to append `__AUDIT__`.

    Returns: a batch with one `list<int64>` column per feature: one fid per row, or none where the value is null.
    Raises: ValueError naming a column that is missing, of another type or, for integers, outside [0, 2^48).
    """
    names = [feature.name for feature in features]
    columns = [_fids_of(batch, feature) for feature in features]
    if audit:
        names.append(record_batch.AUDIT)
        columns.append(one_each(fid.audit_fid(*provenance_of(batch))))
    schema = pa.schema([record_batch.fid_field(name) for name in names])
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _fids_of(batch: pa.RecordBatch, feature: FidFeature) -> pa.ListArray:
    index = batch.schema.get_field_index(feature.column)
    if index < 0:
        raise ValueError(f"feature {feature.name}: no column {feature.column}")
    column = batch.column(index)
    if feature.column_dtype == "string":
        if not (pa.types.is_string(column.type) or pa.types.is_dictionary(column.type)):
            raise ValueError(f"feature {feature.name}: column {feature.column} is {column.type}, expected string")
        signatures = fid.hash_strings(column)
    else:
        if not pa.types.is_integer(column.type):
            raise ValueError(f"feature {feature.name}: column {feature.column} is {column.type}, expected int64")
        signatures = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        if len(signatures) and (int(signatures.min()) < 0 or int(signatures.max()) > fid.SIGNATURE_MASK):
            raise ValueError(f"feature {feature.name}: column {feature.column} has values outside [0, 2^48)")
    fids = fid.fid_v2(feature.slot, signatures)
    if not column.null_count:
        return one_each(fids)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(valid)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(fids[valid]))
