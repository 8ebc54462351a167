"""Whether one row stays when negatives are dropped."""

from collections.abc import Sequence

from millrace.protos import transform_config_pb2 as pb
from tests.reference.actions import most_prior


def keeps(
    labels: Sequence[float] | None, actions: Sequence[int] | None, draw: float, config: pb.NegativeSampleConfig
) -> bool:
    if len(labels or []) <= config.label_index or labels[config.label_index] >= config.threshold:
        return True
    rates = {each.action: each.rate for each in config.per_action_drop_rate}
    action = most_prior(actions, config.action_priority) if rates else None
    return draw >= rates.get(action, config.drop_rate)
