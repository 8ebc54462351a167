"""Generated negatives: the user of a positive row with items that other rows showed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.action_column import most_prior
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.label_column import label_at, label_column, set_label_at, with_labels
from millrace.transforms.batch.list_columns import (
    any_in,
    list_array,
    one_each,
    row_of_value,
    splits_of,
    values_and_splits,
)
from millrace.transforms.batch.provenance import MAX_COPIES, derived_rows, provenance_of
from millrace.transforms.batch.take_rows import take_rows, take_rows_of
from millrace.transforms.steps.negatives.item_pool import DrawRule, Draws, ItemPool
from millrace.transforms.steps.negatives.item_pool_snapshot import newest_files, read, write_next
from millrace.transforms.steps.step import Counts, StatefulStep, StepContext, check_priority

DEFAULT_CHANNEL = 3
"""Channel of a row that names none."""

NO_CHANNEL = 0
"""Items of this channel enter no pool."""

_LEAST_WEIGHT = 1e-5


class RowRoles(NamedTuple):
    """What the rows of a batch are to the pools.

    Attributes:
      keys: uint64 [rows], of the row's item.
      channels: int64 [rows]
      positive: bool [rows], whether negatives are drawn for the row.
      cacheable: bool [rows], whether the row's item enters its pool.
    """

    keys: np.ndarray
    channels: np.ndarray
    positive: np.ndarray
    cacheable: np.ndarray


class GenerateNegatives(StatefulStep):
    """Adds to each positive row up to `neg_num` negatives: copies with the columns of items drawn from a pool.

    A row's item first enters the pool of its channel, then negatives are drawn for the row, and stand before it.

    A row is positive if its label is `positive_label`; with `positive_actions`, if its most prior action is among them.
    With `per_channel` each first value of `channel_feature` has a pool (3 where there is none; items of 0 enter none),
    otherwise there is one. An item is told by its `index_feature`, or by its id. It enters with every row; with
    `cache_only_pos`, with positives and rows that have one of `cache_negative_actions`. Of rows that are not positive
    only the share `origin_neg_in_pool_proba` counts. Beyond `max_item_num` the oldest item leaves.

    A draw takes one item of a pool that holds more than `start_num`, each as likely as the other, but not the row's own
    unless `allow_own_item`. With probability `easy_hard_ratio` the pool is drawn too, by size, if there are two or
    more. The first draw that finds nothing ends the row's draws.

    A negative has the item's `item_features` and item id, `negative_label`, and `negative_action` where that is given.
    Raw features are null: nobody knows whose they are. All else is the positive's. Its weight is multiplied by
    `sampled_neg_instance_weight`, or by 1 + neg_num * recency ^ neg_sample_declay_factor / times, where recency is
    (index + 1) / size, 1 for the newest item of the pool, and times how often the item has been drawn; without
    `unbias_sampled_neg` it stays. That of a row that came in and is no positive is multiplied by
    `real_neg_instance_weight`.

    The first rows of a run get few negatives, as long as the pools are small. With `warm` a bounded run (`records
    convert`, `feed backfill` and other bounded feeds) reads all of its rows twice and fills the pools in the first
    pass; a live feed has no end and does not. With `snapshot_folder` the pools start with what an earlier run knew:
    `records convert --save-pools` writes a snapshot there. Every worker must be able to read the folder.
    """

    counters = {
        "positives": "rows that negatives are drawn for",
        "negatives_in": "other rows that come in",
        "negatives_generated": "rows that are made",
        "hard_draws": "of these, with an item of the row's own channel",
        "easy_draws": "of these, with an item of a channel that was drawn too",
        "draws_missed": "negatives that the pools had no item for",
        "items_added": "items that were new in their pool",
        "items_refused": "items of channels beyond the first 65,536",
        "item_features_missing": "rows of batches that lack a column of item_features",
        "rows_dropped": "original rows that are not passed on",
    }
    example = """\
