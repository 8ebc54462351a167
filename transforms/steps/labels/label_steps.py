"""Steps that make and change labels and actions."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id
from millrace.transforms.batch.action_column import append_action, most_prior, positions_in
from millrace.transforms.batch.label_column import (
    TaskLabel,
    append_labels,
    label_at,
    label_column,
    one_label,
    set_label_at,
    task_label,
    with_labels,
)
from millrace.transforms.batch.list_columns import lengths
from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.steps.filters.comparisons import MEMBER_OPS, ORDER_OPS
from millrace.transforms.steps.filters.filters import FilterByValue
from millrace.transforms.steps.labels.label_arithmetic import (
    NORMALIZATIONS,
    bound_labels,
    normalize_labels,
    raise_labels,
)
from millrace.transforms.steps.step import Counts, Step, StepContext, check_priority

MAX_LABELS = 4096
"""Most labels that a step may give a row: beyond any number of heads, and few enough for a row to stay small."""

_ACTION_OPS = (*ORDER_OPS, *MEMBER_OPS)
_DIVIDING = (
    pb.LabelNormalizationConfig.SCALE,
    pb.LabelNormalizationConfig.SCALE2INT,
    pb.LabelNormalizationConfig.SCALELOG,
)


class AddAction(Step):
    """Appends an action to rows by an operation on a field of the line id.

    Fields and operands are those of `filter_by_value`; a field that holds a list is refused. The action is appended
    even if the row has it already.
    """

    counters = {"actions_added": "rows that got the action"}
    example = "add_action: {field_name: read_count, op: ge, int_operand: [3], action: 2}"

    def __init__(self, config: pb.AddActionConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if line_id.check_field(config.field_name, self.field("field_name")).repeated:
            raise self.wrong("field_name", config.field_name, "the field holds a list", "choose a field of one value")
        if config.op not in _ACTION_OPS:
            raise self.wrong("op", config.op, "not an operation of add_action", f"choose {', '.join(_ACTION_OPS)}")
        condition = pb.FilterByValueConfig(
            field_name=config.field_name,
            op=config.op,
            float_operand=config.float_operand,
            int_operand=config.int_operand,
            string_operand=config.string_operand,
        )
        self._condition = FilterByValue(condition, context)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        rows = self._condition.keep(batch)
        counts["actions_added"] += int(np.count_nonzero(rows))
        actions = append_action(line_id.column(batch, "actions"), rows, self.config.action)
        return line_id.set_column(batch, "actions", actions)


class AddLabel(Step):
    """Appends one label per task, by the row's actions.

    A row with a positive action of the task gets 1. A row with a negative action, or any other row when the task names
    no negative actions, gets `negative_value` with the probability `sample_rate` of the task. All others get
    INVALID_LABEL. The first label that a row had before becomes INVALID_LABEL unless it is positive. The sample rate of
    every row becomes `new_sample_rate`.
    """

    example = "add_label: {task_label_configs: [{pos_actions: [1, 2], neg_actions: [3]}], negative_value: 0}"

    def __init__(self, config: pb.AddLabelConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self._tasks = [self._task(index) for index in range(len(config.task_label_configs))]
        if not self._tasks:
            raise self.wrong("task_label_configs", "", "no tasks", "give one or more")
        self._new_rate = config.new_sample_rate if config.HasField("new_sample_rate") else 1.0
        if not 0 < self._new_rate <= 1:
            raise self.wrong("new_sample_rate", self._new_rate, "not a sampling rate", "choose more than 0, up to 1")

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        labels = label_column(batch)
        first, has_label = label_at(labels, 0)
        labels = set_label_at(labels, 0, has_label & (first <= 0), INVALID_LABEL)
        batch = with_labels(batch, append_labels(labels, self._labels(batch)))
        return line_id.set_column(batch, "sample_rate", np.full(batch.num_rows, self._new_rate, np.float32))

    def _labels(self, batch: pa.RecordBatch) -> np.ndarray:
        """float32 [rows, tasks]: the label of each task."""
        actions = line_id.column(batch, "actions")
        labels = np.empty((batch.num_rows, len(self._tasks)), np.float32)
        for index, task in enumerate(self._tasks):
            drawn = self.draw(batch, f"task{index}") if task.sample_rate < 1 else np.zeros(batch.num_rows)
            labels[:, index] = task_label(actions, task, self.config.negative_value, drawn)
        return labels

    def _task(self, index: int) -> TaskLabel:
        task, name = self.config.task_label_configs[index], f"task_label_configs[{index}]"
        if not task.pos_actions:
            raise self.wrong(f"{name}.pos_actions", "", "no actions", "give one or more")
        both = sorted(set(task.pos_actions) & set(task.neg_actions))
        if both:
            raise self.wrong(f"{name}.neg_actions", both[0], "the action is positive too", "name it once")
        rate = task.sample_rate if task.HasField("sample_rate") else 1.0
        if not 0 <= rate <= 1:
            raise self.wrong(f"{name}.sample_rate", rate, "not a sampling rate", "choose 0 to 1")
        return TaskLabel(tuple(task.pos_actions), tuple(task.neg_actions), rate)


class ScatterLabel(Step):
    """Moves the first label of a row to the position of the row's channel.

    Every row gets as many labels as the largest position needs. All of its other labels are INVALID_LABEL, and so are
    all labels of a row whose channel has no position.
    """

    counters = {"rows_without_channel": "rows whose channel has no position"}
    example = "scatter_label: {channel_index: {100: 3, 200: 1, 300: 4}}"

    def __init__(self, config: pb.ScatterLabelConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self._count = _label_count(self, "channel_index", config.channel_index.values())
        self._channels = pa.array(config.channel_index.keys(), pa.int64())
        self._positions = pa.array(config.channel_index.values(), pa.int32())

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        channels = line_id.column(batch, "chnid")
        positions = self._positions.take(pc.index_in(channels, value_set=self._channels))
        counts["rows_without_channel"] += positions.null_count
        values, _ = label_at(label_column(batch), 0)
        return with_labels(batch, one_label(values, positions, self._count))


class MultiLabelGen(Step):
    """Gives a row a label for the one head that a field of the row names.

    All other heads get INVALID_LABEL. With `use_origin_label` the label is the row's first label. Otherwise it follows
    from the row's most prior action, which is the first of `action_priority` that the row has, else the row's first
    action: `pos_label` for one of `pos_actions`, `neg_label` for one of `neg_actions`, else INVALID_LABEL.
    """

    counters = {"rows_without_head": "rows whose field names no head"}
    example = "multi_label_gen: {head_field: device_type, head_index: {ios: 0, android: 1}, pos_actions: [2]}"

    def __init__(self, config: pb.MultiLabelGenConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self._heads = self._head_values()
        self._positions = pa.array(config.head_index.values(), pa.int32())
        least = _label_count(self, "head_index", config.head_index.values())
        self._count = config.task_num or least
        if not least <= self._count <= MAX_LABELS:
            raise self.wrong("task_num", config.task_num, "out of range", f"choose {least}..{MAX_LABELS}")
        self._check_actions()
        self._positive = config.pos_label if config.HasField("pos_label") else 1.0

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        field = line_id.column(batch, self.config.head_field)
        positions = self._positions.take(pc.index_in(field, value_set=self._heads))
        counts["rows_without_head"] += positions.null_count
        values = label_at(label_column(batch), 0)[0] if self.config.use_origin_label else self._by_action(batch)
        return with_labels(batch, one_label(values, positions, self._count))

    def _by_action(self, batch: pa.RecordBatch) -> np.ndarray:
        action, none = most_prior(line_id.column(batch, "actions"), self.config.action_priority)
        labelled = [*self.config.pos_actions, *self.config.neg_actions]
        positives = len(self.config.pos_actions)
        values = np.full(len(labelled) + 1, self.config.neg_label, np.float32)
        values[:positives], values[-1] = self._positive, INVALID_LABEL
        return np.where(none, np.float32(INVALID_LABEL), values[positions_in(labelled, action)])

    def _head_values(self) -> pa.Array:
        """The keys of `head_index` as the field holds them."""
        field = line_id.check_field(self.config.head_field, self.field("head_field"))
        if pa.types.is_string(field.type):
            return pa.array(self.config.head_index.keys(), pa.string())
        if not pa.types.is_integer(field.type):
            raise self.wrong("head_field", field.name, "neither an integer nor a string", "choose such a field")
        return pa.array([self._head_number(key, field.type) for key in self.config.head_index], field.type)

    def _head_number(self, key: str, type: pa.DataType) -> int:
        limit = 1 << (type.bit_width - 1)
        number = int(key) if key.removeprefix("-").isdecimal() else limit
        if not -limit <= number < limit or str(number) != key:
            raise self.wrong(f"head_index.{key}", self.config.head_index[key], f"not an {type}", "write it in decimal")
        return number

    def _check_actions(self) -> None:
        config = self.config
        both = sorted(set(config.pos_actions) & set(config.neg_actions))
        if both:
            raise self.wrong("neg_actions", both[0], "the action is positive too", "name it once")
        if config.use_origin_label and (config.pos_actions or config.neg_actions):
            raise self.wrong("use_origin_label", True, "actions are given as well", "give one of them")
        if not config.use_origin_label and not config.pos_actions:
            raise self.wrong("pos_actions", "", "no actions", "give some, or set use_origin_label")
        check_priority(self, config.action_priority)


class LabelUpperBound(Step):
    """Lowers label i of a row to `bounds[i]` where it is above; a row with fewer labels than bounds stays as it is."""

    counters = {"rows_short": "rows with fewer labels than bounds"}
    example = "label_upper_bound: {bounds: [1, 3600]}"

    def __init__(self, config: pb.LabelUpperBoundConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if not config.bounds:
            raise self.wrong("bounds", "", "no bounds", "give one or more")

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        labels = label_column(batch)
        counts["rows_short"] += int(np.count_nonzero(lengths(labels) < len(self.config.bounds)))
        return with_labels(batch, bound_labels(labels, self.config.bounds))


class LabelNormalization(Step):
    """Changes every label x by the `operations`, one after the other.

    `log` ln(max(x + value, 0)), `scale` x / value, `scale2int` x / value without its fraction, `pow` (x + 1) ^ value,
    `repow` x ^ value where x > 0, else 0, `scalelog` ln(max(x / value + 1, 0)).
    """

    counters = {"labels_not_finite": "labels that became infinite or NaN"}
    example = "label_normalization: {operations: [{method: scale, value: 60}, {method: scalelog, value: 1}]}"

    def __init__(self, config: pb.LabelNormalizationConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if not config.operations:
            raise self.wrong("operations", "", "no operations", "give one or more")
        for index, operation in enumerate(config.operations):
            if operation.method not in NORMALIZATIONS:
                methods = ", ".join(
                    pb.LabelNormalizationConfig.Method.Name(method).lower() for method in NORMALIZATIONS
                )
                raise self.wrong(f"operations[{index}].method", operation.method, "unknown", f"choose {methods}")
            if operation.method in _DIVIDING and not operation.value:
                raise self.wrong(f"operations[{index}].value", 0, "labels are divided by it", "choose another value")
        self._operations = [(operation.method, operation.value) for operation in config.operations]

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        labels, lost = normalize_labels(label_column(batch), self._operations)
        counts["labels_not_finite"] += lost
        return with_labels(batch, labels)


class UseFieldAsLabel(Step):
    """Raises each label of a row to the value of a numeric field of the row where it is below.

    With `overwrite_invalid_value` a field of `label_threshold` or more counts as 0.
    """

    example = "use_field_as_label: {field_name: video_play_time, overwrite_invalid_value: true, label_threshold: 7200}"

    def __init__(self, config: pb.UseFieldAsLabelConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        field = line_id.check_field(config.field_name, self.field("field_name"))
        if not pa.types.is_integer(field.type) and not pa.types.is_floating(field.type):
            raise self.wrong("field_name", field.name, "not a number", "choose a field of one number")
        self._threshold = config.label_threshold if config.HasField("label_threshold") else 7200.0

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        values = line_id.column(batch, self.config.field_name).to_numpy(zero_copy_only=False).astype(np.float32)
        if self.config.overwrite_invalid_value:
            values = np.where(values >= np.float32(self._threshold), np.float32(0), values)
        return with_labels(batch, raise_labels(label_column(batch), values))


class FillMultiRankOutput(Step):
    """Appends one label, the rank of the row, by the first of these settings that is set.

    `enable_draw_as_rank`: 1 where `is_draw` is true, else 0. `enable_chnid_as_rank`: the channel if it is 0 or 1, else
    2. `enable_lineid_rank_as_rank`: the field `rank`, at most `rank_num` - 1.
    """

    example = "fill_multi_rank_output: {enable_lineid_rank_as_rank: true, rank_num: 18}"

    def __init__(self, config: pb.FillMultiRankOutputConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if not (config.enable_draw_as_rank or config.enable_chnid_as_rank or config.enable_lineid_rank_as_rank):
            raise self.wrong("enable_lineid_rank_as_rank", False, "no rank is enabled", "enable one")
        self._rank_num = config.rank_num if config.HasField("rank_num") else 18
        if self._rank_num < 1:
            raise self.wrong("rank_num", self._rank_num, "no rank is left", "choose 1 or more")

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        ranks = self._ranks(batch).astype(np.float32)
        return with_labels(batch, append_labels(label_column(batch), ranks[:, None]))

    def _ranks(self, batch: pa.RecordBatch) -> np.ndarray:
        """[rows]: the rank of each row."""
        if self.config.enable_draw_as_rank:
            return line_id.column(batch, "is_draw").to_numpy(zero_copy_only=False)
        if self.config.enable_chnid_as_rank:
            channels = line_id.column(batch, "chnid").to_numpy()
            return np.where((channels == 0) | (channels == 1), channels, 2)
        return np.minimum(line_id.column(batch, "rank").to_numpy(), self._rank_num - 1)


def _label_count(step: Step, name: str, positions: Iterable[int]) -> int:
    """Labels that a row needs for these positions; UserError when there are none or one is out of range."""
    given = list(positions)
    if not given:
        raise step.wrong(name, "", "no positions", "give one or more")
    for position in given:
        if not 0 <= position < MAX_LABELS:
            raise step.wrong(name, position, "position out of range", f"choose 0..{MAX_LABELS - 1}")
    return max(given) + 1
