import pytest

from millrace.runtime.errors import UserError
from millrace.serving.agent.gate import ExportFacts, ExportGate, parse_gate

_INPUTS = {"user_id": "int64", "context.device": "string"}


def _facts(
    inputs: dict[str, str] | None = None, outputs: tuple[str, ...] = ("click",), **quality: float
) -> ExportFacts:
    return ExportFacts({"rows": 100.0} | quality, _INPUTS if inputs is None else inputs, outputs)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        (None, ExportGate()),
        ("  ", ExportGate()),
        ("none", ExportGate(is_compatible=False, has_learned=False)),
        ("auc>0.6", ExportGate((("auc", ">", 0.6),))),
        (" rows >= 1e5 ,log_loss<.7", ExportGate((("rows", ">=", 1e5), ("log_loss", "<", 0.7)), has_learned=False)),
        ("calibration<=1.5, signature = any", ExportGate((("calibration", "<=", 1.5),), is_compatible=False)),
        ("signature=compatible", ExportGate()),
    ],
)
def test_terms_are_read(text: str | None, gate: ExportGate) -> None:
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("auk>0.6", "at character 1, 'auk' is not a name; .*rows, auc, log_loss"),
        ("rows>1, auc=0.6", "at character 12, '=' is not an operator; .*> >= < <="),
        ("rows>1,auc>much", "at character 12, 'much' is not a number"),
        ("rows>1,auc>", "at character 12, '' is not a number"),
        ("rows>1,", "at character 8, '' is not a name"),
        ("signature=equal", "at character 11, 'equal' is not one of compatible, any"),
        ("signature>1", "at character 10, '>' is not '='"),
        ("rows>1 and auc>0.6", "'1 and auc>0.6' is not a number"),
        ("rows>nan", "'nan' is not a number"),
        ("__import__('os')>1", "at character 1"),
        ("none, auc>1", "at character 1, 'none' is not a name"),
    ],
)
def test_what_is_wrong_is_named_with_its_position_and_the_choices(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "quality", "objection"),
    [
        ("auc>0.6", {"auc": 0.61}, ""),
        ("auc>0.6", {"auc": 0.6}, "auc>0.6 is required, and its auc is 0.6"),
        ("auc>=0.6", {"auc": 0.6}, ""),
        ("auc>0.6", {}, "auc>0.6 is required, and its auc is not known"),
        ("auc>0.6", {"auc": float("nan")}, "its auc is not known"),
        ("log_loss<0.5", {"log_loss": 0.5}, "its log_loss is 0.5"),
        ("log_loss<=0.5", {"log_loss": 0.5}, ""),
        (None, {"rows": 0.0}, "it has learned nothing"),
        ("rows>=0", {"rows": 0.0}, ""),
        ("none", {"rows": 0.0}, ""),
        ("auc>0.1", {"auc": 0.5, "rows": 0.0}, "it has learned nothing"),
    ],
)
def test_quality_is_compared(text: str | None, quality: dict[str, float], objection: str) -> None:
    found = parse_gate(text).objection(_facts(**quality), None)
    assert (objection in found) if objection else found == ""


def test_a_version_of_an_older_trainer_is_known_by_its_steps() -> None:
    assert ExportGate().objection(ExportFacts({"global_step": 3.0}), None) == ""
    assert "learned nothing" in ExportGate().objection(ExportFacts({"global_step": 0.0}), None)
    assert "learned nothing" in ExportGate().objection(ExportFacts(), None)


@pytest.mark.parametrize(
    ("inputs", "outputs", "objection"),
    [
        (_INPUTS, ("click",), ""),
        (_INPUTS, ("click", "buy"), ""),
        (_INPUTS | {"hour": "int64"}, ("click",), "it needs hour, which they do not send"),
        ({"user_id": "int64"}, ("click",), "it refuses context.device, which they send"),
        (_INPUTS | {"user_id": "string"}, ("click",), "user_id is string, they send int64"),
        (_INPUTS, ("buy",), "it has no output click"),
    ],
)
def test_a_signature_that_breaks_running_clients_is_refused(
    inputs: dict[str, str], outputs: tuple[str, ...], objection: str
) -> None:
    version = _facts(inputs, outputs)
    found = ExportGate().objection(version, _facts())
    assert (objection in found) if objection else found == ""
    assert ExportGate().objection(version, None) == ""  # nobody runs yet
    assert parse_gate("signature=any").objection(version, _facts()) == ""


def test_a_signature_that_no_manifest_tells_is_not_compared() -> None:
    unknown = ExportFacts({"rows": 1.0})
    assert ExportGate().objection(unknown, _facts()) == ""
    assert ExportGate().objection(_facts(), unknown) == ""
