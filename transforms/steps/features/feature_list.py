"""Feature lists in Monolith's text format, one feed, cache or feature per line, as checked objects.

    # comments and blank lines are skipped
    column_name: uid, item_id, price
    cache_column: profile
    feed_name=user; shared=true; feature_id=7
    cache_column=profile; capacity=1000; timeout=60
    feature_name=fc_user_id; depend=user; method=DirectInt32; slot=1; feature_version=2

The terms of a line are `key=value`; the key is the last word before the `=`, so that values may have spaces.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid

MAX_BYTES = 16 << 20
"""Largest text: a list of 1,106 features and 578 feeds, as one was in production, has less than 1 MB."""
MAX_LINE_CHARS = 1 << 16

_TRUE = {"true", "yes", "t", "y", "1"}
_COLUMNS_LINE = re.compile(r"(column_name|cache_column)\s*:(.*)", re.DOTALL)
_SLOT_NAME = re.compile(r"(?:fc_)?slot_(\d+)")
_PREFIX = re.compile(r"(^|-)(?:fc_|f_)")


def _flag(text: str) -> bool:
    return text.lower() in _TRUE


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _flags(text: str) -> tuple[bool, ...]:
    return tuple(_flag(part.strip()) for part in text.split(","))


def _key(read: Callable[[str], Any], default: Any = None) -> Any:
    """A field of a line: `read` turns the text of a value into the value."""
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True)
class Feed:
    """A source of features."""

    feed_name: str = _key(str)
    shared: bool = _key(_flag, False)
    feature_id: int | None = _key(int)


@dataclass(frozen=True)
class Cache:
    """A cache of extracted columns."""

    cache_name: str = _key(str)
    capacity: int | None = _key(int)
    timeout: int | None = _key(int)
    cache_type: str | None = _key(str)
    cache_key_class: str | None = _key(str)


@dataclass(frozen=True)
class Feature:
    """A feature: what it is made of, and the slot of its fids if it has fids.

    `feature_version` 1 means fids v1, and 2 means fids v2.
    """

    feature_name: str = _key(str)
    depend: tuple[str, ...] = _key(_names, ())
    method: str | None = _key(str)
    slot: int | None = _key(int)
    args: tuple[str, ...] = _key(_names, ())
    feature_version: int = _key(int, 1)
    shared: bool = _key(_flag, False)
    cache_keys: tuple[str, ...] = _key(_names, ())
    need_raw: bool = _key(_flag, False)
    feature_id: int | None = _key(int)
    input_optional: tuple[bool, ...] = _key(_flags, ())
    feature_group: tuple[str, ...] = _key(_names, ())

    @property
    def name(self) -> str:
        """The name without `fc_` and `f_` before its dashed parts, in lower case."""
        return normal_name(self.feature_name)


@dataclass(frozen=True)
class FeatureList:
    """A feature list, in the order of its text. Feeds, caches and features each have names that are unique."""

    columns: tuple[str, ...] = ()
    cache_columns: tuple[str, ...] = ()
    feeds: tuple[Feed, ...] = ()
    caches: tuple[Cache, ...] = ()
    features: tuple[Feature, ...] = ()

    def find(self, key: int | str) -> Feature | None:
        """The first feature of the slot `key`, or the one of the name `key`, which may lack `fc_` and `f_`."""
        if isinstance(key, int):
            return next(iter(self.of_slot(key)), None)
        parts = key.split("-")
        spellings = [key, f"f_{key}", f"fc_{key}"]
        spellings += ["-".join(prefix + part for part in parts) for prefix in ("fc_", "f_") if len(parts) > 1]
        return next((self._by_name[name] for name in spellings if name in self._by_name), None)

    def of_slot(self, slot: int) -> tuple[Feature, ...]:
        """The features that share the slot."""
        return self._by_slot.get(slot, ())

    def of_fids(self, fids: Iterable[int]) -> tuple[Feature, ...]:
        """The features that may hold one of the raw fids, in the order of the list.

        A fid does not tell its layout, so both are tried: features of fids v1 by its v1 slot, others by its v2 slot.

        Raises: ValueError naming a fid that no feature may hold.
        """
        found: dict[str, Feature] = {}
        for raw in fids:
            bits = raw % (1 << 64)
            slots = {1: bits >> fid.SIGNATURE_BITS_V1, 2: bits >> fid.SIGNATURE_BITS}
            features = [
                each
                for version, slot in slots.items()
                for each in self.of_slot(slot)
                if each.feature_version == version
            ]
            if not features:
                raise ValueError(f"fid {raw}: no feature has v1 slot {slots[1]} or v2 slot {slots[2]}")
            found.update((each.feature_name, each) for each in features)
        return tuple(each for each in self.features if each.feature_name in found)

    def slots(self) -> dict[str, int]:
        """{feature: slot} of the features that have one."""
        return {each.feature_name: each.slot for each in self.features if each.slot is not None}

    @cached_property
    def _by_name(self) -> dict[str, Feature]:
        return {feature.feature_name: feature for feature in self.features}

    @cached_property
    def _by_slot(self) -> dict[int, tuple[Feature, ...]]:
        by_slot: dict[int, tuple[Feature, ...]] = {}
        for feature in self.features:
            if feature.slot is not None:
                by_slot[feature.slot] = (*by_slot.get(feature.slot, ()), feature)
        return by_slot


def read_feature_list(path: str) -> FeatureList:
    """The feature list in a UTF-8 file; UserError names file, line and mistake."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("feature list", path, f"cannot be read ({error})", "name a text file in UTF-8") from error
    return parse_feature_list(text, path)


