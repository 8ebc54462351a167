"""Pipelines in Beam YAML with the provider of this project: the example runs and gives the rows of the same recipe."""

import gzip
import importlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from apache_beam.yaml import main as beam_yaml

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.data_source import data_source_key
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.beam import ptransforms
from millrace.transforms.codecs.record_codec import encode_records
from millrace.transforms.codecs.tables import mark_canonical
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
    expected = chain.process(with_provenance(rows))
    found = sorted(written[record_batch.SOURCE_OFFSET].to_pylist())
    assert found == expected.column(record_batch.SOURCE_OFFSET).to_pylist()
    assert 50 < len(found) < 300
    dead = pq.read_table(tmp_path / "rows" / "dead-letters")
    assert dead["reason"].to_pylist() == ["malformed_proto"]


_AVRO = """
providers:
  - include: {provider}
pipeline:
  transforms:
    - {{type: ReadFramedFiles, name: Read, config: {{patterns: "{folder}/part.bin.gz", compression: gzip}}}}
    - type: DecodeAvro
      name: Decode
      input: Read.rows
      config:
        reader_schema: &schema
          {{type: record, name: Row, fields: [{{name: age, type: long}}]}}
        schema: *schema
    - {{type: WriteParquetFiles, input: Decode.rows, config: {{folder: "{folder}/rows"}}}}
    - {{type: WriteParquetFiles, name: Refused, input: Decode.dead_letters, config: {{folder: "{folder}/dead"}}}}
"""


def test_avro_values_are_decoded_in_beam_yaml(tmp_path: Path) -> None:
    values = pa.array([b"\x02", b"\x04", b""], pa.binary())  # the numbers 1 and 2 in Avro, and nothing
    (tmp_path / "part.bin.gz").write_bytes(gzip.compress(join_frames(values, FILE_FRAMES).to_pybytes()))
    pipeline = tmp_path / "avro.beam.yaml"
    pipeline.write_text(_AVRO.format(provider=_ROOT / "pipelines" / "beam_yaml.yaml", folder=tmp_path), "utf-8")
    beam_yaml.run([f"--yaml_pipeline_file={pipeline}", "--json_schema_validation=none"])
    (written,) = (tmp_path / "rows").glob("*.parquet")
    assert pq.read_table(written)["age"].to_pylist() == [[1], [2]]
    assert pq.read_table(tmp_path / "dead")["reason"].to_pylist() == ["malformed_avro"]


_FLOWS = """
providers:
  - include: {provider}
pipeline:
  transforms:
    - {{type: ReadParquetFiles, name: Read, config: {{patterns: "{folder}/rows.parquet"}}}}
    - {{type: SplitFlows, name: Split, input: Read.rows, config: {{names: [pc, mobile]}}}}
    - {{type: FilterByAction, name: Acted, input: Split.pc, config: {{has_actions: [1, 2]}}}}
    - {{type: MergeFlows, name: Merge, input: {{pc: Acted, mobile: Split.mobile}}}}
    - {{type: WriteParquetFiles, input: Merge, config: {{folder: "{folder}/merged"}}}}
    - {{type: WriteParquetFiles, name: Refused, input: Split.dead_letters, config: {{folder: "{folder}/dead"}}}}
"""


def test_flows_are_split_and_merged_in_beam_yaml(tmp_path: Path) -> None:
    rows = random_rows(300)
    keys = pa.array([data_source_key(name) for name in ["pc", "mobile", "cloud"] * 100], pa.uint32())
    rows = record_batch.with_column(rows, pa.field("__DATA_SOURCE_KEY__", keys.type), keys)
    pq.write_table(pa.Table.from_batches([mark_canonical(rows)]), tmp_path / "rows.parquet")
    pipeline = tmp_path / "flows.beam.yaml"
    pipeline.write_text(_FLOWS.format(provider=_ROOT / "pipelines" / "beam_yaml.yaml", folder=tmp_path), "utf-8")
    beam_yaml.run([f"--yaml_pipeline_file={pipeline}", "--json_schema_validation=none"])
    merged = pa.concat_tables(
        (pq.read_table(path) for path in (tmp_path / "merged").glob("*.parquet")), promote_options="default"
    )
    chain = TransformChain.parse(
        """
        steps:
          - run_flows:
              flows:
                - {data_source: pc, steps: [{filter_by_action: {has_actions: [1, 2]}}]}
                - {data_source: mobile}
        """
    )
    expected = chain.process(rows)
    columns = (record_batch.SOURCE_OFFSET, "__DATA_SOURCE_NAME__")
    found = sorted(zip(*(merged[name].to_pylist() for name in columns), strict=True))
    assert found == list(zip(*(expected.column(name).to_pylist() for name in columns), strict=True))
    assert 100 < len(found) < 200
    assert pq.read_table(tmp_path / "dead").num_rows == 100
