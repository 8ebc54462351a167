"""Patterns of file names: dates, numbers, their combinations, and what wrong ones say."""

import datetime
from pathlib import Path

import pytest

from millrace.pipelines.files.patterns import expand_pattern, match_files
from millrace.runtime.errors import UserError
from tests.conformance.covers import covers


@covers("data:v9")
def test_days_from_a_start_to_an_excluded_end() -> None:
    patterns = expand_pattern("/abc/{SINCE(20220901, 20220920)}/*")
    assert len(patterns) == 19
    assert (patterns[0], patterns[-1]) == ("/abc/20220901/*", "/abc/20220919/*")


@covers("data:v9")
def test_placeholders_combine_with_the_leftmost_slowest() -> None:
    assert expand_pattern("d_{DATE(20201120, 20201122)}/p_{INT(0, 1)}") == [
        "d_20201120/p_0",
        "d_20201120/p_1",
        "d_20201121/p_0",
        "d_20201121/p_1",
        "d_20201122/p_0",
        "d_20201122/p_1",
    ]


@covers("data:v9")
def test_ten_digits_are_hours_across_midnight() -> None:
    assert expand_pattern("{DATE(2020112022, 2020112101)}") == ["2020112022", "2020112023", "2020112100", "2020112101"]


def test_a_pattern_without_placeholders_stays_as_it_is() -> None:
    assert expand_pattern("a/*.parquet") == ["a/*.parquet"]


def test_a_range_of_dates_may_end_with_the_last_day_there_is() -> None:
    assert expand_pattern("{DATE(99991230, 99991231)}") == ["99991230", "99991231"]


@pytest.mark.parametrize("pattern", ["{INT(8,11)}", "{ INT( 8 , 11 ) }"])
def test_numbers_are_not_padded_and_blanks_do_not_matter(pattern: str) -> None:
    assert expand_pattern(f"x{pattern}y") == ["x8y", "x9y", "x10y", "x11y"]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{DATE(20201131, 20201201)}", "is not a date"),
        ("{DATE(20201101, 2020110200)}", "not two dates of one kind"),
        ("{DATE(20201102, 20201101)}", "is empty"),
        ("{INT(3, 2)}", "is empty"),
        ("{WEEK(1, 2)}", "is unknown"),
        ("{INT(1)}", "INT has no end"),
        ("{SINCE(202209)}", "is not a date"),
        ("{SINCE(20220902, 20220902)}", "is empty"),
        ("{SINCE(99991231)}", "is empty"),
        ("{INT(0, 999)}{INT(0, 999)}", "1000000 names"),
        ("{INT(0, 999999999999)}", "numbers"),
    ],
)
def test_a_wrong_placeholder_is_refused_by_name(pattern: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        expand_pattern(pattern)


def test_hours_since_a_start_are_folders_and_begin_and_end_within_days() -> None:
    patterns = expand_pattern("/abc/{SINCE(2022090122, 2022090201)}-*")
    assert patterns == ["/abc/20220901/22-*", "/abc/20220901/23-*", "/abc/20220902/00-*"]


def test_without_an_end_the_days_go_up_to_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.pipelines.files.patterns._today", lambda: datetime.datetime(2022, 9, 3))
    assert expand_pattern("/abc/{SINCE(20220901)}/*") == ["/abc/20220901/*", "/abc/20220902/*"]
    assert expand_pattern("{SINCE(2022090222)}") == ["20220902/22", "20220902/23"]


def test_files_are_numbered_in_the_order_of_their_paths_and_none_is_there_twice(tmp_path: Path) -> None:
    for name in ("b_2", "a_1", "b_1", "c_1"):
        (tmp_path / name).touch()
    found = match_files([f"{tmp_path}/b_*", f"{tmp_path}/a_{{INT(0, 3)}}", f"{tmp_path}/b_1"])
    assert found == [(0, f"{tmp_path}/a_1"), (1, f"{tmp_path}/b_1"), (2, f"{tmp_path}/b_2")]


def test_no_file_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file matches"):
        match_files(f"{tmp_path}/x_{{INT(0, 3)}}", "--files")
