"""Row-wise reference of the join: one dictionary entry per row, one event at a time."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from millrace.transforms.feed.join import JoinCounters


class Left(NamedTuple):
    """A row that leaves at `at`, with its action or without one, as a copy of its source row."""

    row: dict[str, Any]
    action: dict[str, Any] | None
    copy: int
    at: int

    def plain(self) -> dict[str, Any]:
        """The row as `millrace.transforms.feed.join.joined_schema` has it."""
        action = self.action
        return self.row | {
            "__SOURCE_ROW__": self.row["__SOURCE_ROW__"] + 64 * self.copy,
            "event_time_ms": max(self.row["timestamp_ms"], action["timestamp_ms"] if action else 0),
            "actions": [action["action"]] if action else [],
            "action_values": [action["value"]] if action else [],
        }


@dataclass
class _Known:
    row: dict[str, Any]
    close_at: int
    state: str = "pending"
    action: str | None = None


@dataclass
class JoinReference:
    """Takes lists of dictionaries; returns what leaves. Actions that do not join go to `routed`, with the reason."""

    window_ms: int
    skew_ms: int
    label_actions: frozenset[str]
    lateness_ms: int
    early_negatives: bool = False
    known: dict[tuple[str, int], _Known] = field(default_factory=dict)
    early: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    counters: JoinCounters = field(default_factory=JoinCounters)
    routed: list[dict[str, Any]] = field(default_factory=list)

    def add_impressions(self, rows: list[dict[str, Any]], now_ms: int) -> list[Left]:
        left = []
        fresh = []
        for row in rows:
            self.counters.impression_rows += 1
            if _key(row) in self.known:
                self.counters.duplicate_impressions += 1
                continue
            self.known[_key(row)] = _Known(row, now_ms + self.window_ms)
            fresh.append(_key(row))
            if self.early_negatives:
                self.counters.early_negatives += 1
                left.append(Left(row, None, 0, now_ms))
        found = [action for _, action in self.early if _key(action) in fresh]
        self.early = [(at, action) for at, action in self.early if _key(action) not in fresh]
        return left + self._apply(found, now_ms)

    def add_actions(self, actions: list[dict[str, Any]], now_ms: int) -> list[Left]:
        found = []
        for action in actions:
            self.counters.actions += 1
            if action["action"] not in self.label_actions:
                self._end(action, "ignored")
            elif _key(action) in self.known:
                found.append(action)
            else:
                self.early.append((now_ms + self._patience_ms, action))
        return self._apply(found, now_ms)

    def close_expired(self, now_ms: int) -> list[Left]:
        left = []
        for known in self.known.values():
            if known.close_at <= now_ms and known.state == "pending":
                known.state = "closed"
                self.counters.negatives += 1
                if not self.early_negatives:
                    left.append(Left(known.row, None, 0, known.close_at))
        self.known = {key: known for key, known in self.known.items() if known.close_at + self.lateness_ms > now_ms}
        for at, action in self.early:
            if at <= now_ms:
                self._end(action, "orphan")
        self.early = [(at, action) for at, action in self.early if at > now_ms]
        return left

    @property
    def _patience_ms(self) -> int:
        return max(self.window_ms, self.skew_ms)

    def _apply(self, actions: list[dict[str, Any]], now_ms: int) -> list[Left]:
        left = []
        for action in sorted(actions, key=_first_first):
            known = self.known[_key(action)]
            delay = action["timestamp_ms"] - known.row["timestamp_ms"]
            if delay > self.window_ms + self.lateness_ms or delay < -self._patience_ms:
                self._end(action, "orphan")
            elif known.state == "closed" or delay > self.window_ms:
                self._end(action, "late")
            elif delay < -self.skew_ms:
                self._end(action, "before_impression")
            elif known.state == "pending":
                known.state, known.action = "emitted", action["action"]
                self.counters.positives += 1
                left.append(Left(known.row, action, int(self.early_negatives), now_ms))
            else:
                self._end(action, "duplicate" if known.action == action["action"] else "superseded")
        return left

    def _end(self, action: dict[str, Any], reason: str) -> None:
        name = "actions_before_impression" if reason == "before_impression" else f"{reason}_actions"
        setattr(self.counters, name, getattr(self.counters, name) + 1)
        self.routed.append(action | {"reason": reason})


def _key(event: dict[str, Any]) -> tuple[str, int]:
    return event["request_id"], event["item_id"]


def _first_first(action: dict[str, Any]) -> tuple[int, str, bool, float]:
    value = action["value"]
    return action["timestamp_ms"], action["action"], value is None, value or 0.0