def parse_feature_list(text: str, source: str = "feature list") -> FeatureList:
    """The feature list in `text`; UserError names `source`, the line and the mistake."""
    if len(text) > MAX_BYTES:
        raise UserError(source, f"{len(text)} characters", "too large", f"stay within {MAX_BYTES}")
    parser = _Parser(source)
    for number, line in enumerate(text.splitlines(), 1):
        parser.add(number, line.strip())
    return parser.result()


def normal_name(name: str) -> str:
    """`name` without `fc_` and `f_` before its dashed parts, in lower case."""
    return _PREFIX.sub(r"\1", name).lower()


def slot_of_name(name: str, slots: Mapping[str, int] | None = None) -> int:
    """The slot of a feature: from `slots`, else the number in `slot_<n>` or `fc_slot_<n>`; KeyError for other names."""
    if slots and name in slots:
        return slots[name]
    match = _SLOT_NAME.fullmatch(name)
    if not match:
        raise KeyError(f"feature {name}: its slot is not known")
    return int(match[1])


_Line = TypeVar("_Line", Feed, Cache, Feature)


class _Parser:
    """Collects the feeds, caches and features of the lines of a text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._number = 0
        self._columns: dict[str, tuple[str, ...]] = {}
        self._named: dict[type, dict[str, Any]] = {Feed: {}, Cache: {}, Feature: {}}
        self._lines: dict[tuple[type, str], int] = {}

    def add(self, number: int, line: str) -> None:
        self._number = number
        if not line or line.startswith("#"):
            return
        if len(line) > MAX_LINE_CHARS:
            raise self._wrong(line[:40], "the line is too long", f"stay within {MAX_LINE_CHARS} characters")
        if columns := _COLUMNS_LINE.match(line):
            key = columns[1]
            self._columns[key] = self._columns.get(key, ()) + _names(columns[2])
        elif line.startswith("feed"):
            self._add(self._parse(Feed, line))
        elif line.startswith("cache"):
            self._add(self._parse(Cache, line))
        else:
            self._add(self._checked(self._parse(Feature, line)))

    def result(self) -> FeatureList:
        feeds, caches, features = (tuple(self._named[kind].values()) for kind in (Feed, Cache, Feature))
        columns, cache_columns = (self._columns.get(key, ()) for key in ("column_name", "cache_column"))
        return FeatureList(columns, cache_columns, feeds, caches, features)

    def _add(self, item: Feed | Cache | Feature) -> None:
        name = getattr(item, fields(item)[0].name)
        first = self._lines.setdefault((type(item), name), self._number)
        if first != self._number:
            raise self._wrong(name, f"line {first} has the same name", "give each its own")
        self._named[type(item)][name] = item

    def _parse(self, kind: type[_Line], line: str) -> _Line:
        readers = {each.name: each.metadata["read"] for each in fields(kind)}
        required = fields(kind)[0].name
        values: dict[str, Any] = {}
        for word, text in self._terms(line):
            key = _ALIASES.get(word, word)
            if key not in readers:
                raise self._wrong(word, f"unknown key of a {kind.__name__.lower()}", f"choose {', '.join(readers)}")
            if key in values:
                raise self._wrong(word, "is there twice", "give it once")
            try:
                values[key] = readers[key](text)
            except ValueError:
                raise self._wrong(f"{word}={text}", "no integer", "give a whole number") from None
        if not values.get(required):
            raise self._wrong(line[:40], f"no {required}", f"begin the line with {required}=")
        return kind(**values)

    def _terms(self, line: str) -> Iterator[tuple[str, str]]:
        """(key, value) of the terms of a line."""
        key, *rest = line.split("=")
        if not rest:
            raise self._wrong(line[:40], "no key=value", "separate terms by '; '")
        for part in rest[:-1]:
            words = part.rsplit(None, 1)
            if len(words) != 2:
                raise self._wrong(f"{key.strip()}={part}=", "no value and next key", "separate terms by '; '")
            yield key.strip(), words[0].strip().rstrip(",;").rstrip()
            key = words[1]
        yield key.strip(), rest[-1].strip().rstrip(",;").rstrip()

    def _checked(self, feature: Feature) -> Feature:
        largest = {1: fid.MAX_SLOT_V1, 2: fid.MAX_SLOT}
        if feature.feature_version not in largest:
            raise self._wrong(f"feature_version={feature.feature_version}", "unknown", "choose 1 or 2")
        limit = largest[feature.feature_version]
        if feature.slot is not None and not 0 <= feature.slot <= limit:
            problem = f"out of range for feature_version {feature.feature_version}"
            raise self._wrong(f"slot={feature.slot}", problem, f"choose 0..{limit}")
        return feature

    def _wrong(self, value: str, problem: str, remedy: str) -> UserError:
        return UserError(f"{self._source}:{self._number}", value, problem, remedy)


_ALIASES = {"cache_column": "cache_name"}
