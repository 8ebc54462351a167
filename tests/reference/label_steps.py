"""Labels of one row, {field of the line id: value, "label": labels}, made anew; numbers as Python has them."""

from collections.abc import Sequence
from typing import Any

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch.record_batch import INVALID_LABEL
from tests.reference.actions import most_prior

Row = dict[str, Any]


def add_label(row: Row, config: pb.AddLabelConfig, draws: Sequence[float]) -> Row:
    labels = list(row["label"] or [])
    if labels and labels[0] <= 0:
        labels[0] = INVALID_LABEL
    for task, draw in zip(config.task_label_configs, draws, strict=True):
        labels.append(_task_label(row["actions"] or [], task, config.negative_value, draw))
    rate = config.new_sample_rate if config.HasField("new_sample_rate") else 1.0
    return row | {"label": labels, "sample_rate": rate}


def _task_label(actions: Sequence[int], task: Any, negative_value: float, draw: float) -> float:
    if any(action in task.pos_actions for action in actions):
        return 1.0
    if task.neg_actions and not any(action in task.neg_actions for action in actions):
        return INVALID_LABEL
    rate = task.sample_rate if task.HasField("sample_rate") else 1.0
    return negative_value if draw < rate else INVALID_LABEL


def scatter_label(row: Row, config: pb.ScatterLabelConfig) -> Row:
    labels = [INVALID_LABEL] * (max(config.channel_index.values()) + 1)
    channel = row["chnid"] or 0
    if channel in config.channel_index:
        labels[config.channel_index[channel]] = _first(row)
    return row | {"label": labels}


def multi_label_gen(row: Row, config: pb.MultiLabelGenConfig) -> Row:
    labels = [INVALID_LABEL] * (config.task_num or max(config.head_index.values()) + 1)
    value = _first(row)
    if not config.use_origin_label:
        action = most_prior(row["actions"], config.action_priority)
        positive = config.pos_label if config.HasField("pos_label") else 1.0
        value = positive if action in config.pos_actions else INVALID_LABEL
        if action in config.neg_actions:
            value = config.neg_label
    default = "" if config.head_field == "device_type" else 0
    head = str(row[config.head_field] if row[config.head_field] is not None else default)
    if head in config.head_index:
        labels[config.head_index[head]] = value
    return row | {"label": labels}


def fill_multi_rank_output(row: Row, config: pb.FillMultiRankOutputConfig) -> Row:
    if config.enable_draw_as_rank:
        rank = 1 if row["is_draw"] else 0
    elif config.enable_chnid_as_rank:
        rank = row["chnid"] if row["chnid"] == 1 else 2 * bool(row["chnid"])
    else:
        rank = min(row["rank"] or 0, (config.rank_num if config.HasField("rank_num") else 18) - 1)
    return row | {"label": [*(row["label"] or []), float(rank)]}


def add_action(row: Row, fulfilled: bool, action: int) -> Row:
    return row | {"actions": [*(row["actions"] or []), action] if fulfilled else row["actions"]}


def _first(row: Row) -> float:
    return row["label"][0] if row["label"] else INVALID_LABEL
