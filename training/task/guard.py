"""When a trainer stops publishing its own model: what a task may set."""

from dataclasses import dataclass

from millrace.runtime.errors import UserError

BLOCK_ROWS = 64
"""Rows whose mean is one observation of the guard."""


@dataclass(frozen=True)
class Guard:
    """How a trainer judges its model before it publishes it, by predictions that it made before it learned their rows.

    Labels come late, negatives later than positives, so that the share of positives among arriving rows changes with
    the rate of traffic. What is judged does not depend on it. Means of 64 rows are standardised by the spread of the
    past, and a cumulative sum (CUSUM, Page 1954) adds up what exceeds `slack`. It raises an alarm above `threshold`.

    - How closely labels follow predictions, whatever the share of positives is (labels or ids are wrong). Rows
      of one label alone say nothing: it needs at least one positive in some 300 rows.
    - Gradients of embeddings per prediction error (weights are wrong).
    - The second line: predictions less labels, in whole seconds of event time of which all labels have come (labels are
      missing, or all one). It waits for the longest lag that rows had, so it takes longer than the window of the feed,
      and needs rows that have event times.

    The defaults suit a model that has learned some thousand rows (`least_rows` and `gap_rows`; before that nothing is
    judged). tests/benchmarks/bench_guard.py measures how soon poison is found, and that honest traffic is no alarm.

    Args:
      enabled: False: everything is published.
      past_rows: newest rows that the past consists of; longer follows a drift later.
      gap_rows: rows between past and present, so that what is judged is not in its own standard: as many as a poisoning
        may last before it is found. After an alarm they all count as wrong.
      least_rows: rows that the past must have before anything is judged.
      slack: standard deviations that an observation may be above the past without adding to the sum.
      threshold: of the sum, in standard deviations.
      gradient_factor: how many times the median gradient per error of the past that of an update must be to count; four
        of eight successive ones that do are an alarm.
      not_finite_share: of the newest 1,024 rows, the share whose update was not finite that is an alarm.

    Raises:
      UserError: a number is out of range.
    """

    enabled: bool = True
    past_rows: int = 16_384
    gap_rows: int = 3_072
    least_rows: int = 6_144
    slack: float = 0.6
    threshold: float = 18.0
    gradient_factor: float = 8.0
    not_finite_share: float = 0.25

    def __post_init__(self) -> None:
        checks = {
            "past_rows": self.past_rows >= self.least_rows,
            "gap_rows": self.gap_rows >= 0,
            "least_rows": self.least_rows >= 16 * BLOCK_ROWS,
            "slack": self.slack >= 0,
            "threshold": self.threshold > 0,
            "gradient_factor": self.gradient_factor > 1,
            "not_finite_share": 0 < self.not_finite_share <= 1,
        }
        for name, is_right in checks.items():
            if not is_right:
                remedy = f"past_rows >= least_rows >= {16 * BLOCK_ROWS}, factor > 1, share in (0, 1], others positive"
                raise UserError(f"Guard.{name}", getattr(self, name), "out of range", remedy)
