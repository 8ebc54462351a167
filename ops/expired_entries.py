"""What a snapshot left out as expired goes to the log: as a warning where it is much."""

import logging
from collections.abc import Sequence

_LOG = logging.getLogger(__name__)

# A table that saves every few minutes loses few entries to age between two saves. More than a tenth means a table that
# lay idle, or a wrong time stamp or watermark.
_MUCH = 0.1


def report_expired(store: str, tables: Sequence[str], written: Sequence[int], expired: Sequence[int]) -> None:
    """Logs how many entries of each table a snapshot left out, if any.

    Args:
      tables: names of all tables; `written` and `expired` are their numbers of entries.
    """
    for table, kept, left_out in zip(tables, written, expired, strict=True):
        if left_out:
            is_much = left_out > _MUCH * (kept + left_out)
            _LOG.log(
                logging.WARNING if is_much else logging.INFO,
                "store %s: a snapshot of table %s left out %d of %d entries as older than expire_days%s",
                store, table, left_out, kept + left_out,
                "; if they are not old, check the time stamps of updates and the watermark" if is_much else "",
            )  # fmt: skip
