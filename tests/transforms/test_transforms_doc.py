"""docs/transforms.md says what the code does."""

import re
import textwrap

import pyarrow as pa

from build_tools import transforms_doc
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.recipe.chain import STEPS, TransformChain


def test_the_page_is_what_the_code_writes() -> None:
    assert transforms_doc._PAGE.read_text("utf-8") == transforms_doc.page(), "run `make docs`"


def test_every_setting_has_a_meaning_and_every_step_an_example() -> None:
    rows = [line for line in transforms_doc.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.rstrip(" |").endswith("|")] == []
    assert [row for row in rows if row.count("|") == 4 and not row.split("|")[3].strip()] == []
    assert [kind for kind, step in STEPS.items() if not step.example or not step.__doc__] == []


def test_the_first_recipe_of_the_page_drops_half_of_a_feeds_negatives_and_corrects_for_it() -> None:
    (recipe,) = re.findall(r"\n\n(    seed: .*?)\n\n", transforms_doc.page(), re.S)
    labels = pa.array([[1.0], [0.0]] * 500, pa.list_(pa.float32()))
    columns = {record_batch.LABEL: labels, "__UID__": pa.array([7] * 1000, pa.int64())}
    rows = TransformChain.parse(textwrap.dedent(recipe)).process(with_provenance(pa.record_batch(columns)))
    left = [label for (label,) in rows.column(record_batch.LABEL).to_pylist()]
    assert left.count(1.0) == 500
    assert 200 < left.count(0.0) < 300
    assert set(rows.column("__SAMPLE_RATE__").to_pylist()) == {0.5}
