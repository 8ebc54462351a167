"""Embedding tables in TensorFlow: exact int64 keys, sparse optimizers in C++, snapshots, SavedModels.

    store = EmbeddingStore([TableConfig("movies", dim=16, optimizer=Adagrad(0.05))], shared_name="ranking")
    features = [PooledFeature("movie", table="movies", combiner="mean")]

    @tf.function
    def train_step(values, row_splits, labels):
        pooled = store.pooled_lookup(features, values, row_splits, missing="create")
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            loss = loss_of(model(pooled), labels)
        store.apply_pooled_gradients(features, values, row_splits, tape.gradient(loss, pooled))

The tape is told to watch the pooled outputs: entries are no tf.Variable, so a tape knows nothing about them. What
`tape.gradient(loss, pooled)` returns goes to `apply_pooled_gradients`, which carries it back through the pooling, sums
the gradients of equal ids and lets each table's optimizers take one step per id.

`TableConfig` says what an entry is made of: its segments with their optimizers, initializers and compressors, which ids
may get an entry (`occurrence`) and when they lose it (`expire_days`).

Tables live in a registry of the process under the store's `shared_name`. They are freed with the last EmbeddingStore
object (or loaded SavedModel) of that name, or by `EmbeddingStore.release`. On a parameter server they live in that
process: give `device="/job:ps/task:0"`.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from millrace.ops import library
from millrace.ops.expired_entries import report_expired
from millrace.ops.store_checkpoint import CheckpointedStore
from millrace.ops.table_config import PooledFeature, TableConfig

__all__ = ["NOW", "Cut", "EmbeddingStore", "Entries", "FusedLookup", "TableStats", "TouchedKeys"]

_LOG = logging.getLogger(__name__)

NOW = -1  # timestamp: the wall clock when the op runs
# A client writes a cut at once, on a thread of its own: one that has not begun after two minutes is gone.
ABANDONED_SECONDS = 120.0
MISSING = ("zeros", "first_vector", "create")

tf.no_gradient("Millrace>Lookup")
tf.no_gradient("Millrace>PooledLookup")
tf.no_gradient("Millrace>FusedLookup")


class TouchedKeys(dict[str, np.ndarray]):
    """Table name -> int64 ids, ascending.

    Attributes:
      overflowed: names of tables that forgot erased ids for lack of room (some four million a table); readers of deltas
        then need a whole export.
    """

    def __init__(self, ids: Mapping[str, np.ndarray], overflowed: Sequence[str] = ()) -> None:
        super().__init__(ids)
        self.overflowed = tuple(overflowed)


class Entries(NamedTuple):
    """Entries in columns: int64 [n] ids, float32 [n, dim + state floats] values, int64 [n] Unix seconds."""

    ids: np.ndarray
    values: np.ndarray
    timestamps: np.ndarray


class FusedLookup(NamedTuple):
    """What `fused_lookup` returns; all tensors are flat.

    Attributes:
      embeddings: float32, in the order of the ids.
      embedding_splits: int32 [num_shards], floats of each shard.
      id_offsets, embedding_offsets: int32 [num_shards * tables + 1], where each piece starts.
    """

    embeddings: tf.Tensor
    embedding_splits: tf.Tensor
    id_offsets: tf.Tensor
    embedding_offsets: tf.Tensor


@dataclasses.dataclass(frozen=True)
class TableStats:
    """Figures of one table.

    Attributes:
      entries: number of entries.
      memory_bytes: of entries, index and marks, without the occurrence filter.
      not_finite: gradients that were NaN or infinite and left out or clipped.
      admitted, rejected: answers of the occurrence filter.
      newest_timestamp: Unix seconds.
      overflows: steps and additions that were left out because a weight or its optimizer state would have become NaN or
        infinite, as with a gradient whose square is; one per entry and segment.
    """

    entries: int
    memory_bytes: int
    not_finite: int
    admitted: int
    rejected: int
    newest_timestamp: int
    overflows: int


class Cut:
    """The content of a store at one moment, to be written once, by any thread, while the store trains on.

    Until it is written or dropped, no other cut of the store can be begun.
    """

    def __init__(self, number: int, device: str, store: str, tables: Sequence[str]) -> None:
        self._number: int | None = number
        self._device = device
        self._store = store
        self._tables = tuple(tables)

    def write(self, folder: str | Path, with_state: bool = True, shard: int = 0, num_shards: int = 1) -> list[str]:
        """Writes checksummed files into `folder` (created), each beside, synced and renamed; returns their paths.

        Expired entries are left out; the log says how many, with a warning where it is more than a tenth of a table.

        Args:
          with_state: write optimizer state and filters too; False for an export that only serves, in which the weights
            are compressed as the segments say.
          shard, num_shards: which of the parameter servers this store is.

        Raises:
          FailedPreconditionError: the cut waited so long that another cut of the store was begun instead.
        """
        number, self._number = self._number, None
        if number is None:
            raise ValueError("this cut was written or dropped before")
        with tf.device(self._device):
            files, written, expired = library.load().millrace_write_cut(
                cut=number, folder=str(folder), with_state=with_state, shard=shard, num_shards=num_shards
            )
        report_expired(self._store, self._tables, written.numpy().tolist(), expired.numpy().tolist())
        return [path.decode() for path in files.numpy()]

    def drop(self) -> None:
        """Drops a cut that will not be written, and frees what it holds."""
        if self._number is not None:
            with tf.device(self._device):
                library.load().millrace_drop_cut(cut=self._number)
            self._number = None

    def __del__(self) -> None:
        # At the end of a process its cuts end too, and the library may be unloaded already.
        if self._number is not None and library is not None:
            self.drop()


class EmbeddingStore(CheckpointedStore):
    """Several embedding tables under one name.

    Lookups and updates (`lookup` to `evict`, `contains`) work eagerly and inside a tf.function; what returns Python or
    NumPy values works eagerly. All are thread-safe. Ids are int64; every id is exact, none collide. Arguments may be
    tensors or anything that converts to them.

    Errors of TensorFlow's kinds: NotFoundError for a store that was released; InvalidArgumentError for shapes, bad
    row splits and non-finite numbers. An unknown table is a KeyError with the choices.

    A SavedModel that reaches this object through attributes holds the tables' configuration and, with `snapshot`,
    their content: loading it in any process after `ops.library.load()` opens a store of the same `shared_name` there
    and restores it, and dropping the loaded object frees it. A second load of the same export in a process joins the
    first. With a `shared_name` of its own per export, several versions can be loaded at once.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        shared_name: str,
        snapshot: str | Path | None = None,
        *,
        device: str = "CPU:0",
        handle: Any = None,
    ) -> None:
        """Opens the store, creating it when the process has none of this name.

        Args:
          tables: at least one, names all different. Joining an open store needs the same tables.
          shared_name: name in the process.
          snapshot: folder that `save` wrote. Not read here: an export copies its files into the SavedModel's assets,
            and loading the SavedModel restores them.
          device: where the tables live: a CPU of this process, or of a parameter server.
          handle: of a store that somebody else owns; for `attach`.

        Raises:
          ValueError: no tables, a table name twice, or a snapshot without files.
          InvalidArgumentError: the store is open with other tables.
        """
        super().__init__(device=device)
        if not tables:
            raise ValueError(f"store {shared_name!r} needs at least one table")
        self._configs = {table.name: table for table in tables}
        if len(self._configs) != len(tables):
            raise ValueError(f"store {shared_name!r}: table names must differ, got {[table.name for table in tables]}")
        self._shared_name = shared_name
        self._device = device
        self._ops = library.load()
        self._assets: list[tf.saved_model.Asset] = []
        if snapshot is not None:
            self._assets = [
                self._track_trackable(tf.saved_model.Asset(str(path)), f"snapshot_{i}")
                for i, path in enumerate(_snapshot_files(snapshot))
            ]
        self._is_owner = handle is None
        if handle is not None:
            self._resource_handle = handle
        _ = self.resource_handle

    @classmethod
    def attach(cls, shared_name: str) -> "EmbeddingStore":
        """A view on a store that is open in this process, say of a loaded SavedModel; it does not keep it alive.

        The view takes no gradients, because learning rates are the owner's and not part of a store.

        Raises:
          NotFoundError: no such store is open; the message lists those that are.
        """
        handle, texts = library.load().millrace_find_store(store_name=shared_name)
        tables = [TableConfig.from_text(text.decode()) for text in texts.numpy()]
        return cls(tables, shared_name, handle=handle)

    @staticmethod
    def release(shared_name: str) -> None:
        """Frees a store whoever owns it, after the calls that still use it; no-op when it is not open."""
        raw = library.load()
        try:
            handle, _ = raw.millrace_find_store(store_name=shared_name)
        except tf.errors.NotFoundError:
            return
        raw.millrace_close_store(store=handle, force=True)

    # Methods by which tf.saved_model exports and loads the store.

    def _create_resource(self) -> tf.Tensor:
        texts = [table.to_text() for table in self._configs.values()]
        return self._ops.millrace_open_store(tables=texts, store_name=self._shared_name)

    def _initialize(self) -> None:
        if self._assets:
            files = [asset.asset_path for asset in self._assets]
            self._ops.millrace_restore(store=self.resource_handle, files=files, once=True)

    def _destroy_resource(self) -> None:
        if self._is_owner:
            self._ops.millrace_close_store(store=self.resource_handle)

    # What the store holds.

    @property
    def shared_name(self) -> str:
        return self._shared_name

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        return tuple(self._configs.values())

    def table(self, name: str) -> TableConfig:
        """Configuration of a table.

        Raises:
          KeyError: there is no such table; the message lists those that there are.
        """
        try:
            return self._configs[name]
        except KeyError:
            raise KeyError(
                f"store {self._shared_name!r} has no table {name!r}; it has {', '.join(self._configs)}"
            ) from None

    def sizes(self) -> dict[str, int]:
        """Number of entries by table."""
        sizes = self._ops.millrace_sizes(store=self.resource_handle).numpy()
        return dict(zip(self._configs, sizes.tolist(), strict=True))

    def size(self, table: str) -> int:
        """Number of entries of one table."""
        self.table(table)
        return self.sizes()[table]

    def stats(self, table: str) -> TableStats:
        """Entries, memory and counters of one table."""
        self.table(table)
        return TableStats(*self._ops.millrace_stats(store=self.resource_handle, table=table).numpy().tolist())

    def contains(self, table: str, ids: Any) -> tf.Tensor:
        """bool [n]: which of `ids` [n] have an entry."""
        self.table(table)
        return self._ops.millrace_contains(store=self.resource_handle, ids=_ids(ids), table=table)

    def entries(self, table: str, page_size: int = 65536, part: int = 0, num_parts: int = 1) -> Iterator[Entries]:
        """All entries of a table, in no order, in pages of about `page_size`; updates may go on meanwhile.

        Args:
          part, num_parts: walk over one of several parts, which have no entry in common.
        """
        self.table(table)
        cursor, done = np.zeros(2, np.int64), False
        while not done:
            ids, values, timestamps, cursor, last = self._ops.millrace_read_entries(
                store=self.resource_handle,
                cursor=cursor,
                limit=tf.constant(page_size, tf.int64),
                table=table,
                part=part,
                num_parts=num_parts,
            )
            done = bool(last.numpy())
            if ids.shape[0]:
                yield Entries(ids.numpy(), values.numpy(), timestamps.numpy())

    def dump(self, table: str, with_state: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """All entries by ascending id, as NumPy arrays: ids int64 [n], values float32 [n, dim].

        Args:
          with_state: append the optimizers' state to the rows.
        """
        pages = list(self.entries(table))
        ids = np.concatenate([page.ids for page in pages]) if pages else np.zeros(0, np.int64)
        order = np.argsort(ids)
        width = None if with_state else self.table(table).dim
        values = np.concatenate([page.values[:, :width] for page in pages]) if pages else self._no_values(table, width)
        return ids[order], values[order]

    def _no_values(self, table: str, width: int | None) -> np.ndarray:
        values = self.lookup_entries(table, np.zeros(0, np.int64))[0].values
        return values[:, :width]

    # Reading.

    def lookup(self, table: str, ids: Any, missing: str = "zeros", global_step: Any = 0) -> tf.Tensor:
        """Weights of `ids` [n] as a model is to see them, float32 [n, dim].

        Args:
          missing: what an id without an entry reads as: "zeros"; "first_vector", what its entry would start from; or
            "create", the same, and it gets that entry (but not in a table with `occurrence`: there updates decide).
          global_step: sets the scale of quantisation-aware training (OneBit).
        """
        dim = self.table(table).dim
        return self._ops.millrace_lookup(
            store=self.resource_handle, ids=_ids(ids), global_step=_int64(global_step), table=table, dim=dim,
            missing=_missing(missing),
        )  # fmt: skip

    def lookup_entries(self, table: str, ids: Any) -> tuple[Entries, np.ndarray]:
        """Whole entries of `ids` [n], weights as they are and optimizer state, and bool [n]: which are there.

        Rows of absent ids are undefined.
        """
        self.table(table)
        out = self._ops.millrace_lookup_entries(store=self.resource_handle, ids=_ids(ids), table=table)
        values, found = out.values.numpy(), out.found.numpy()
        return Entries(np.asarray(_ids(ids)), values, out.timestamps.numpy()), found

    def pooled_lookup(
        self,
        features: Sequence[PooledFeature],
        values: Sequence[Any],
        row_splits: Sequence[Any],
        missing: str = "zeros",
        global_step: Any = 0,
    ) -> list[tf.Tensor]:
        """Pooled weights of every feature in one op.

        Args:
          features: at least one.
          values: ids of each feature, int64 [n_f].
          row_splits: int64 [rows_f + 1] of each feature, from 0 to n_f: row r holds ids splits[r] up to splits[r + 1].
          missing, global_step: as in `lookup`.

        Returns:
          float32 [rows_f, dim_f] per feature, or [rows_f, max_length_f, dim_f] for combiner "first_n"; zeros where no
          id is. See the module's text for its gradient.
        """
        return list(
            self._ops.millrace_pooled_lookup(
                store=self.resource_handle,
                global_step=_int64(global_step),
                missing=_missing(missing),
                **self._ragged(features, values, row_splits),
            )
        )

    def fused_lookup(
        self, tables: Sequence[str], ids: Any, fused_slot_size: Any, num_shards: int = 1, global_step: Any = 0
    ) -> FusedLookup:
        """Weights of the ids of many tables, concatenated by embedding shard and table; missing ids read as zeros.

        Args:
          ids: int64 [m], first those of shard 0 and table 0, then of shard 0 and table 1, ...
          fused_slot_size: int32 [num_shards * tables], how many ids each of these pieces has.
        """
        for table in tables:
            self.table(table)
        return FusedLookup(
            *self._ops.millrace_fused_lookup(
                store=self.resource_handle,
                ids=_ids(ids),
                fused_slot_size=tf.convert_to_tensor(fused_slot_size, tf.int32),
                global_step=_int64(global_step),
                tables=list(tables),
                num_shards=num_shards,
            )
        )

    # Updating.

    def apply_pooled_gradients(
        self,
        features: Sequence[PooledFeature],
        values: Sequence[Any],
        row_splits: Sequence[Any],
        gradients: Sequence[Any],
        global_step: Any = 0,
        timestamp: Any = NOW,
        apply: Any = True,
    ) -> None:
        """Updates the tables from gradients of `pooled_lookup`'s outputs, in one op.

        Gradients of equal ids are summed, over all features of a table, in order of occurrence; then each id takes one
        step of the table's optimizers. Missing ids are created first, if the table's `occurrence` admits them. Updated
        ids become touched. A step that would make a weight or its state NaN or infinite is left out and counted
        (`stats(table).overflows`).

        Args:
          features, values, row_splits: as in `pooled_lookup`.
          gradients: of the shape of `pooled_lookup`'s outputs; None (a feature that the loss does not use) leaves the
            feature out.
          global_step: what learning rates that are functions are called with.
          timestamp: Unix seconds stamped on the entries that have no newer stamp; below 0 means now.
          apply: bool scalar; False does nothing, whatever the gradients are.

        Raises:
          InvalidArgumentError: a sum is NaN or infinite in a table where that is an error (names table and id); nothing
            was applied to any table.
        """
        if len(gradients) != len(features):
            raise ValueError(f"got {len(gradients)} gradients for {len(features)} features")
        used = [f for f, gradient in enumerate(gradients) if gradient is not None]
        if not used:
            return
        self._ops.millrace_apply_pooled_gradients(
            store=self.resource_handle,
            gradients=[tf.convert_to_tensor(gradients[f], tf.float32) for f in used],
            learning_rates=self._learning_rates([features[f].table for f in used], global_step),
            global_step=_int64(global_step),
            timestamp=_int64(timestamp),
            apply=tf.convert_to_tensor(apply, tf.bool),
            **self._ragged([features[f] for f in used], [values[f] for f in used], [row_splits[f] for f in used]),
        )

    def apply_gradients(
        self,
        table: str,
        ids: Any,
        gradients: Any,
        global_step: Any = 0,
        timestamp: Any = NOW,
        read_values: Any = None,
    ) -> None:
        """Updates `ids` [n] from `gradients` float32 [n, dim]; otherwise as `apply_pooled_gradients`.

        Args:
          read_values: float32 [n, dim], the weights that the gradients were taken at, for segments with
            `delay_compensation`.
        """
        self._ops.millrace_apply_gradients(
            store=self.resource_handle,
            ids=_ids(ids),
            gradients=tf.convert_to_tensor(gradients, tf.float32),
            learning_rates=self._learning_rates([table], global_step),
            global_step=_int64(global_step),
            timestamp=_int64(timestamp),
            read_values=tf.zeros([0, 0]) if read_values is None else tf.convert_to_tensor(read_values, tf.float32),
            table=table,
        )

    def fused_apply_gradients(
        self,
        tables: Sequence[str],
        ids: Any,
        fused_slot_size: Any,
        gradients: Any,
        num_shards: int = 1,
        global_step: Any = 0,
        timestamp: Any = NOW,
    ) -> None:
        """Updates the ids of a `fused_lookup` from flat `gradients`, which lie as its embeddings did.

        Gradients of equal ids are summed within a piece; an id in two pieces takes two steps.
        """
        self._ops.millrace_fused_apply_gradients(
            store=self.resource_handle,
            ids=_ids(ids),
            fused_slot_size=tf.convert_to_tensor(fused_slot_size, tf.int32),
            gradients=tf.convert_to_tensor(gradients, tf.float32),
            learning_rates=self._learning_rates(tables, global_step),
            global_step=_int64(global_step),
            timestamp=_int64(timestamp),
            tables=list(tables),
            num_shards=num_shards,
        )

    def assign(self, table: str, ids: Any, values: Any, timestamp: Any = NOW, ask_filter: bool = False) -> None:
        """Overwrites the weights of `ids` [n] with `values` float32 [n, dim].

        New ids get fresh optimizer state; of equal ids the last wins. Ids do not become touched: a value that came
        from outside need not be sent out again.

        Args:
          ask_filter: new ids have to pass the table's `occurrence`, as in an update.
        """
        self._assign(table, ids, values, timestamp, ask_filter, add=False)

    def assign_add(self, table: str, ids: Any, values: Any, timestamp: Any = NOW, ask_filter: bool = False) -> None:
        """Adds `values` to the weights of `ids`, a new one starting from its first vector; otherwise as `assign`."""
        self._assign(table, ids, values, timestamp, ask_filter, add=True)

    def _assign(self, table: str, ids: Any, values: Any, timestamp: Any, ask_filter: bool, add: bool) -> None:
        self.table(table)
        self._ops.millrace_assign(
            store=self.resource_handle,
            ids=_ids(ids),
            values=tf.convert_to_tensor(values, tf.float32),
            timestamp=_int64(timestamp),
            table=table,
            add=add,
            ask_filter=ask_filter,
        )

    def import_entries(self, table: str, entries: Entries) -> None:
        """Writes whole entries over what is there, with optimizer state and time of the last write as they are.

        Ids do not become touched, and `occurrence` is not asked.

        Raises:
          InvalidArgumentError: entries are not as wide as the table's, or a time stamp is negative or 2^32 and more.
        """
        self.table(table)
        self._ops.millrace_import_entries(
            store=self.resource_handle,
            ids=_ids(entries.ids),
            values=tf.convert_to_tensor(entries.values, tf.float32),
            timestamps=_ids(entries.timestamps),
            table=table,
        )

    def reinitialize(self, table: str, ids: Any, timestamp: Any = NOW) -> tf.Tensor:
        """Gives `ids` [n] their first vector and fresh state; they become touched. bool [n]: which had an entry."""
        self.table(table)
        return self._ops.millrace_reinitialize(
            store=self.resource_handle, ids=_ids(ids), timestamp=_int64(timestamp), table=table
        )

    def erase(self, table: str, ids: Any) -> tf.Tensor:
        """Removes `ids` [n]; those that were there become touched. Returns how many, an int64 scalar."""
        self.table(table)
        return self._ops.millrace_erase(store=self.resource_handle, ids=_ids(ids), table=table)

    def evict(self, watermark: Any = NOW) -> tf.Tensor:
        """Removes entries as old as `expire_days` of their slot, counted back from `watermark`; they become touched.

        Args:
          watermark: Unix seconds; below 0 means now. An event time, where timestamps are event times.

        Returns:
          int64 [tables]: how many, in the order of `tables`.
        """
        return self._ops.millrace_evict(store=self.resource_handle, watermark=_int64(watermark))

    def clear(self, table: str) -> None:
        """Removes all entries of a table and returns their memory; forgets touched ids and what its filter counted."""
        self.table(table)
        self._ops.millrace_clear(store=self.resource_handle, table=table)

    # Deltas.

    def steal_touched(self) -> TouchedKeys:
        """Takes the ids that were updated or erased since the last call; tables without any are left out.

        An id that `contains` denies was erased.
        """
        ids: dict[str, np.ndarray] = {}
        overflowed = []
        for table in self._configs:
            stolen, overflow = self._ops.millrace_steal_touched(store=self.resource_handle, table=table)
            if overflow.numpy():
                overflowed.append(table)
            if stolen.shape[0]:
                ids[table] = stolen.numpy()
        return TouchedKeys(ids, overflowed)

    def restore_touched(self, touched: Mapping[str, np.ndarray]) -> None:
        """Puts ids back that `steal_touched` returned, after a delta could not be published."""
        for table, ids in touched.items():
            self.table(table)
            self._ops.millrace_restore_touched(store=self.resource_handle, ids=_ids(ids), table=table)

    # Snapshots.

    def cut(self, watermark: int = NOW, abandoned_seconds: float = ABANDONED_SECONDS) -> Cut:
        """Holds the content of all tables as it is now, for `Cut.write`; updates may go on.

        An entry is copied before its first change until it is written, so memory grows by what changes meanwhile.

        Args:
          watermark: Unix seconds that the age of entries is counted back from, for what `Cut.write` leaves out as
            expired: the event time of the cut, where time stamps are event times. Below 0: the newest time stamp of
            each table, or the clock of the store's machine where that is earlier, so that no write that is stamped
            with a time to come makes the other entries expire.
          abandoned_seconds: another cut that has waited so long to be written is dropped for this one, as its client
            must be gone; should it come back, its `Cut.write` fails.

        Raises:
          FailedPreconditionError: another cut of this store is neither written nor dropped.
          InvalidArgumentError: the watermark is 2^32 or more.
        """
        number = self._ops.millrace_begin_cut(
            store=self.resource_handle, watermark=_int64(watermark), abandoned_seconds=abandoned_seconds
        )
        return Cut(int(number.numpy()), self._device, self._shared_name, list(self._configs))

    def save(
        self,
        folder: str | Path,
        with_state: bool = True,
        shard: int = 0,
        num_shards: int = 1,
        watermark: int = NOW,
    ) -> list[str]:
        """Writes all tables as they are now into `folder`: `cut` and `Cut.write` in one. Updates may go on."""
        return self.cut(watermark).write(folder, with_state, shard, num_shards)

    def restore(
        self,
        folder: str | Path,
        shard: int = 0,
        num_shards: int = 1,
        partial: bool = False,
        segments_from: Mapping[str, Sequence[int | None]] | None = None,
    ) -> None:
        """Replaces the content of all tables by what `save` wrote into `folder`. Forgets touched ids.

        Args:
          shard, num_shards: keeps the ids with `id mod num_shards == shard`, whatever number of shards was saved.
          partial: tables without files stay empty, and files of unknown tables are passed over; a warning names them.
          segments_from: by table: for each of its segments the one of the files that it continues, None for a new one.

        Raises:
          FileNotFoundError: the folder has no table files.
          DataLossError: a file is damaged; names file and block. Nothing was changed.
          InvalidArgumentError: files are missing, or a table is missing, unknown, or of other segments, dims or
            optimizers, by name. Nothing was changed.
        """
        maps = {
            table: ",".join("-1" if source is None else str(source) for source in sources)
            for table, sources in (segments_from or {}).items()
        }
        notes = self._ops.millrace_restore(
            store=self.resource_handle,
            files=[str(path) for path in _snapshot_files(folder)],
            partial=partial,
            shard=shard,
            num_shards=num_shards,
            segments_from=[f"{table}={text}" for table, text in maps.items()],
        )
        for note in notes.numpy():
            _LOG.warning("restore of %s: %s", folder, note.decode())

    def _learning_rates(self, tables: Sequence[str], global_step: Any) -> tf.Tensor:
        """Rates of the segments of all tables, float32, one after the other."""
        if not self._is_owner:
            raise ValueError(f"store {self._shared_name!r} is attached: open it with its tables to apply gradients")
        rates: list[Any] = []
        for name in tables:
            table = self.table(name)
            if not table.trains:
                raise ValueError(
                    f"table {name!r} of store {self._shared_name!r} has no optimizer: it takes no gradients"
                )
            rates += table.learning_rates(global_step)
        if all(isinstance(rate, int | float) for rate in rates):
            return tf.constant(rates, tf.float32)
        return tf.stack([tf.cast(rate, tf.float32) for rate in rates])

    def _ragged(
        self, features: Sequence[PooledFeature], values: Sequence[Any], row_splits: Sequence[Any]
    ) -> dict[str, Any]:
        """Inputs and attributes that both pooled ops share."""
        if not features or not len(features) == len(values) == len(row_splits):
            raise ValueError(
                f"needs as many values and row_splits as features, at least one: got {len(features)} features, "
                f"{len(values)} values, {len(row_splits)} row_splits"
            )
        return {
            "values": [_ids(ids) for ids in values],
            "row_splits": [_ids(splits) for splits in row_splits],
            "features": [feature.name for feature in features],
            "tables": [feature.table for feature in features],
            "dims": [self.table(feature.table).dim for feature in features],
            "combiners": [feature.combiner for feature in features],
            "max_lengths": [feature.max_length for feature in features],
        }


def _ids(ids: Any) -> tf.Tensor:
    if isinstance(ids, tf.Tensor | tf.Variable):
        return tf.convert_to_tensor(ids, tf.int64)
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"ids must be integers, not {array.dtype}")
    return tf.convert_to_tensor(array.astype(np.int64, copy=False))


def _int64(number: Any) -> tf.Tensor:
    return tf.cast(number, tf.int64)


def _missing(missing: str) -> str:
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {', '.join(MISSING)}, not {missing!r}")
    return missing


def _snapshot_files(folder: str | Path) -> list[Path]:
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".table", ".filter"))
    if not files:
        raise FileNotFoundError(f"no table files (*.table) in {folder}")
    return files
