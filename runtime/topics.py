"""Names of all Kafka topics, which no other module spells, and what writers and readers of them agree on."""

from dataclasses import dataclass

GUARD = "guard"
"""`held_by` of a ROLLBACK or RELEASE that a trainer's guard sends."""

NUMBER_LIMIT = 1 << 62
"""Epochs and sequences are below it: no trainer could go on from a higher one, and what it sends would count as old."""


@dataclass(frozen=True)
class Topics:
    """Topic names with one prefix: `prefix="eu."` gives `eu.events.impressions`."""

    prefix: str = ""

    @property
    def impressions(self) -> str:
        return f"{self.prefix}events.impressions"

    @property
    def actions(self) -> str:
        return f"{self.prefix}events.actions"

    @property
    def dead_letter(self) -> str:
        return f"{self.prefix}feed.dead-letter"

    @property
    def train_dead_letter(self) -> str:
        """Train blocks that a trainer refused, with reason and position."""
        return f"{self.prefix}train.dead-letter"

    @property
    def routed_actions(self) -> str:
        """Actions that did not join, each with the reason."""
        return f"{self.prefix}feed.routed-actions"

    @property
    def model_events(self) -> str:
        return f"{self.prefix}model.events"

    @property
    def serving_status(self) -> str:
        return f"{self.prefix}serving.status"

    def train(self, model: str) -> str:
        return f"{self.prefix}train.{model}"

    def deltas(self, model: str) -> str:
        return f"{self.prefix}model.deltas.{model}"

    def metrics(self, model: str) -> str:
        return f"{self.prefix}metrics.{model}"


def may_be_event_of(key: bytes | None, namespace: str, model: str) -> bool:
    """Whether a record of `model.events` with this key can be an event of the model; one without a key can be.

    All models share the topic, and parsing an event takes some 200 us: who reads it looks at keys first.
    """
    own = f"{namespace}/{model}".encode()
    return key is None or key == own or key.startswith(own + b"/")
