"""The audit tells lost, doubled, dropped and unknown rows apart."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace.cli.loop.audit import audit_rows

_SENT = np.arange(1, 11, dtype=np.int64)


def test_every_row_applied_once_is_clean() -> None:
    result = audit_rows(_SENT, _SENT, np.ones(10, np.float32))
    assert (result.rows_lost, result.rows_duplicated, result.rows_unknown, result.rows_trained) == (0, 0, 0, 10)


def test_a_row_that_was_never_applied_is_lost() -> None:
    assert audit_rows(_SENT, _SENT[1:], np.ones(9, np.float32)).rows_lost == 1


def test_a_row_applied_twice_is_doubled() -> None:
    counts = np.ones(10, np.float32)
    counts[3] = 3
    assert audit_rows(_SENT, _SENT, counts).rows_duplicated == 2


def test_a_row_that_nobody_sent_is_unknown() -> None:
    assert audit_rows(_SENT, np.append(_SENT, 99), np.ones(11, np.float32)).rows_unknown == 1


def test_a_row_dropped_with_its_reason_is_not_lost() -> None:
    result = audit_rows(_SENT, _SENT[2:], np.ones(8, np.float32), dropped=2)
    assert (result.rows_lost, result.rows_duplicated) == (0, 0)


def test_a_row_both_dropped_and_trained_is_doubled() -> None:
    assert audit_rows(_SENT, _SENT, np.ones(10, np.float32), dropped=1).rows_duplicated == 1


def test_a_row_passed_over_is_counted_apart_and_not_lost() -> None:
    passed_over = np.array([1, 2, 99])  # the last was not sent
    result = audit_rows(_SENT, _SENT[2:-1], np.ones(7, np.float32), passed_over=passed_over)
    assert (result.rows_passed_over, result.rows_lost, result.rows_duplicated) == (2, 1, 0)


def test_a_row_that_was_to_be_passed_over_and_is_trained_counts_as_trained() -> None:
    result = audit_rows(_SENT, _SENT, np.ones(10, np.float32), passed_over=_SENT[:3])
    assert (result.rows_passed_over, result.rows_trained, result.rows_lost, result.rows_duplicated) == (0, 10, 0, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_counts_add_up_for_any_outcome(applied: list[int]) -> None:
    counts = np.array(applied)
    fids = np.arange(len(counts), dtype=np.int64)
    result = audit_rows(fids, fids[counts > 0], counts[counts > 0].astype(np.float32))
    assert result.rows_lost == int((counts == 0).sum())
    assert result.rows_trained == int(counts.sum())
    assert result.rows_sent == result.rows_trained - result.rows_duplicated + result.rows_lost
