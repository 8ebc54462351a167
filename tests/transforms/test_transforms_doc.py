"""docs/transforms.md says what the code does."""

from build_tools import transforms_doc
from millrace.transforms.recipe.chain import STEPS


def test_the_page_is_what_the_code_writes() -> None:
    assert transforms_doc._PAGE.read_text("utf-8") == transforms_doc.page(), "run `make docs`"


def test_every_setting_has_a_meaning_and_every_step_an_example() -> None:
    rows = [line for line in transforms_doc.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.rstrip(" |").endswith("|")] == []
    assert [row for row in rows if row.count("|") == 4 and not row.split("|")[3].strip()] == []
    assert [kind for kind, step in STEPS.items() if not step.example or not step.__doc__] == []
