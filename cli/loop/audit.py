"""Nothing lost, nothing twice: the audit table of the last checkpoint against the ledger of what was sent.

The audit table is trained with SGD, learning rate 1 and gradient -1, so that each entry's weight is the number of times
that its row was applied. The ledger knows every row that was sent.
"""

from dataclasses import asdict, dataclass

import numpy as np

from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD

_ROWS = ROWS_PER_RECORD * MAX_COPIES  # the lowest bits of an audit fid hold the row's number, which is less than this


@dataclass(frozen=True)
class AuditResult:
    """Row counts.

    `rows_derived` are copies of rows that were sent; `rows_unknown` came although nobody sent them. `rows_passed_over`
    are those that the trainer was told not to learn, since they came with rows that its guard objected to.
    """

    rows_sent: int
    rows_trained: int
    rows_derived: int
    rows_dropped: int
    rows_passed_over: int
    rows_lost: int
    rows_duplicated: int
    rows_unknown: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def audit_rows(
    sent_fids: np.ndarray,
    applied_fids: np.ndarray,
    applied_counts: np.ndarray,
    dropped: int = 0,
    passed_over: np.ndarray | None = None,
) -> AuditResult:
    """Compares what was sent with what was applied.

    Args:
      sent_fids: int64 [n], one unique audit fid per row that was sent.
      applied_fids: int64 [m], keys of the audit table.
      applied_counts: float32 [m], its weights.
      dropped: rows that the feed counted as dropped with a reason; they are not lost.
      passed_over: int64 [k], audit fids of rows that the trainer was told to pass over; they are not lost either.
    """
    counts = np.rint(applied_counts).astype(np.int64)
    row = applied_fids & (_ROWS - 1)
    derived = row >= ROWS_PER_RECORD
    known = np.isin(applied_fids - row + row % ROWS_PER_RECORD, sent_fids)
    original = known & ~derived
    left_out = np.zeros(0, np.int64) if passed_over is None else np.intersect1d(passed_over, sent_fids)
    left_out = np.setdiff1d(left_out, applied_fids[counts > 0])
    missing = len(sent_fids) - int((counts[original] > 0).sum()) - len(left_out)
    return AuditResult(
        rows_sent=len(sent_fids),
        rows_trained=int(counts[original].sum()),
        rows_derived=int(counts[known & derived].sum()),
        rows_dropped=dropped,
        rows_passed_over=len(left_out),
        rows_lost=max(0, missing - dropped),
        rows_duplicated=int(np.maximum(counts[known] - 1, 0).sum()) + max(0, dropped - missing),
        rows_unknown=int((~known & (counts > 0)).sum()),
    )
