"""Offsets are committed only when the rows below them can have left."""

from apache_beam.utils.timestamp import MIN_TIMESTAMP

from millrace.pipelines.kafka.commits import TrailingCommits


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_a_write_in_flight_may_hold_is_not_committed_before_it_ends() -> None:
    clock, commits, write_began = _Clock(), [], 1004.0
    trailing = TrailingCommits(commits.append, 3.0, clock, lambda: write_began)
    for second in range(10):
        trailing.reached({("a", 0): second}, MIN_TIMESTAMP)
        clock.now += 1.0
    assert commits[-1] == {("a", 0): 1}  # read at 1001 s, due at 1004 s
    write_began = float("inf")
    trailing.reached({("a", 0): 10}, MIN_TIMESTAMP)
    assert commits[-1] == {("a", 0): 7}
