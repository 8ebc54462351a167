"""docs/events.md describes the events that the code takes, transforms/README.md the batches that it makes of them."""

import json
import re
from pathlib import Path

import pyarrow as pa

from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed import events
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.join import join_bounded
from millrace.transforms.feed.train_rows import rows_to_train_batch

_ROOT = Path(__file__).resolve().parents[2]
_README = (_ROOT / "transforms" / "README.md").read_text("utf-8")
_EVENTS = (_ROOT / "docs" / "events.md").read_text("utf-8")
_NOW = 1_764_000_001_000


def _table(page: str, header: str) -> list[list[str]]:
    """Cells of the rows below the line that begins with `header`, without back quotes."""
    lines = [*page.split(header, 1)[1].splitlines()[2:], ""]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in lines[: lines.index("")]]


def _raw(topic: str, value: bytes) -> pa.RecordBatch:
    return raw_block(topic, [value], 0, [5], _NOW)


def _examples() -> list[bytes]:
    found = [example.encode() for example in re.findall(r"^    (\{.*?\})$", _EVENTS, re.DOTALL | re.MULTILINE)]
    assert all(json.loads(example) for example in found)
    return found


def test_the_documented_events_give_the_documented_batch() -> None:
    config = FeedConfig(
        "m",
        (FidFeature("user", 1, "user_id"), FidFeature("device", 2, "context.device")),
        (LabelRule("click", ("click",)),),
    )
    impression, action = _examples()
    impressions, dead = events.decode_impressions(_raw("i", impression), config.context_fields(), _NOW)
    actions, dead_actions = events.decode_actions(_raw("a", action), _NOW)
    assert dead.num_rows == dead_actions.num_rows == 0
    batch, _ = rows_to_train_batch(join_bounded(impressions, actions, config)[0], config)
    train_check.validate_train_batch(batch, ["user", "device"], heads=1)
    documented = [(name, kind) for name, kind, _ in _table(_README, "| Column |")]
    assert documented == [
        (field.name, str(field.type)) for field in batch.schema if not record_batch.is_fid_field(field)
    ]
    assert batch.schema.field("user").metadata == {b"millrace.kind": b"fid"}
    assert f"`{batch.schema.field('user').type}`" in _README
    assert dict(zip(batch["__ITEM_ID__"].to_pylist(), batch["__LABEL__"].to_pylist(), strict=True)) == {
        3: [0.0],
        9: [1.0],
        2: [0.0],
    }


def test_every_reason_is_documented() -> None:
    named = {name.strip(" `") for row in _table(_EVENTS, "| Reason |") for name in row[0].split(",")}
    assert named == {reason.value for reason in Reason}
