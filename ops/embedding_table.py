"""Embedding tables in TensorFlow: exact int64 keys, sparse optimizers in C++, snapshots, SavedModels.

    store = EmbeddingStore([TableConfig("movies", dim=16, optimizer=Adagrad(0.05))], shared_name="ranking")
    features = [PooledFeature("movie", table="movies", combiner="mean")]

    @tf.function
    def train_step(values, row_splits, labels):
        pooled = store.pooled_lookup(features, values, row_splits, create=True)
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            loss = loss_of(model(pooled), labels)
        store.apply_pooled_gradients(features, values, row_splits, tape.gradient(loss, pooled))

The tape is told to watch the pooled outputs: entries are no tf.Variable, so a tape knows nothing about them. What
`tape.gradient(loss, pooled)` returns goes to `apply_pooled_gradients`, which carries it back through the pooling, sums
the gradients of equal ids and lets each table's optimizer take one step an id.

Tables live in a registry of the process under the store's `shared_name`. They are freed with the last EmbeddingStore
object (or loaded SavedModel) of that name, or by `EmbeddingStore.release`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ops import library
from ops.table_config import (
    Adagrad,
    Adam,
    Constant,
    Ftrl,
    Initializer,
    LearningRate,
    Optimizer,
    PooledFeature,
    RandomUniform,
    Sgd,
    TableConfig,
    Zeros,
)

__all__ = [
    "Adagrad",
    "Adam",
    "Constant",
    "EmbeddingStore",
    "Ftrl",
    "Initializer",
    "LearningRate",
    "Optimizer",
    "PooledFeature",
    "RandomUniform",
    "Sgd",
    "TableConfig",
    "TouchedKeys",
    "Zeros",
]

NOW = -1  # timestamp: the wall clock when the op runs

tf.no_gradient("Millrace>Lookup")
tf.no_gradient("Millrace>PooledLookup")


class TouchedKeys(dict[str, np.ndarray]):
    """Table name -> int64 ids, ascending.

    Attributes:
      overflowed: names of tables that forgot ids for lack of room (some four million a table); readers of deltas then
        need a whole export.
    """

    def __init__(self, ids: Mapping[str, np.ndarray], overflowed: Sequence[str] = ()) -> None:
        super().__init__(ids)
        self.overflowed = tuple(overflowed)


class EmbeddingStore(tf.saved_model.experimental.TrackableResource):
    """Several embedding tables under one name.

    Lookups and updates (`lookup` to `erase`, `contains`) work eagerly and inside a tf.function; what returns Python or
    NumPy values works eagerly. All are thread-safe. Ids are int64; every id is exact, none collide. Arguments may be
    tensors or anything that converts to them.

    Errors, as TensorFlow raises them: NotFoundError for a store that was released; InvalidArgumentError for shapes, bad
    row splits and non-finite numbers. An unknown table is a KeyError with the choices.

    A SavedModel that reaches this object through attributes holds the tables' configuration and, with `snapshot`,
    their content: loading it in any process after `ops.library.load()` opens a store of the same `shared_name` there
    and restores it, and dropping the loaded object frees it. A second load of the same export in a process joins the
    first. Give each export a `shared_name` of its own, and versions live side by side.
    """

    def __init__(
        self, tables: Sequence[TableConfig], shared_name: str, snapshot: str | Path | None = None, *, handle: Any = None
    ) -> None:
        """Opens the store, creating it when the process has none of this name.

        Args:
          tables: at least one, names all different. Joining an open store needs the same tables.
          shared_name: name in the process.
          snapshot: folder that `save` wrote. Not read here: an export copies its files into the SavedModel's assets,
            and loading the SavedModel restores them.
          handle: of a store that somebody else owns; for `attach`.

        Raises:
          ValueError: no tables, a table name twice, or a snapshot without files.
          InvalidArgumentError: the store is open with other tables.
        """
        super().__init__(device="CPU:0")
        if not tables:
            raise ValueError(f"store {shared_name!r} needs at least one table")
        self._configs = {table.name: table for table in tables}
        if len(self._configs) != len(tables):
            raise ValueError(f"store {shared_name!r}: table names must differ, got {[table.name for table in tables]}")
        self._shared_name = shared_name
        self._ops = library.load()
        self._assets: list[tf.saved_model.Asset] = []
        if snapshot is not None:
            self._assets = [
                self._track_trackable(tf.saved_model.Asset(str(path)), f"snapshot_{i}")
                for i, path in enumerate(_table_files(snapshot))
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

    # How tf.saved_model exports and loads the store.

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

    # What it holds.

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

    def contains(self, table: str, ids: Any) -> tf.Tensor:
        """bool [n]: which of `ids` [n] have an entry."""
        self.table(table)
        return self._ops.millrace_contains(store=self.resource_handle, ids=_ids(ids), table=table)

    def dump(self, table: str, with_state: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """All entries by ascending id, as NumPy arrays: ids int64 [n], values float32 [n, dim].

        Args:
          with_state: append the optimizer's state to the rows.
        """
        self.table(table)
        ids, values, _ = self._ops.millrace_dump(store=self.resource_handle, table=table, with_state=with_state)
        return ids.numpy(), values.numpy()

    # Reading.

    def lookup(self, table: str, ids: Any, create: bool = False) -> tf.Tensor:
        """Weights of `ids` [n], float32 [n, dim].

        Args:
          create: insert missing ids with their first vector; else they read as zeros and the table stays as it is.
        """
        dim = self.table(table).dim
        return self._ops.millrace_lookup(store=self.resource_handle, ids=_ids(ids), table=table, dim=dim, create=create)

    def pooled_lookup(
        self, features: Sequence[PooledFeature], values: Sequence[Any], row_splits: Sequence[Any], create: bool = False
    ) -> list[tf.Tensor]:
        """Pooled weights of every feature in one op.

        Args:
          features: at least one.
          values: ids of each feature, int64 [n_f].
          row_splits: int64 [rows_f + 1] of each feature, from 0 to n_f: row r holds ids splits[r] up to splits[r + 1].
          create: as in `lookup`.

        Returns:
          float32 [rows_f, dim_f] a feature; a row without ids is zeros. See the module's text for its gradient.
        """
        return list(
            self._ops.millrace_pooled_lookup(
                store=self.resource_handle, create=create, **self._ragged(features, values, row_splits)
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
    ) -> None:
        """Updates the tables from gradients of `pooled_lookup`'s outputs, in one op.

        Gradients of equal ids are summed, over all features of a table, in order of occurrence; then each id takes one
        step of the table's optimizer. Missing ids are created first. Updated ids become touched.

        Args:
          features, values, row_splits: as in `pooled_lookup`.
          gradients: float32 [rows_f, dim_f] a feature; None (a feature that the loss does not use) leaves the feature
            out.
          global_step: what learning rates that are functions are called with.
          timestamp: Unix seconds stamped on the entries; below 0 means now.

        Raises:
          InvalidArgumentError: a sum is NaN or infinite (names table and id); nothing was applied to any table.
        """
        if len(gradients) != len(features):
            raise ValueError(f"got {len(gradients)} gradients for {len(features)} features")
        used = [f for f, gradient in enumerate(gradients) if gradient is not None]
        if not used:
            return
        rates = [self._learning_rate(features[f].table, global_step) for f in used]
        self._ops.millrace_apply_pooled_gradients(
            store=self.resource_handle,
            gradients=[tf.convert_to_tensor(gradients[f], tf.float32) for f in used],
            learning_rates=tf.stack(rates),
            timestamp=tf.cast(timestamp, tf.int64),
            **self._ragged([features[f] for f in used], [values[f] for f in used], [row_splits[f] for f in used]),
        )

    def apply_gradients(self, table: str, ids: Any, gradients: Any, global_step: Any = 0, timestamp: Any = NOW) -> None:
        """Updates `ids` [n] from `gradients` float32 [n, dim]; otherwise as `apply_pooled_gradients`."""
        self._ops.millrace_apply_gradients(
            store=self.resource_handle,
            ids=_ids(ids),
            gradients=tf.convert_to_tensor(gradients, tf.float32),
            learning_rate=self._learning_rate(table, global_step),
            timestamp=tf.cast(timestamp, tf.int64),
            table=table,
        )

    def assign(self, table: str, ids: Any, values: Any, timestamp: Any = NOW) -> None:
        """Overwrites the weights of `ids` [n] with `values` float32 [n, dim].

        New ids get fresh optimizer state; of equal ids the last wins. Ids do not become touched: a value that came
        from outside need not be sent out again.
        """
        self.table(table)
        self._ops.millrace_assign(
            store=self.resource_handle,
            ids=_ids(ids),
            values=tf.convert_to_tensor(values, tf.float32),
            timestamp=tf.cast(timestamp, tf.int64),
            table=table,
        )

    def erase(self, table: str, ids: Any) -> tf.Tensor:
        """Removes `ids` [n]; those that were there become touched. Returns how many, an int64 scalar."""
        self.table(table)
        return self._ops.millrace_erase(store=self.resource_handle, ids=_ids(ids), table=table)

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

    def save(self, folder: str | Path, with_state: bool = True) -> list[str]:
        """Writes every table into `folder` (created): one checksummed file a table, written beside, synced, renamed.

        The caller pauses updates meanwhile; a table whose number of entries changed is an error. Equal tables give
        equal files.

        Args:
          with_state: write optimizer state too; False for an export that only serves.

        Returns:
          Paths of the files.
        """
        files = self._ops.millrace_save(store=self.resource_handle, folder=str(folder), with_state=with_state)
        return [path.decode() for path in files.numpy()]

    def restore(self, folder: str | Path) -> None:
        """Replaces the content of all tables by what `save` wrote into `folder`. Forgets touched ids.

        Raises:
          FileNotFoundError: the folder has no table files.
          DataLossError: a file is damaged; names file and block. Nothing was changed.
          InvalidArgumentError: a table is missing, unknown, or of other dim or optimizer, by name. Nothing was changed.
        """
        self._ops.millrace_restore(store=self.resource_handle, files=[str(path) for path in _table_files(folder)])

    def _learning_rate(self, table: str, global_step: Any) -> tf.Tensor:
        optimizer = self.table(table).optimizer
        if not self._is_owner:
            raise ValueError(f"store {self._shared_name!r} is attached: open it with its tables to apply gradients")
        if optimizer is None:
            raise ValueError(f"table {table!r} of store {self._shared_name!r} has no optimizer: it takes no gradients")
        rate = optimizer.learning_rate
        return tf.cast(rate(global_step) if callable(rate) else rate, tf.float32)

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
        }


def _ids(ids: Any) -> tf.Tensor:
    if isinstance(ids, tf.Tensor | tf.Variable):
        return tf.convert_to_tensor(ids, tf.int64)
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"ids must be integers, not {array.dtype}")
    return tf.convert_to_tensor(array.astype(np.int64, copy=False))


def _table_files(folder: str | Path) -> list[Path]:
    files = sorted(Path(folder).glob("*.table"))
    if not files:
        raise FileNotFoundError(f"no table files (*.table) in {folder}")
    return files
