"""Values as a producer of Avro writes them: records without a container, with or without the number of their schema."""

import io

import fastavro
import pyarrow as pa

from millrace.transforms.codecs.avro import to_records
from millrace.transforms.codecs.avro_schema import avro_schema


def encode_avro(batch: pa.RecordBatch) -> pa.BinaryArray:
    """binary [rows]: each row as an Avro record by the schema of the batch."""
    schema = avro_schema(batch.schema)
    values = []
    for record in to_records(batch, schema):
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, record)
        values.append(stream.getvalue())
    return pa.array(values, pa.binary())


def registry_prefix(schema_id: int) -> bytes:
    """The bytes before a record whose schema has this number in a registry."""
    return b"\0" + schema_id.to_bytes(4, "big")
