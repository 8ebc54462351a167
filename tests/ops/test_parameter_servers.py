"""Stores on parameter servers: a cluster's tasks, each in a process of its own, against the same steps run here.

Run as a program, this file is one such task: `<cluster as JSON> ps|worker <task>` or `<cluster> coordinator <folder>`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops import library
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, Adam, PooledFeature, RandomUniform, Segment, Sgd, TableConfig
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.servers.daemon import free_port

TABLES = [
    TableConfig("movies", 4, Adagrad(0.1), RandomUniform(), seed=1),
    TableConfig("users", segments=[Segment(1, Sgd(0.5)), Segment(3, Adam(0.1), RandomUniform())], seed=2),
]
FEATURES = [PooledFeature("watched", "movies"), PooledFeature("seen", "movies"), PooledFeature("user", "users")]
SERVERS = 2
STEPS = 6
ROWS = 16
IDS = np.arange(-20, 20)

pytestmark = pytest.mark.slow


class Model(tf.Module):
    """A dense variable, and tables whose ids are spread over stores by `floormod(id, stores)`."""

    def __init__(self, stores: list[EmbeddingStore]) -> None:
        super().__init__()
        self.stores = stores
        self.weights = tf.Variable(tf.ones([4, 1]))

    @tf.function
    def train(self, ids: list[tf.RaggedTensor], labels: tf.Tensor, global_step: tf.Tensor) -> tf.Tensor:
        shards = [self._ids_of(shard, ids) for shard in range(len(self.stores))]
        pooled = [
            store.pooled_lookup(FEATURES, *shard, missing="create", global_step=global_step)
            for store, shard in zip(self.stores, shards, strict=True)
        ]
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            score = tf.matmul(tf.add_n([feature for store in pooled for feature in store]), self.weights)
            loss = tf.reduce_mean(tf.square(score[:, 0] - labels))
        dense, sparse = tape.gradient(loss, [self.weights, pooled])
        for store, shard, gradients in zip(self.stores, shards, sparse, strict=True):
            store.apply_pooled_gradients(FEATURES, *shard, gradients, global_step, timestamp=1000 + global_step)
        self.weights.assign_sub(0.1 * dense)
        return loss

    def _ids_of(self, shard: int, ids: list[tf.RaggedTensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Ids of one store: values and row splits of each feature."""
        own = [tf.ragged.boolean_mask(rows, tf.math.floormod(rows, len(self.stores)) == shard) for rows in ids]
        return [rows.values for rows in own], [rows.row_splits for rows in own]


def batch(step: int) -> tuple[list[tf.RaggedTensor], tf.Tensor, tf.Tensor]:
    random = np.random.default_rng(step)
    features = [
        tf.RaggedTensor.from_row_lengths(random.choice(IDS, lengths.sum()), lengths)
        for lengths in (random.integers(0, 4, ROWS), random.integers(0, 3, ROWS), np.ones(ROWS, np.int64))
    ]
    return features, tf.constant(random.normal(size=ROWS), tf.float32), tf.constant(step, tf.int64)


def serve(cluster: dict[str, list[str]], job: str, task: int) -> None:
    """One task of the cluster, until it is stopped."""
    library.load()
    tf.distribute.Server(tf.train.ClusterSpec(cluster), job, task, protocol="grpc").join()


def coordinate(cluster: dict[str, list[str]], folder: Path) -> None:
    """Trains on the cluster, saves in both ways, and prints what it saw as JSON."""
    library.load()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec(cluster), rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        stores = [EmbeddingStore(TABLES, "cluster", device=f"/job:ps/task:{task}") for task in range(SERVERS)]
        model = Model(stores)
    losses = []
    for step in range(STEPS):
        losses.append(coordinator.schedule(model.train, args=batch(step)))
        coordinator.join()
    for task, store in enumerate(stores):
        store.save(folder / "tables", shard=task, num_shards=SERVERS)
    sizes = [store.sizes() for store in stores]
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(folder / "checkpoint" / "ckpt"))
    for store in stores:
        store.clear("movies")
    checkpoint.restore(path).assert_consumed()
    report: dict[str, Any] = {
        "losses": [float(loss.fetch()) for loss in losses],
        "weights": model.weights.numpy().tolist(),
        "variable": model.weights.device,
        "handles": [store.resource_handle.device for store in stores],
        "sizes": sizes,
        "restored": [store.sizes() for store in stores],
        "rows": [stores[fid % SERVERS].lookup("movies", [fid])[0].numpy().tolist() for fid in IDS],
    }
    print(json.dumps(report))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def report(folder: Path) -> Iterator[dict[str, Any]]:
    """What the coordinator of two parameter servers and a worker saw."""
    ports: list[int] = []
    for _ in range(SERVERS + 1):
        ports.append(free_port(exclude=ports))
    addresses = [f"localhost:{port}" for port in ports]
    cluster = {"ps": addresses[:SERVERS], "worker": addresses[SERVERS:]}
    started = []

    def start(*role: str) -> ChildProcess:
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "2"}
        args = [sys.executable, __file__, json.dumps(cluster), *role]
        started.append(ChildProcess(f"{role[0]}-{len(started)}", args, folder, environment, ready=False))
        started[-1].start()
        return started[-1]

    try:
        for job, tasks in cluster.items():
            for task in range(len(tasks)):
                start(job, str(task))
        coordinator = start("coordinator", str(folder))
        assert coordinator.wait(120) == 0, coordinator.log_tail()
        yield json.loads(coordinator.log_path.read_text().splitlines()[-1])
    finally:
        for process in reversed(started):
            process.stop(seconds=0)


@pytest.fixture(scope="module")
def local() -> tuple[Model, list[float]]:
    """The same steps with one store in this process, and their losses."""
    model = Model([EmbeddingStore(TABLES, "not-on-a-cluster")])
    return model, [float(model.train(*batch(step))) for step in range(STEPS)]


def test_steps_on_a_worker_train_tables_on_parameter_servers(
    report: dict[str, Any], local: tuple[Model, list[float]]
) -> None:
    model, losses = local
    np.testing.assert_allclose(report["losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(report["weights"], model.weights, rtol=1e-5)
    assert report["variable"].startswith("/job:ps/")
    # Only the process of a store's own task can answer for it.
    assert report["handles"] == [f"/job:ps/replica:0/task:{task}/device:CPU:0" for task in range(SERVERS)]
    assert {table: sum(store[table] for store in report["sizes"]) for table in ("movies", "users")} == (
        model.stores[0].sizes()
    )


def test_shards_saved_by_parameter_servers_become_one_store(
    report: dict[str, Any], folder: Path, local: tuple[Model, list[float]]
) -> None:
    store = EmbeddingStore(TABLES, "from-a-cluster")
    store.restore(folder / "tables")
    (trained,) = local[0].stores
    for table in store.sizes():
        (ids, values), (expected_ids, expected) = store.dump(table, True), trained.dump(table, True)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_saves_and_restores_tables_on_parameter_servers(
    report: dict[str, Any], local: tuple[Model, list[float]]
) -> None:
    assert report["restored"] == report["sizes"]
    np.testing.assert_allclose(report["rows"], local[0].stores[0].lookup("movies", IDS), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    if sys.argv[2] == "coordinator":
        coordinate(json.loads(sys.argv[1]), Path(sys.argv[3]))
    else:
        serve(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