generate_negatives:
  neg_num: 4
  item_features: [item_id, genre]"""

    def __init__(self, config: pb.GenerateNegativesConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self._check()
        self.fanout = config.neg_num + 1
        self.warms = config.warm
        self._pool = ItemPool(_given(config, "start_num", 500), _given(config, "max_item_num", 100_000))
        self._folder = Path(config.snapshot_folder) if config.snapshot_folder else None
        self._started = self._folder is None

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        if not batch.num_rows:
            return batch
        config, roles = self.config, self._roles(batch)
        rule = DrawRule(config.neg_num, config.easy_hard_ratio if config.per_channel else 0.0, config.allow_own_item)
        draws = self._learn(batch, roles, roles.positive, rule, counts)
        keep = np.full(batch.num_rows, not config.throw_origin) & (roles.positive | (not config.throw_origin_neg))
        _count(counts, roles, draws, keep, config.neg_num)
        layout = Layout.of(draws.rows, keep)
        rows = expand(batch, layout, self._pool.store, draws.positions)
        rows = with_label(rows, layout.generated, config.label_index, _given(config, "negative_label", -1.0))
        if config.HasField("negative_action"):
            rows = with_action(rows, layout.generated, config.negative_action)
        rows = self._weighted(rows, layout, roles.positive, draws)
        return with_copies(rows, layout.copy, self.fanout)

    def warm(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self.warms and batch.num_rows:
            self._learn(batch, self._roles(batch), np.zeros(batch.num_rows, bool), DrawRule(0), Counts())
        return batch

    def write_snapshots(self) -> list[Path]:
        return [] if self._folder is None else write_next(self.pool, self._folder)

    def save(self) -> bytes:
        return self.pool.save()

    def restore(self, data: bytes) -> None:
        self._pool.restore(data)
        self._started = True

    @property
    def pool(self) -> ItemPool:
        """The pools, which first take the items of the snapshot that they start from."""
        if not self._started:
            assert self._folder is not None
            for path in newest_files(self._folder):
                self._merge(path)
            self._started = True
        return self._pool

    def _merge(self, path: Path) -> None:
        try:
            contents = read(path)
            self._pool.merge(contents._replace(items=item_columns(contents.items, self.config.item_features)))
        except ValueError as error:
            raise self.wrong("snapshot_folder", path, f"cannot be used ({error})", "remove the file") from error

    def _roles(self, batch: pa.RecordBatch) -> RowRoles:
        config = self.config
        keys = first_values(batch, config.index_feature, item_ids(batch))
        channels = np.full(batch.num_rows, DEFAULT_CHANNEL)
        if config.per_channel:
            channels = first_values(batch, config.channel_feature, channels)
        if config.positive_actions:
            prior, idle = most_prior(action_lists(batch), config.action_priority)
            positive = ~idle & np.isin(prior, list(config.positive_actions))
        else:
            labels, has = label_at(label_column(batch), config.label_index)
            positive = has & (labels == np.float32(_given(config, "positive_label", 1.0)))
        return RowRoles(keys.view(np.uint64), channels, positive, self._cacheable(batch, channels, positive))

    def _cacheable(self, batch: pa.RecordBatch, channels: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """bool [rows]: whose item enters its pool."""
        config = self.config
        chosen = np.ones(len(positive), bool)
        if config.cache_only_pos:
            chosen = any_in(action_lists(batch), pa.array(list(config.cache_negative_actions), pa.int32()))
        share = _given(config, "origin_neg_in_pool_proba", 1.0)
        if share < 1.0:
            chosen = chosen & (self.draw(batch, "pool") < share)
        return (positive | chosen) & (channels != NO_CHANNEL)

    def _learn(self, batch: pa.RecordBatch, roles: RowRoles, draw: np.ndarray, rule: DrawRule, counts: Counts) -> Draws:
        items = item_columns(batch, self.config.item_features)
        if items.num_columns <= len(self.config.item_features):
            counts["item_features_missing"] += batch.num_rows
        random = (self.draw(batch, "items") * 2.0**53).astype(np.uint64)
        draws = self.pool.process(items, roles.keys, roles.channels, roles.cacheable, draw, random, rule)
        counts["items_added"] += draws.added
        counts["items_refused"] += draws.refused
        return draws

    def _weighted(self, rows: pa.RecordBatch, layout: "Layout", positive: np.ndarray, draws: Draws) -> pa.RecordBatch:
        config = self.config
        real = _given(config, "real_neg_instance_weight", 1.0)
        factors = np.where(positive[layout.parent], 1.0, real if real > _LEAST_WEIGHT else 1.0)
        sampled = _given(config, "sampled_neg_instance_weight", -1.0)
        if sampled > _LEAST_WEIGHT:
            factors[layout.generated] = sampled
        elif _given(config, "unbias_sampled_neg", True):
            decay = _given(config, "neg_sample_declay_factor", 1.0)
            factors[layout.generated] = sampled_weights(config.neg_num, draws.recency, draws.times, decay)
        weights = (row_weights(rows) * factors).astype(np.float32)
        return line_column(rows, record_batch.WEIGHT, pa.array(weights))

    def _check(self) -> None:
        config = self.config
        if not 1 <= config.neg_num < MAX_COPIES:
            raise self.wrong("neg_num", config.neg_num, "out of range", f"choose 1..{MAX_COPIES - 1}")
        if config.label_index < 0:
            raise self.wrong("label_index", config.label_index, "negative", "count labels from 0")
        self._check_items()
        self._check_pools()
        self._check_actions()
        self._check_numbers()

    def _check_items(self) -> None:
        names = list(self.config.item_features)
        if not names:
            raise self.wrong("item_features", names, "a negative would have the features of its positive", "name some")
        for name in names:
            if record_batch.is_metadata_name(name):
                raise self.wrong("item_features", name, "not a feature", "name features; the item id is taken along")
            if names.count(name) > 1:
                raise self.wrong("item_features", name, "given twice", "name each feature once")

    def _check_pools(self) -> None:
        config = self.config
        start, most = _given(config, "start_num", 500), _given(config, "max_item_num", 100_000)
        if start < 0:
            raise self.wrong("start_num", start, "negative", "choose 0 or more")
        if most <= start:
            raise self.wrong("max_item_num", most, f"a pool never has more than start_num = {start} items", "raise it")
        if not 0.0 <= config.easy_hard_ratio <= 1.0:
            raise self.wrong("easy_hard_ratio", config.easy_hard_ratio, "not a probability", "choose 0..1")
        if config.easy_hard_ratio and not config.per_channel:
            raise self.wrong("easy_hard_ratio", config.easy_hard_ratio, "there is one pool only", "set per_channel")
        share = _given(config, "origin_neg_in_pool_proba", 1.0)
        if not 0.0 <= share <= 1.0:
            raise self.wrong("origin_neg_in_pool_proba", share, "not a probability", "choose 0..1")
        if config.snapshot_folder and not Path(config.snapshot_folder).is_dir():
            raise self.wrong(
                "snapshot_folder", config.snapshot_folder, "no such folder", "make it, or correct the path"
            )

    def _check_actions(self) -> None:
        config = self.config
        check_priority(self, config.action_priority)
        for action in set(config.cache_negative_actions) & set(config.positive_actions):
            raise self.wrong("cache_negative_actions", action, "a positive action", "list actions of negatives")

    def _check_numbers(self) -> None:
        config = self.config
        for name in ("real_neg_instance_weight", "sampled_neg_instance_weight", "neg_sample_declay_factor"):
            value = getattr(config, name)
            if not np.isfinite(value):
                raise self.wrong(name, value, "not a finite number", "choose one")
        positive, negative = _given(config, "positive_label", 1.0), _given(config, "negative_label", -1.0)
        if not config.positive_actions and positive == negative:
            raise self.wrong("negative_label", negative, "the label of a positive", "choose another one")


class Layout(NamedTuple):
    """Where the rows of the output come from: the negatives of a row stand before it.

    Attributes:
      parent: int64 [out], row of the input.
      generated: bool [out], true for negatives.
      copy: int64 [out], 1, 2, ... for the negatives of a row, 0 for the row itself.
    """

    parent: np.ndarray
    generated: np.ndarray
    copy: np.ndarray

    @classmethod
    def of(cls, draw_rows: np.ndarray, keep: np.ndarray) -> "Layout":
        """The layout of rows that have negatives.

        Args:
          draw_rows: int64 [n], ascending: the row of each negative.
          keep: bool [rows], whether the row itself is in the output.
        """
        negatives = np.bincount(draw_rows, minlength=len(keep))
        counts = negatives + keep
        starts = np.cumsum(counts) - counts
        parent = np.repeat(np.arange(len(keep)), counts)
        place = np.arange(len(parent)) - starts[parent]
        generated = place < negatives[parent]
        return cls(parent, generated, np.where(generated, place + 1, 0))


def sampled_weights(neg_num: int, recency: np.ndarray, times: np.ndarray, decay: float = 1.0) -> np.ndarray:
    """float64 [n] weights of negatives that undo how they were drawn: 1 + neg_num * recency ^ decay / times.

    Args:
      recency: float64 [n], (index in the pool + 1) / size of the pool.
      times: int64 [n], how often the item was drawn, this time included.
    """
    return 1.0 + neg_num * recency**decay / times


def row_weights(batch: pa.RecordBatch) -> np.ndarray:
    """float64 [rows] weights, 1 where a row has none."""
    column = record_batch.column_of(batch, record_batch.WEIGHT)
    if column is None:
        return np.ones(batch.num_rows)
    filled = column.fill_null(1.0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False).astype(np.float64)


def item_ids(batch: pa.RecordBatch) -> np.ndarray:
    """int64 [rows] item ids, 0 where a row has none."""
    return line_id.column(batch, "item_id").to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def item_columns(batch: pa.RecordBatch, features: Sequence[str]) -> pa.RecordBatch:
    """The item id and those of the features that `batch` has."""
    names = [name for name in (record_batch.ITEM_ID, *features) if name in batch.schema.names]
    items = batch.select(names)
    if record_batch.ITEM_ID in names:
        return items
    field = pa.field(record_batch.ITEM_ID, line_id.FIELDS["item_id"].type)
    columns = [pa.nulls(batch.num_rows, field.type), *items.columns]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([field, *items.schema]))


def first_values(batch: pa.RecordBatch, name: str, default: np.ndarray) -> np.ndarray:
    """int64 [rows]: the first value of column `name`, a list of integers or integers; `default` where there is none.

    Raises: ValueError when the column holds something else.
    """
    column = record_batch.column_of(batch, name)
    if column is None or pa.types.is_null(column.type):
        return default
    if pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type):
        values, splits = values_and_splits(column)
        found = np.diff(splits) > 0
        first = default.copy()
        first[found] = values[splits[:-1][found]].astype(np.int64)
        return first
    if pa.types.is_integer(column.type):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return np.where(valid, column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), default)
    raise ValueError(f"column {name}: expected integers or lists of integers, found {column.type}")


def action_lists(batch: pa.RecordBatch) -> pa.ListArray:
    """The rows' actions; ValueError when they are not numbers."""
    actions = line_id.column(batch, "actions")
    if not pa.types.is_integer(actions.type.value_type):
        raise ValueError(f"column {record_batch.ACTIONS}: expected lists of integers, found {actions.type}")
    return actions


