"""A delta that does not fit into one message."""

from collections.abc import Iterator

import numpy as np
import pytest

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig
from millrace.training.publish.delta_split import delta_messages
from tests.conformance.covers import covers

LIMIT = 60
TOUCHED = {"none": [], "two": [1, 2], "three": [1, 2, 3]}


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[EmbeddingStore]:
    name = f"test/{request.node.name}"
    yield EmbeddingStore([TableConfig(table, dim=3, optimizer=Sgd(1.0)) for table in TOUCHED], name)
    EmbeddingStore.release(name)


# The original cuts each table evenly, by (0, 1, 1) and (0, 1, 2) ids, and its two messages are over the limit. Here a
# message is filled up to its limit and never above it, none is empty, and there are two as well; where a table is cut
# means nothing to a reader.
@covers("emb:L15")
def test_every_message_is_within_its_limit_and_every_entry_goes_out_once(store: EmbeddingStore) -> None:
    for table, ids in TOUCHED.items():
        store.lookup(table, ids, missing="create")
    touched = {table: np.array(ids, np.int64) for table, ids in TOUCHED.items()}
    messages = list(delta_messages(store, touched, max_bytes=LIMIT))
    sent: dict[str, list[int]] = {table: [] for table in TOUCHED}
    for tables in messages:
        assert 0 < sum(len(table.fids) + len(table.values) for table in tables) <= LIMIT
        for table in tables:
            sent[table.name] += np.frombuffer(table.fids, "<i8").tolist()
    assert (sent, len(messages)) == (TOUCHED, 2)
