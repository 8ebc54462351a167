"""The step that generates negatives: the user of a positive row, with items that other rows showed."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.action_column import most_prior
from millrace.transforms.batch.label_column import label_at, label_column
from millrace.transforms.batch.list_columns import (
    any_in,
)
from millrace.transforms.batch.provenance import MAX_COPIES
from millrace.transforms.steps.negatives.item_pool import DrawRule, Draws, ItemPool
from millrace.transforms.steps.negatives.item_pool_snapshot import newest_files, read_snapshot, write_next
from millrace.transforms.steps.negatives.negative_rows import (
    RowOrigins,
    action_lists,
    expand,
    first_values,
    item_columns,
    item_ids,
    line_column,
    row_weights,
    sampled_weights,
    with_action,
    with_copies,
    with_label,
)
from millrace.transforms.steps.step import Counts, StatefulStep, StepContext, check_priority

DEFAULT_CHANNEL = 3
"""Channel of a row that names none, as in Monolith."""

NO_CHANNEL = 0
"""Items of this channel enter no pool, as in Monolith."""

_LEAST_WEIGHT = 1e-5
"""A weight setting that is no larger counts as not given, as in Monolith."""


class RowRoles(NamedTuple):
    """What part each row of a batch plays for the pools.

    Attributes:
      keys: uint64 [rows], the key of the row's item.
      channels: int64 [rows], the channel whose pool the item belongs to.
      positive: bool [rows], whether negatives are drawn for the row.
      cacheable: bool [rows], whether the row's item enters its pool.
    """

    keys: np.ndarray
    channels: np.ndarray
    positive: np.ndarray
    cacheable: np.ndarray


class GenerateNegatives(StatefulStep):
    """Adds up to `neg_num` negatives to each positive row: copies with the columns of items that a pool holds.

    For one row after the other, the row's item first enters the pool of its channel; then, if the row is positive,
    negatives are drawn for it. They leave before the row.

    Which rows are positive: those whose label is `positive_label`, or with `positive_actions` those whose most prior
    action is among them. Which pools there are: one, or with `per_channel` one for each first value of
    `channel_feature`. A row without a value has channel 3, and items of channel 0 enter no pool. Which items enter: two
    items are the same if their first value of `index_feature` is, or without this setting if their ids are. The items
    of all rows enter; with `cache_only_pos` only those of positives and of rows with one of `cache_negative_actions`.
    Of rows that are not positive, the share `origin_neg_in_pool_proba` enters. When a pool has more than `max_item_num`
    items, the oldest one leaves.

    A draw takes an item of a pool that holds more than `start_num`. Every item is equally likely; the row's own is
    drawn only with `allow_own_item`. With the probability `easy_hard_ratio` a draw is easy: if there are two pools or
    more, the pool is drawn as well, each with a probability by its size. The first draw that finds no item is the
    row's last.

    A negative has the `item_features` and the id of the item, `negative_label`, and `negative_action` where that is
    given. Its raw features are null, because they are not told apart into those of user and item. All else is as in
    the positive. The weight of the positive is multiplied by `sampled_neg_instance_weight`; without this setting by
    1 + neg_num * recency ^ neg_sample_declay_factor / times, where recency is (index + 1) / size, so 1 for the newest
    item of the pool, and times is how often the item has been drawn. With `unbias_sampled_neg` false the weight is
    not multiplied. The weight of an original row that is not positive is multiplied by `real_neg_instance_weight`.

    The first rows of a run get few negatives, as long as the pools are small. With `warm` a bounded run (`records
    convert`, `feed backfill` and other bounded feeds) reads all of its rows twice and fills the pools in the first
    pass; a live feed has no end and does not. With `snapshot_folder` the pools start with what an earlier run knew:
    `records convert --save-pools` writes a snapshot there. Every worker must be able to read the folder.
    """

    counters = {
        "positives": "rows that negatives are drawn for",
        "negatives_in": "other rows that come in",
        "negatives_generated": "rows that are made",
        "hard_draws": "generated rows with an item of the row's own channel",
        "easy_draws": "generated rows with an item of a channel that was drawn too",
        "draws_missed": "negatives that were not made, because a pool had no item for them",
        "items_added": "items that were new in their pools",
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
        origins = RowOrigins.of(draws.rows, keep)
        rows = expand(batch, origins, self._pool.store, draws.positions)
        rows = with_label(rows, origins.generated, config.label_index, _given(config, "negative_label", -1.0))
        if config.HasField("negative_action"):
            rows = with_action(rows, origins.generated, config.negative_action)
        rows = self._weighted(rows, origins, roles.positive, draws)
        return with_copies(rows, origins.copy, self.fanout)

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
            contents = read_snapshot(path)
            self._pool.merge(contents._replace(items=item_columns(contents.items, self.config.item_features)))
        except (ValueError, OSError) as error:
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
        """bool [rows]: the rows whose item enters its pool."""
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

    def _weighted(
        self, rows: pa.RecordBatch, origins: RowOrigins, positive: np.ndarray, draws: Draws
    ) -> pa.RecordBatch:
        config = self.config
        real = _given(config, "real_neg_instance_weight", 1.0)
        factors = np.where(positive[origins.parent], 1.0, real if real > _LEAST_WEIGHT else 1.0)
        sampled = _given(config, "sampled_neg_instance_weight", -1.0)
        if sampled > _LEAST_WEIGHT:
            factors[origins.generated] = sampled
        elif _given(config, "unbias_sampled_neg", True):
            decay = _given(config, "neg_sample_declay_factor", 1.0)
            factors[origins.generated] = sampled_weights(config.neg_num, draws.recency, draws.times, decay)
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
