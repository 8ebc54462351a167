"""Converts a source of records to one file, through a recipe if there is one; a failure leaves no file."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from millrace.pipelines.files.containers import parquet_writer
from millrace.pipelines.files.format import RecordSettings
from millrace.pipelines.files.storage import publish
from millrace.pipelines.files.writers import MoreColumnsError, needs_schema, with_one_schema, write_rows
from millrace.pipelines.records.source import DeadLetterCounts, ReadProgress, RecordSource
from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter
from millrace.transforms.recipe.chain import TransformChain

_NUMBERED_FORMATS = ("example", "example_batch", "instance")
"""Formats whose records hold actions as numbers; a feed has their names."""

_SHARDED_FORMATS = ("arrow", "parquet", "json")
"""Formats whose columns may be lists of lists with nulls, as those of a sharded batch are."""


class BadRecordsError(Exception):
    """Some records cannot be read, and no file for dead letters is given."""

    def __init__(self, refused: DeadLetterCounts) -> None:
        super().__init__(str(refused))
        self.refused = refused


@dataclass
class Converted:
    """The outcome: rows that were read, rows that were written, and records that could not be read."""

    rows_read: int = 0
    rows_written: int = 0
    refused: DeadLetterCounts = field(default_factory=DeadLetterCounts)


class Conversion:
    """One conversion of a source.

    Args:
      make_chain: makes the steps, which have state, anew for each pass over the source; gives None without a recipe.
      dead_letters: Parquet file for the dead letters (`dead_letter.SCHEMA`); None: a dead letter fails the conversion.
      progress: called after each part.
    """

    def __init__(
        self,
        source: RecordSource,
        make_chain: Callable[[], TransformChain | None],
        dead_letters: Path | None,
        progress: ReadProgress,
    ) -> None:
        chain = make_chain()
        self._source = source if chain is None else source.with_features(chain.required_features())
        self._make_chain, self._dead_letters = make_chain, dead_letters
        self._progress = progress
        self._number_actions = False
        self.result = Converted()
        self._last_chain = chain

    def to_file(self, path: str, settings: RecordSettings) -> Converted:
        """Writes the rows to `path`, which appears whole or not at all.

        Action names become the numbers of the recipe's `action_ids` where the format holds numbers. A file of rows has
        one schema: it takes a second pass when a later batch has columns that the first one lacks.

        Raises: BadRecordsError, UserError.
        """
        chain = self._make_chain()
        if chain is not None and not chain.gives_rows and settings.format not in _SHARDED_FORMATS:
            problem = "cannot hold the sharded batches of shard_fids"
            raise UserError("--to", settings.format, problem, f"choose {' or '.join(_SHARDED_FORMATS)}")
        self._number_actions = settings.format in _NUMBERED_FORMATS
        schema = None
        while True:
            try:
                self._run(functools.partial(_publish, path, settings, schema))
                return self.result
            except MoreColumnsError as found:
                schema = found.schema

    def save_pools(self) -> list[Path]:
        """Writes the item pools that the conversion ended with to the folders that their steps name; returns the files.

        Raises: UserError when no step names a folder.
        """
        paths = [] if self._last_chain is None else self._last_chain.write_snapshots()
        if not paths:
            raise UserError("--save-pools", "", "no step has a snapshot_folder", "name one in generate_negatives")
        return paths

    def _run(self, write: Callable[[Iterator[pa.RecordBatch]], None]) -> None:
        self.result = Converted()
        if self._dead_letters is None:
            write(self._rows(lambda dead: None))
            return

        def write_both(file: BinaryIO) -> None:
            with parquet_writer(file, dead_letter.SCHEMA) as writer:
                write(self._rows(writer.write_batch))

        publish(str(self._dead_letters), write_both)

    def _rows(self, bury: Callable[[pa.RecordBatch], None]) -> Iterator[pa.RecordBatch]:
        result = self.result
        chain = self._last_chain = self._make_chain()
        if chain is not None and chain.warms:
            chain.warm(part.rows for part in self._source.parts() if part.rows.num_rows)
        for part in self._source.parts():
            self._progress(part.done, part.rows.num_rows)
            result.rows_read += part.rows.num_rows
            result.refused.add(part.dead)
            if part.dead.num_rows:
                bury(part.dead)
            rows = part.rows
            if chain is not None and rows.num_rows:
                rows = chain.process(rows, self._number_actions)
            result.rows_written += rows.num_rows
            if len(rows.schema):
                yield rows
        if result.refused.counts and self._dead_letters is None:
            raise BadRecordsError(result.refused)


def _publish(path: str, settings: RecordSettings, schema: pa.Schema | None, rows: Iterator[pa.RecordBatch]) -> None:
    batches = with_one_schema(rows, schema) if needs_schema(settings) else rows
    publish(path, lambda file: write_rows(file, batches, settings))
