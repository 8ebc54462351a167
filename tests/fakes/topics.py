"""What is in a topic now."""

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, watermarks
from millrace.runtime.topic_reader import Record, TopicReader


def read_all(kafka: KafkaConnection, topic: str) -> list[Record]:
    """Every committed record of the topic; none while it does not exist."""
    try:
        start = {partition: low for partition, (low, _) in watermarks(kafka, topic).items()}
    except UserError:
        return []
    reader = TopicReader(kafka, topic, start)
    records: list[Record] = []
    try:

        def drained() -> bool:
            records.extend(reader.read())
            return reader.reached_end()

        wait_until(drained, 20.0, f"all of {topic} is read")
    finally:
        reader.close()
    return records
