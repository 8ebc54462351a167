"""Row-wise reference of the join: one dictionary entry a row, one event at a time."""

from dataclasses import dataclass, field
from typing import Any

from transforms.join import JoinCounters


@dataclass
class _Known:
    row: dict[str, Any]
    close_at: int
    state: str = "pending"
    action: str | None = None


@dataclass
class JoinReference:
    """Takes lists of dictionaries; returns (row, action or None) pairs that leave."""

    window_ms: int
    skew_ms: int
    label_actions: frozenset[str]
    known: dict[tuple[str, int], _Known] = field(default_factory=dict)
    early: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    counters: JoinCounters = field(default_factory=JoinCounters)

    def add_impressions(self, rows: list[dict[str, Any]], now_ms: int) -> list[tuple[dict[str, Any], Any]]:
        fresh = []
        for row in rows:
            self.counters.impression_rows += 1
            key = (row["request_id"], row["item_id"])
            if key in self.known:
                self.counters.duplicate_impressions += 1
            else:
                self.known[key] = _Known(row, now_ms + self.window_ms)
                fresh.append(key)
        found = [action for _, action in self.early if _key(action) in fresh]
        self.early = [(at, action) for at, action in self.early if _key(action) not in fresh]
        return self._apply(found)

    def add_actions(self, actions: list[dict[str, Any]], now_ms: int) -> list[tuple[dict[str, Any], Any]]:
        found = []
        for action in actions:
            self.counters.actions += 1
            if action["action"] not in self.label_actions:
                self.counters.ignored_actions += 1
            elif _key(action) in self.known:
                found.append(action)
            else:
                self.early.append((now_ms + self.window_ms, action))
        return self._apply(found)

    def close_expired(self, now_ms: int) -> list[tuple[dict[str, Any], Any]]:
        left = []
        for known in self.known.values():
            if known.close_at <= now_ms and known.state == "pending":
                known.state = "closed"
                self.counters.negatives += 1
                left.append((known.row, None))
        self.known = {key: known for key, known in self.known.items() if known.close_at + self.window_ms > now_ms}
        self.counters.orphan_actions += sum(at <= now_ms for at, _ in self.early)
        self.early = [(at, action) for at, action in self.early if at > now_ms]
        return left

    def _apply(self, actions: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Any]]:
        left = []
        for action in sorted(actions, key=_first_first):
            known = self.known[_key(action)]
            delay = action["timestamp_ms"] - known.row["timestamp_ms"]
            if known.state == "closed" or delay > self.window_ms:
                self.counters.late_actions += 1
            elif delay < -self.skew_ms:
                self.counters.actions_before_impression += 1
            elif known.state == "pending":
                known.state, known.action = "emitted", action["action"]
                self.counters.positives += 1
                left.append((known.row, action))
            elif known.action == action["action"]:
                self.counters.duplicate_actions += 1
            else:
                self.counters.superseded_actions += 1
        return left


def _key(event: dict[str, Any]) -> tuple[str, int]:
    return event["request_id"], event["item_id"]


def _first_first(action: dict[str, Any]) -> tuple[int, str, bool, float]:
    value = action["value"]
    return action["timestamp_ms"], action["action"], value is None, value or 0.0
