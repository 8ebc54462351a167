"""Batches of another size: the rows stay, in order."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from millrace.transforms.batch import record_batch


def rebatch(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Batches of `size` rows, the last one of what is left. A column that a batch lacks is null.

    Raises: ValueError when `size` is below 1, or a column has two types.
    """
    if size < 1:
        raise ValueError(f"size {size}: a batch has at least one row")
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows < size:
            continue
        merged = record_batch.concat(waiting)
        whole = rows - rows % size
        yield from (merged.slice(start, size) for start in range(0, whole, size))
        waiting, rows = [merged.slice(whole)], rows - whole
    if rows:
        yield record_batch.concat(waiting)
