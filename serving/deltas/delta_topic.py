"""The delta topic as one loaded version reads it."""

from collections.abc import Mapping

from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topic_reader import Record, TopicReader
from millrace.runtime.topic_watch import TopicWatch


class DeltaTopic:
    """Reads the topic from given offsets, and notices when they have lost their meaning.

    Args:
      watch: of the same topic; it outlives this object.
      start: {partition: offset of the first delta to read}.
    """

    def __init__(self, connection: KafkaConnection, topic: str, watch: TopicWatch, start: Mapping[int, int]) -> None:
        self._reader = TopicReader(connection, topic, start)
        self._watch = watch

    @property
    def positions(self) -> dict[int, int]:
        return self._reader.positions

    def read(self, max_records: int = 200, seconds: float = 0.02) -> list[Record]:
        return self._reader.read(max_records, seconds)

    def reached_end(self) -> bool:
        return self._reader.reached_end()

    @property
    def heard(self) -> bool:
        """Whether a broker has answered."""
        return self._reader.heard

    def began_anew(self) -> bool:
        """Whether the topic was made anew or cut off, so that it has to be read from its beginning."""
        return self._watch.is_new() or self._reader.went_back

    def close(self) -> None:
        self._reader.close()
