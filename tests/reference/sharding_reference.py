"""Row-wise reference of sharding: plain lists, one fid at a time, each output from its definition."""

from dataclasses import dataclass, field

SHARED_BIT = 1 << 31


@dataclass
class Feature:
    """A feature of a batch: the fids v2 of each entry; None when the batch lacks it."""

    table: str
    dims: int
    rows: list[list[int]] | None
    shared: bool = False


@dataclass
class Sharded:
    """The outputs, by (table, shard) where there is one of each."""

    fid_lists: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    row_splits: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    emb_size: dict[tuple[str, int], int] = field(default_factory=dict)
    fid_offset: list[int] = field(default_factory=list)
    feature_offset: list[int] = field(default_factory=list)
    nfl_offset: list[int] = field(default_factory=list)


def shard(features: dict[str, Feature], ps_num: int, unique: bool, version: int) -> Sharded:
    tables = sorted({feature.table for feature in features.values()})
    lists = {name: _lists(features[name], ps_num, unique) for name in sorted(features)}
    out = Sharded()
    for name in sorted(features):
        feature = features[name]
        entries, shared = _entries(feature)
        out.nfl_offset.append(len(out.feature_offset) + (SHARED_BIT if shared else 0))
        seen: list[int] = [0] * ps_num
        for entry in entries:
            out.feature_offset.append(len(out.fid_offset))
            for fid in entry:
                ps = fid % ps_num
                index = lists[name][ps].index(fid) if unique else seen[ps]
                seen[ps] += 1
                high, low = _offset(features, lists, tables, name, ps, index, ps_num, version)
                out.fid_offset.append(high << 32 | low)
    out.feature_offset.append(len(out.fid_offset))
    out.nfl_offset.append(len(out.feature_offset))
    for table in tables:
        members = [name for name in sorted(features) if features[name].table == table]
        for ps in range(ps_num):
            out.fid_lists[table, ps] = [fid for name in members for fid in lists[name][ps]]
            ends = [sum(len(lists[name][ps]) for name in members[: i + 1]) for i in range(len(members))]
            out.row_splits[table, ps] = [0, *ends]
            out.emb_size[table, ps] = sum(len(lists[name][ps]) * features[name].dims for name in members)
    return out


def _entries(feature: Feature) -> tuple[list[list[int]], bool]:
    if feature.rows is None:
        return [[]], True
    return (feature.rows[:1], True) if feature.shared else (feature.rows, False)


def _lists(feature: Feature, ps_num: int, unique: bool) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(ps_num)]
    for entry in _entries(feature)[0]:
        for fid in entry:
            if not unique or fid not in lists[fid % ps_num]:
                lists[fid % ps_num].append(fid)
    return lists


def _offset(
    features: dict[str, Feature], lists: dict[str, list[list[int]]], tables: list[str], name: str, ps: int, index: int,
    ps_num: int, version: int,
) -> tuple[int, int]:  # fmt: skip
    table = tables.index(features[name].table)
    members = [other for other in sorted(features) if features[other].table == features[name].table]
    earlier = members[: members.index(name)]
    if version == 1:
        return table * ps_num + ps, sum(len(lists[other][ps]) for other in earlier) + index
    if version == 2:
        counts = [sum(feature.table == other for feature in features.values()) for other in tables]
        base = sum(max(count, 1) * ps_num for count in counts[:table])
        return base + ps * counts[table] + len(earlier), index
    floats = sum(len(lists[other][ps]) * features[other].dims for other in earlier)
    return table * ps_num + ps, floats + index * features[name].dims
