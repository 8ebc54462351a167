"""Embedding stores of a test alone."""

import uuid

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import TableConfig


def open_store(*tables: TableConfig) -> EmbeddingStore:
    """A store under a name of its own; it goes with the last reference to it."""
    return EmbeddingStore(tables, f"test-{uuid.uuid4().hex[:12]}")
