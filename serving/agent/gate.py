"""The gate: what an announced version must meet before it is put in service by itself."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.runtime.errors import UserError

NAMES = ("rows", "auc", "log_loss", "calibration", "global_step")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_TERM = re.compile(r"\s*([A-Za-z_.]*)\s*([<>=!]*)\s*(.*?)\s*")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SIGNATURE = {"compatible": True, "any": False}
_HELP = (
    f"write NAME>NUMBER (names: {', '.join(NAMES)}; operators: {' '.join(_OPERATORS)}), signature=compatible or "
    "signature=any, separated by commas, or none"
)


@dataclass(frozen=True)
class ExportFacts:
    """What is known of an exported version without loading it.

    Attributes:
      quality: {name: value}, names as in NAMES.
      inputs, outputs: of its signature, {name: dtype} and names; None where its manifest does not say.
      cut_at_ms: Unix milliseconds of its cut; 0 if unknown.
    """

    quality: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, Any] | None = None
    outputs: tuple[str, ...] = ()
    cut_at_ms: int = 0


@dataclass(frozen=True)
class ExportGate:
    """Requirements on a version.

    Attributes:
      bounds: (name, operator, number).
      is_compatible: its signature must fit the clients of the version in service.
      has_learned: it must have learned at least one row.
    """

    bounds: tuple[tuple[str, str, float], ...] = ()
    is_compatible: bool = True
    has_learned: bool = True

    def objection(self, version: ExportFacts, in_service: ExportFacts | None) -> str:
        """Why `version` must not go in service by itself; empty when it may.

        Args:
          in_service: the version whose clients run; None when there is none yet.
        """
        for name, sign, bound in self.bounds:
            value = version.quality.get(name)
            if value is None or math.isnan(value):
                return f"{name}{sign}{bound:g} is required, and its {name} is not known"
            if not _OPERATORS[sign](value, bound):
                return f"{name}{sign}{bound:g} is required, and its {name} is {value:g}"
        if self.has_learned and not _rows(version.quality) > 0:
            return "it has learned nothing: its rows are 0"
        return _misfit(version, in_service) if self.is_compatible and in_service else ""


def parse_gate(text: str | None) -> ExportGate:
    """The gate that --require says; without it a version must have learned something and fit the running clients.

    Raises:
      UserError: naming the position of what is wrong, and the choices.
    """
    if text is None or not text.strip():
        return ExportGate()
    if text.strip() == "none":
        return ExportGate(is_compatible=False, has_learned=False)
    bounds, is_compatible, position = [], True, 0
    for term in text.split(","):
        match = _TERM.fullmatch(term)
        assert match  # every part may be empty
        if match[1] == "signature":
            is_compatible = _signature(text, position, match)
        else:
            bounds.append(_bound(text, position, match))
        position += len(term) + 1
    return ExportGate(tuple(bounds), is_compatible, "rows" not in {name for name, _, _ in bounds})


def _signature(text: str, position: int, match: re.Match[str]) -> bool:
    if match[2] != "=":
        raise _wrong(text, position + match.start(2), match[2] or match[3], "not '='")
    if match[3] not in _SIGNATURE:
        raise _wrong(text, position + match.start(3), match[3], f"not one of {', '.join(_SIGNATURE)}")
    return _SIGNATURE[match[3]]


def _bound(text: str, position: int, match: re.Match[str]) -> tuple[str, str, float]:
    if match[1] not in NAMES:
        raise _wrong(text, position + match.start(1), match[1] or match[0].strip(), "not a name")
    if match[2] not in _OPERATORS:
        raise _wrong(text, position + match.start(2), match[2] or match[3], "not an operator")
    if not _NUMBER.fullmatch(match[3]):
        raise _wrong(text, position + match.start(3), match[3], "not a number")
    return match[1], match[2], float(match[3])


def _wrong(text: str, at: int, what: str, problem: str) -> UserError:
    return UserError("--require", text, f"at character {at + 1}, '{what}' is {problem}", _HELP)


def _rows(quality: Mapping[str, float]) -> float:
    """Rows learned, or steps where an older trainer told no rows."""
    return quality.get("rows", quality.get("global_step", 0.0))


def _misfit(version: ExportFacts, in_service: ExportFacts) -> str:
    """Why clients of `in_service` would fail with `version`, whose server refuses inputs that it lacks or knows not."""
    if version.inputs is None or in_service.inputs is None:
        return ""
    added = sorted(version.inputs.keys() - in_service.inputs.keys())
    gone = sorted(in_service.inputs.keys() - version.inputs.keys())
    other = sorted(n for n in version.inputs.keys() & in_service.inputs if version.inputs[n] != in_service.inputs[n])
    problems = [
        *([f"it needs {', '.join(added)}, which they do not send"] if added else []),
        *([f"it refuses {', '.join(gone)}, which they send"] if gone else []),
        *(f"{n} is {version.inputs[n]}, they send {in_service.inputs[n]}" for n in other),
        *(f"it has no output {n}" for n in in_service.outputs if n not in version.outputs),
    ]
    return f"running clients would fail: {'; '.join(problems)}" if problems else ""
