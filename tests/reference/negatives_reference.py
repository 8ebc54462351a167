"""Row-wise reference of the item pools and of generated negatives: one dictionary at a time."""

from dataclasses import dataclass, field
from typing import Any

from millrace.transforms.batch.record_batch import INVALID_LABEL
from tests.reference.rows_reference import uniform_of

Row = dict[str, Any]
_MASK = (1 << 64) - 1


@dataclass
class NaiveItem:
    key: int
    columns: Row
    pushed: int = 1
    drawn: int = 0


@dataclass
class NaivePools:
    """{channel: items, oldest first}; a channel's place in the dictionary is when it came to be."""

    start_num: int
    max_item_num: int
    pools: dict[int, list[NaiveItem]] = field(default_factory=dict)

    def push(self, channel: int, key: int, columns: Row) -> None:
        pool = self.pools.setdefault(channel, [])
        for item in pool:
            if item.key == key:
                item.pushed += 1
                return
        pool.append(NaiveItem(key, columns))
        if len(pool) > self.max_item_num:
            del pool[0]

    def draw(
        self, channel: int, key: int, random: int, number: int, easy_ratio: float, allow_own: bool
    ) -> tuple[NaiveItem, float] | None:
        """(item, recency); None when the pool has too few."""
        if len(self.pools) > 1 and (_random(random, number, 0) >> 11) * 2.0**-53 < easy_ratio:
            everywhere = [each for each, pool in self.pools.items() for _ in pool]
            channel = everywhere[_random(random, number, 1) * len(everywhere) >> 64]
        pool = self.pools.get(channel, [])
        if len(pool) <= self.start_num:
            return None
        choices = [i for i, item in enumerate(pool) if allow_own or item.key != key]
        if not choices:
            return None
        index = choices[_random(random, number, 2) * len(choices) >> 64]
        pool[index].drawn += 1
        return pool[index], (index + 1) / len(pool)


def negatives_of(rows: list[Row], pools: NaivePools, settings: dict[str, Any], seed: int, step: str) -> list[Row]:
    """The rows that GenerateNegatives makes of `rows`; `settings` are all fields of its configuration."""
    made = []
    for row in rows:
        source = (row["__SOURCE_PARTITION__"], row["__SOURCE_OFFSET__"], row["__SOURCE_ROW__"])
        key = _first(row.get(settings["index_feature"]), row["__ITEM_ID__"] or 0) & _MASK
        channel = _first(row.get(settings["channel_feature"]), 3) if settings["per_channel"] else 3
        positive = is_positive(row, settings)
        if channel != 0 and (positive or _negative_is_cached(row, settings, uniform_of(seed, f"{step}/pool", source))):
            columns = {name: row.get(name) for name in ["__ITEM_ID__", *settings["item_features"]]}
            pools.push(channel, key, columns)
        random = int(uniform_of(seed, f"{step}/items", source) * 2.0**53)
        negatives: list[Row] = []
        while positive and len(negatives) < settings["neg_num"]:
            easy_ratio = settings["easy_hard_ratio"] if settings["per_channel"] else 0.0
            drawn = pools.draw(channel, key, random, len(negatives), easy_ratio, settings["allow_own_item"])
            if drawn is None:
                break
            negatives.append(_negative(row, *drawn, len(negatives) + 1, settings))
        made += negatives
        if not settings["throw_origin"] and (positive or not settings["throw_origin_neg"]):
            real = settings["real_neg_instance_weight"]
            weight = 1.0 if positive or real <= 1e-5 else real
            made.append(row | {"__WEIGHT__": weight * _own_weight(row), "__SOURCE_ROW__": _copy_of(row, 0, settings)})
    return made


def is_positive(row: Row, settings: dict[str, Any]) -> bool:
    if settings["positive_actions"]:
        actions = row["__ACTIONS__"] or []
        if not actions:
            return False
        listed = [action for action in settings["action_priority"] if action in actions]
        return (listed[0] if listed else actions[0]) in settings["positive_actions"]
    labels = row["__LABEL__"] or []
    return len(labels) > settings["label_index"] and labels[settings["label_index"]] == settings["positive_label"]


def weight_of(neg_num: int, recency: float, drawn: int, decay: float) -> float:
    return 1 + neg_num * recency**decay * (1 / drawn)


def _negative_is_cached(row: Row, settings: dict[str, Any], chance: float) -> bool:
    if settings["cache_only_pos"] and not set(row["__ACTIONS__"] or []) & set(settings["cache_negative_actions"]):
        return False
    share = settings["origin_neg_in_pool_proba"]
    return share >= 1.0 or chance < share


def _negative(row: Row, item: NaiveItem, recency: float, copy: int, settings: dict[str, Any]) -> Row:
    labels = list(row["__LABEL__"] or [])
    labels += [INVALID_LABEL] * (settings["label_index"] + 1 - len(labels))
    labels[settings["label_index"]] = settings["negative_label"]
    weight = 1.0
    if settings["sampled_neg_instance_weight"] > 1e-5:
        weight = settings["sampled_neg_instance_weight"]
    elif settings["unbias_sampled_neg"]:
        weight = weight_of(settings["neg_num"], recency, item.drawn, settings["neg_sample_declay_factor"])
    weight *= _own_weight(row)
    overrides = {"__LABEL__": labels, "__WEIGHT__": weight, "__SOURCE_ROW__": _copy_of(row, copy, settings)}
    if settings["negative_action"] is not None:
        overrides["__ACTIONS__"] = [settings["negative_action"]]
    return row | item.columns | overrides


def _own_weight(row: Row) -> float:
    return 1.0 if row["__WEIGHT__"] is None else float(row["__WEIGHT__"])


def _copy_of(row: Row, copy: int, settings: dict[str, Any]) -> int:
    before, index = divmod(row["__SOURCE_ROW__"], 64)
    return index + 64 * (before * (settings["neg_num"] + 1) + copy)


def _first(values: list[int] | int | None, default: int) -> int:
    if isinstance(values, int):
        return values
    return values[0] if values else default


def _random(row: int, number: int, purpose: int) -> int:
    value = (row + (number * 3 + purpose + 1) * 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