def expand(
    batch: pa.RecordBatch, layout: Layout, store: Sequence[pa.RecordBatch], positions: np.ndarray
) -> pa.RecordBatch:
    """The output's rows with the item columns of negatives exchanged; all else is as in the row that they come from.

    Args:
      store, positions: the i-th negative has the item columns of row positions[i] of the batches `store`, numbered
        through. A column that `batch` lacks is null in original rows.
    """
    rows = take_rows(batch, layout.parent)
    for field in batch.schema:
        if (field.metadata or {}).get(record_batch.KIND_KEY) == b"raw":
            column = batch.column(field.name).take(pa.array(layout.parent, mask=layout.generated))
            rows = record_batch.with_column(rows, field, column)
    source = layout.parent.copy()
    source[layout.generated] = batch.num_rows + positions
    exchanged = take_rows_of([_own_items(batch, store[0].schema), *store], source)
    for field, column in zip(exchanged.schema, exchanged.columns, strict=True):
        rows = record_batch.with_column(rows, field, column)
    return rows


def _own_items(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`, null where `batch` has none such; fields that it has are its own."""
    places = [batch.schema.get_field_index(field.name) for field in schema]
    columns = [
        batch.column(place) if place >= 0 else pa.nulls(batch.num_rows, field.type)
        for place, field in zip(places, schema, strict=True)
    ]
    fields = [batch.schema.field(place) if place >= 0 else field for place, field in zip(places, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def with_label(rows: pa.RecordBatch, chosen: np.ndarray, index: int, label: float) -> pa.RecordBatch:
    """`rows` with label number `index` set where `chosen`, bool [rows]; labels missing before it become invalid."""
    column = label_column(rows)
    values, splits = values_and_splits(column)
    before = np.diff(splits)
    if (before[chosen] > index).all():
        return with_labels(rows, set_label_at(column, index, chosen, label))
    counts = np.where(chosen, np.maximum(before, index + 1), before)
    new_splits = splits_of(counts)
    labels = np.full(new_splits[-1], record_batch.INVALID_LABEL, np.float32)
    labels[np.arange(len(values)) + (new_splits - splits)[row_of_value(splits)]] = values
    labels[new_splits[:-1][chosen] + index] = label
    nulls = column.is_null().to_numpy(zero_copy_only=False) & ~chosen
    return with_labels(rows, list_array(labels, new_splits, nulls=nulls))


def with_action(rows: pa.RecordBatch, chosen: np.ndarray, action: int) -> pa.RecordBatch:
    """`rows` with `action` as the only action where `chosen`, bool [rows]."""
    actions = action_lists(rows)
    only = pa.array([[action]], actions.type)
    source = np.where(chosen, rows.num_rows, np.arange(rows.num_rows))
    return line_column(rows, record_batch.ACTIONS, pa.concat_arrays([actions, only]).take(pa.array(source)))


def with_copies(rows: pa.RecordBatch, copy: np.ndarray, fanout: int) -> pa.RecordBatch:
    """`rows` with the provenance of copies, int64 [rows] in [0, fanout), and with audit ids that go with it."""
    partition, offset, row = provenance_of(rows)
    derived = derived_rows(row, copy, fanout)
    rows = line_column(rows, record_batch.SOURCE_ROW, pa.array(derived))
    index = rows.schema.get_field_index(record_batch.AUDIT)
    if index < 0:
        return rows
    return rows.set_column(index, rows.schema.field(index), one_each(audit_fid(partition, offset, derived)))


def line_column(rows: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """`rows` with the column `name` set to `values`."""
    return record_batch.with_column(rows, pa.field(name, values.type), values)


def _count(counts: Counts, roles: RowRoles, draws: Draws, keep: np.ndarray, neg_num: int) -> None:
    positives, easy = int(np.count_nonzero(roles.positive)), int(np.count_nonzero(draws.easy))
    counts["positives"] += positives
    counts["negatives_in"] += len(keep) - positives
    counts["negatives_generated"] += len(draws.rows)
    counts["easy_draws"] += easy
    counts["hard_draws"] += len(draws.rows) - easy
    counts["draws_missed"] += positives * neg_num - len(draws.rows)
    counts["rows_dropped"] += int(np.count_nonzero(~keep))


def _given(config: pb.GenerateNegativesConfig, name: str, default: Any) -> Any:
    """The setting `name`, or its default."""
    return getattr(config, name) if config.HasField(name) else default
