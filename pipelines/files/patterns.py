"""Names of files: patterns with dates and numbers, and what they match, in one order that every worker agrees on.

`{DATE(20251101, 20251103)}` stands for each day of the range, ends included, `{DATE(2025110100, 2025110123)}` for each
hour, `{INT(0, 9)}` for each number, not padded. `{SINCE(20251101)}` stands for each day up to yesterday,
`{SINCE(20251101, 20251104)}` for those before the second, and with hours it stands for folders of hours, as
`20251101/00`. Times are UTC.
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
"""Names that one pattern may expand to, eleven years of hours: a slip in a range is told before it fills the memory."""

_PLACEHOLDER = re.compile(r"\{\s*(\w+)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*\}")
_DAY, _HOUR = datetime.timedelta(days=1), datetime.timedelta(hours=1)
# {digits of a date: (how it is written, step)}
_DATES = {8: ("%Y%m%d", _DAY), 10: ("%Y%m%d%H", _HOUR)}


def expand_pattern(pattern: str, field: str = "pattern") -> list[str]:
    """`pattern` with every combination of what its placeholders stand for; the leftmost changes slowest.

    Raises: UserError naming `field` for a placeholder that does not exist or whose range is wrong.
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


def _range(kind: str, first: str, last: str | None, pattern: str, field: str) -> list[str]:
    if kind not in ("INT", "DATE", "SINCE"):
        raise UserError(
            field, pattern, f"{kind} is unknown", "write {DATE(first, last)}, {SINCE(first)} or {INT(0, 9)}"
        )
    if last is None and kind != "SINCE":
        raise UserError(field, pattern, f"{kind} has no end", f"write {{{kind}(first, last)}}")
    found = _numbers(int(first), int(last or 0), pattern, field) if kind == "INT" else _dates(kind, first, last, field)
    if not found:
        raise UserError(field, pattern, f"the range of {kind} is empty", "give the smaller end first")
    return found


def _numbers(first: int, last: int, pattern: str, field: str) -> list[str]:
    count = last + 1 - first
    if count > MAX_PATTERNS:
        raise UserError(field, pattern, f"INT stands for {count} numbers", f"take {MAX_PATTERNS} at most")
    return [str(value) for value in range(first, last + 1)]


def _dates(kind: str, first: str, last: str | None, field: str) -> list[str]:
    """The days, or hours, of a range as texts; no more than one above `MAX_PATTERNS`, which the caller refuses."""
    if len(first) not in _DATES or len(last or first) != len(first):
        problem = f"{first} and {last} are not two dates of one kind" if last else "is not a date"
        raise UserError(field, f"{kind}({first})", problem, "write YYYYMMDD, or YYYYMMDDHH for hours")
    layout, step = _DATES[len(first)]
    begin = _date(first, field)
    end = _today() if last is None else _date(last, field)
    if kind == "SINCE" and step == _HOUR:
        layout = "%Y%m%d/%H"
    count = min((end - begin) // step + (kind == "DATE"), MAX_PATTERNS + 1)
    return [(begin + number * step).strftime(layout) for number in range(count)]


def _date(text: str, field: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(text, _DATES[len(text)][0])
    except ValueError as error:
        raise UserError(field, text, "is not a date", "write YYYYMMDD, or YYYYMMDDHH for hours") from error


def _today() -> datetime.datetime:
    """The start of this day, UTC."""
    return datetime.datetime.combine(datetime.datetime.now(datetime.UTC).date(), datetime.time())


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
