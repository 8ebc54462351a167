"""Pipelines in Beam YAML with the provider of this project: the example runs and gives the rows of the same recipe."""

import importlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from apache_beam.yaml import main as beam_yaml

from millrace.transforms.batch import record_batch
from millrace.transforms.beam import ptransforms
from millrace.transforms.codecs.record_codec import encode_records
from millrace.transforms.frames.framing import FILE_FRAMES, join_frames
from millrace.transforms.recipe.chain import TransformChain
from tests.reference.record_rows import random_rows

_ROOT = Path(__file__).resolve().parents[2]


def test_the_provider_lists_what_exists_and_every_step() -> None:
    (provider,) = yaml.safe_load((_ROOT / "pipelines" / "beam_yaml.yaml").read_text("utf-8"))
    for name, path in provider["transforms"].items():
        module, _, attribute = path.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    assert set(ptransforms.__all__) <= set(provider["transforms"])


def test_the_example_pipeline_writes_the_rows_of_its_recipe_and_the_bad_records_beside(tmp_path: Path) -> None:
    rows = random_rows(300)
    values = [*encode_records(rows, "example").to_pylist(), b"\xff\xff"]
    (tmp_path / "part.pb").write_bytes(join_frames(pa.array(values, pa.binary()), FILE_FRAMES).to_pybytes())
    variables = f'{{"input": "{tmp_path}/*.pb", "output": "{tmp_path}/rows"}}'
    example = _ROOT / "examples" / "recipes" / "rows.beam.yaml"
    flags = [f"--yaml_pipeline_file={example}", f"--jinja_variables={variables}", "--json_schema_validation=none"]
    beam_yaml.run(flags)
    written = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "rows").glob("*.parquet"))
    chain = TransformChain.parse(
        """
        seed: 7
        steps:
          - filter_by_action: {has_actions: [1, 2, 3]}
          - {negative_sample: {drop_rate: 0.5, threshold: 0.5}, id: negative_sample}
        """
    )
    expected = chain.process(record_batch.with_provenance(rows))
    found = sorted(written[record_batch.SOURCE_OFFSET].to_pylist())
    assert found == expected.column(record_batch.SOURCE_OFFSET).to_pylist()
    assert 50 < len(found) < 300
    dead = pq.read_table(tmp_path / "rows" / "dead-letters")
    assert dead["reason"].to_pylist() == ["malformed_proto"]
