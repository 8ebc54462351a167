"""Reads what the gate asks of an export from its manifest and from the event that announced it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.serving.agent.gate import ExportFacts
from millrace.serving.server.export_manifest import MANIFEST_PATH


def read_facts(folder: Path) -> ExportFacts | None:
    """Facts from the manifest of the export in `folder`; None when it cannot be read, which the server will tell."""
    try:
        manifest = json.loads((folder / MANIFEST_PATH).read_bytes())
        signature = manifest.get("signature") or {}
        return ExportFacts(
            quality=_numbers(manifest.get("quality") or {}) | _numbers({"global_step": manifest.get("global_step")}),
            inputs=dict(signature["inputs"]) if signature.get("inputs") else None,
            outputs=tuple(signature.get("outputs") or ()),
            cut_at_ms=int(manifest.get("cut_at_ms") or manifest.get("created_at_ms") or 0),
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def with_event(facts: ExportFacts | None, event: ModelEvent) -> ExportFacts:
    """`facts`, completed by the event that announced the version."""
    facts = facts or ExportFacts()
    steps = max(event.global_step, facts.quality.get("global_step", 0))
    return ExportFacts(
        quality={**facts.quality, **event.quality, "global_step": float(steps)},
        inputs=facts.inputs,
        outputs=facts.outputs,
        cut_at_ms=facts.cut_at_ms or event.created_at_ms,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
