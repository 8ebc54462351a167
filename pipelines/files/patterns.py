"""Names of files: patterns with dates and numbers, and what they match, in one order that every worker agrees on.

`{DATE(20251101, 20251103)}` stands for each day of the range, ends included, `{DATE(2025110100, 2025110123)}` for each
hour, `{INT(0, 9)}` for each number, not padded.
"""

import datetime
import itertools
import logging
import math
import re
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems

from millrace.runtime.errors import UserError

_LOGGER = logging.getLogger(__name__)

MAX_PATTERNS = 100_000
"""Names that one pattern may expand to: a slip in a range is told before it fills the memory."""

_PLACEHOLDER = re.compile(r"\{\s*(\w+)\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*\}")
_DATE_FORMATS = {8: ("%Y%m%d", datetime.timedelta(days=1)), 10: ("%Y%m%d%H", datetime.timedelta(hours=1))}


def expand_pattern(pattern: str, field: str = "pattern") -> list[str]:
    """`pattern` with every combination of what its placeholders stand for; the leftmost changes slowest.

    Raises: UserError naming `field` for a placeholder that is neither DATE nor INT or whose range is wrong.
    """
    parts = _PLACEHOLDER.split(pattern)
    placeholders = zip(parts[1::4], parts[2::4], parts[3::4], strict=True)
    ranges = [_range(kind, first, last, pattern, field) for kind, first, last in placeholders]
    count = math.prod(len(each) for each in ranges)
    if count > MAX_PATTERNS:
        raise UserError(field, pattern, f"stands for {count} names, more than {MAX_PATTERNS}", "narrow its ranges")
    texts = parts[::4]
    return [
        texts[0] + "".join(value + text for value, text in zip(values, texts[1:], strict=True))
        for values in itertools.product(*ranges)
    ]


def _range(kind: str, first: str, last: str, pattern: str, field: str) -> list[str]:
    if kind == "INT":
        values = range(int(first), int(last) + 1)
        if len(values) > MAX_PATTERNS:
            raise UserError(field, pattern, f"INT stands for {len(values)} numbers", f"take {MAX_PATTERNS} at most")
        found = [str(value) for value in values]
    elif kind == "DATE":
        found = _dates(first, last, pattern, field)
    else:
        raise UserError(field, pattern, f"{{{kind}(...)}} is unknown", "write DATE or INT")
    if not found:
        raise UserError(field, pattern, f"the range from {first} to {last} is empty", "give the smaller end first")
    return found


def _dates(first: str, last: str, pattern: str, field: str) -> list[str]:
    if len(first) != len(last) or len(first) not in _DATE_FORMATS:
        raise UserError(field, pattern, f"{first} and {last} are not two dates of one kind", "write YYYYMMDD[HH]")
    layout, step = _DATE_FORMATS[len(first)]
    begin, end = _date(first, field), _date(last, field)
    return [(begin + number * step).strftime(layout) for number in range(min((end - begin) // step + 1, MAX_PATTERNS))]


def _date(text: str, field: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(text, _DATE_FORMATS[len(text)][0])
    except (ValueError, KeyError) as error:
        raise UserError(field, text, "is not a date", "write YYYYMMDD, or YYYYMMDDHH for hours") from error


def gen_patterns(
    input_path: str,
    start_date: str,
    end_date: str = "",
    start_hour: int = 0,
    end_hour: int = 0,
    is_hourly: bool = False,
    wildcard: str = "*",
    today: datetime.date | None = None,
) -> list[str]:
    """`<path>/YYYYMMDD/<wildcard>` of each day, or `<path>/YYYYMMDD/HH<wildcard>` of each hour, the end excluded.

    Args:
      end_date: default: `today`.
      today: default: this day, UTC.

    Returns: nothing when the path or the start is missing.
    """
    if not input_path or not start_date:
        return []
    step = datetime.timedelta(hours=1) if is_hourly else datetime.timedelta(days=1)
    last = end_date or (today or datetime.datetime.now(datetime.UTC).date()).strftime("%Y%m%d")
    begin, end = _date(start_date, "start_date"), _date(last, "end_date")
    if is_hourly:
        begin, end = (day + datetime.timedelta(hours=hour) for day, hour in ((begin, start_hour), (end, end_hour)))
    layout = "%Y%m%d/%H" if is_hourly else "%Y%m%d/"
    count = max(0, (end - begin) // step)
    return [f"{input_path}/{(begin + number * step).strftime(layout)}{wildcard}" for number in range(count)]


def match_files(patterns: str | Sequence[str], field: str = "pattern") -> list[tuple[int, str]]:
    """(number, path) of each file that the patterns match, in the order of the paths; none twice.

    Patterns that match nothing are logged. Raises: UserError when there is none at all.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    globs = list(itertools.chain.from_iterable(expand_pattern(pattern, field) for pattern in wanted))
    found = FileSystems.match(globs) if globs else []
    paths = sorted({metadata.path for match in found for metadata in match.metadata_list})
    if not paths:
        raise UserError(field, ", ".join(wanted), "no file matches", "check the path and quote its wildcards")
    for match in found:
        if not match.metadata_list:
            _LOGGER.warning("no file matches %s", match.pattern)
    return list(enumerate(paths))
