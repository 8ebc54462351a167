"""Flags of `millrace train` as settings of the online run."""

import datetime

import pytest

from millrace.cli import main, train
from millrace.runtime.errors import UserError
from millrace.training.online.options import OnlineOptions
from millrace.training.state.save_schedule import DailyWindow


def options(*flags: str) -> OnlineOptions:
    words = ["train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--model-dir", "m", *flags]
    return train._online_options(main._parse(words))


def test_without_flags_the_defaults_of_the_options_hold() -> None:
    made = options()
    assert made == OnlineOptions(made.model_dir)


def test_checkpoints_come_every_so_many_seconds_or_steps() -> None:
    by_seconds, by_steps = options("--checkpoint-seconds", "7.5"), options("--checkpoint-steps", "100")
    assert (by_seconds.checkpoint_seconds, by_seconds.checkpoint_steps) == (7.5, None)
    assert (by_steps.checkpoint_seconds, by_steps.checkpoint_steps) == (None, 100)


def test_both_periods_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--checkpoint-seconds", "7.5", "--checkpoint-steps", "100")
    assert "not allowed with argument --checkpoint-seconds" in capsys.readouterr().err


def test_a_daily_window_has_a_period_of_its_own_outside() -> None:
    made = options("--checkpoint-window", "23:00-02:30", "--checkpoint-seconds-outside", "600")
    assert made.checkpoint_window == DailyWindow(datetime.time(23), datetime.time(2, 30), seconds_outside=600.0)
    assert made.checkpoint_seconds == 20.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint-window", "01:00-03:00"], "01:00-03:00.*--checkpoint-seconds-outside"),
        (["--checkpoint-seconds-outside", "60"], "60.*give --checkpoint-window"),
        (
            ["--checkpoint-window", "01:00-03:00", "--checkpoint-seconds-outside", "60", "--checkpoint-steps", "9"],
            "not steps",
        ),
    ],
)
def test_a_daily_window_that_says_too_little_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(*flags)


@pytest.mark.parametrize("text", ["01:00", "25:00-26:00", "1-3", "01:00-02:00-03:00"])
def test_hours_that_are_none_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--checkpoint-window", text, "--checkpoint-seconds-outside", "60")
    assert text in capsys.readouterr().err


def test_retention_is_set_by_flags() -> None:
    made = options("--keep-checkpoints", "10", "--keep-checkpoint-every", "86400")
    assert (made.keep_checkpoints, made.keep_checkpoint_every_seconds) == (10, 86400.0)
