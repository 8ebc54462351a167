"""EntryDump records: their bytes, every optimizer's state there and back, and checkpoints made of them."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError

from millrace.ops.embedding_table import EmbeddingStore, Entries
from millrace.ops.entry_dump import (
    complete_file_set,
    from_entry_dumps,
    import_entry_dumps,
    lookup_entries_as_dumps,
    to_entry_dumps,
)
from millrace.ops.table_config import (
    Adadelta,
    Adagrad,
    Adam,
    AdaMom,
    AmsGrad,
    BatchSoftmax,
    CountingFilter,
    Ftrl,
    GroupAdagrad,
    GroupFtrl,
    Momentum,
    MovingAverage,
    Occurrence,
    Optimizer,
    RandomUniform,
    RmsProp,
    RmsPropV2,
    Segment,
    Sgd,
    TableConfig,
    Zeros,
)
from millrace.protos.embedding_table_pb2 import EntryDump, SingleOptimizerDump
from tests.conformance.covers import covers

H30 = bytes.fromhex("09 0500000000000000 15 00002040 1a04 0a02 1200 2000")
SGD = TableConfig("sgd", 1, Sgd(1.0), Zeros())
MIXED = TableConfig("mixed", segments=[Segment(1, Ftrl(0.1)), Segment(3, Adam(0.1)), Segment(2, MovingAverage())])


def _store(*tables: TableConfig) -> EmbeddingStore:
    return EmbeddingStore(tables, f"dumps-{os.urandom(4).hex()}")


def _trained(table: TableConfig, ids: int = 20) -> EmbeddingStore:
    store = _store(table)
    random = np.random.default_rng(0)
    for step in range(3):
        gradients = random.normal(size=(ids, table.dim))
        store.apply_gradients(table.name, np.arange(ids) - 5, gradients, global_step=step, timestamp=1000 + step)
    return store


def _all_entries(store: EmbeddingStore, table: str) -> Entries:
    pages = list(store.entries(table))
    return Entries(*(np.concatenate(column) for column in zip(*pages, strict=True)))


def _assert_equal(left: Entries, right: Entries) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def _sorted(entries: Entries) -> Entries:
    order = np.argsort(entries.ids)
    return Entries(*(column[order] for column in entries))


@covers("emb:H30")
def test_a_record_has_the_bytes_of_the_original_system() -> None:
    entry = Entries(np.array([5]), np.array([[2.5]], np.float32), np.array([0]))
    assert to_entry_dumps(SGD, entry) == [H30]
    _assert_equal(from_entry_dumps(SGD, [H30]), entry)


def test_packed_weights_are_read_too() -> None:
    packed = bytes.fromhex("09 0500000000000000 1204 00002040 1a04 0a02 1200")
    assert from_entry_dumps(SGD, [packed]).values.tolist() == [[2.5]]
    assert from_entry_dumps(SGD, [packed]).timestamps.tolist() == [0]


@covers("emb:H3")
def test_a_looked_up_entry_is_a_record_without_id_and_a_missing_one_is_empty() -> None:
    store = _store(SGD)
    store.assign("sgd", [0, 1, 2], [[0.1], [0.2], [0.3]], timestamp=7)
    *dumps, missing = lookup_entries_as_dumps(store, "sgd", [0, 1, 2, 3])
    assert missing == b""
    messages = [EntryDump.FromString(dump) for dump in dumps]
    np.testing.assert_allclose([message.num for message in messages], [[0.1], [0.2], [0.3]], rtol=1e-7)
    assert not any(message.HasField("id") for message in messages)
    assert [message.last_update_ts_sec for message in messages] == [7, 7, 7]


@covers("emb:H19")
def test_small_pages_give_each_id_once() -> None:
    store = _store(SGD)
    store.assign("sgd", [3, 1 << 60], [[1.0], [2.0]])
    dumps = [dump for page in store.entries("sgd", page_size=1) for dump in to_entry_dumps(SGD, page)]
    assert sorted(EntryDump.FromString(dump).id for dump in dumps) == [3, 1 << 60]


@covers("emb:H20")
def test_ten_parts_read_in_pages_of_two_have_all_entries() -> None:
    store = _store(SGD)
    store.assign("sgd", np.arange(100), np.ones((100, 1)))
    pages = [page for part in range(10) for page in store.entries("sgd", page_size=2, part=part, num_parts=10)]
    dumps = [dump for page in pages for dump in to_entry_dumps(SGD, page)]
    assert sorted(EntryDump.FromString(dump).id for dump in dumps) == list(range(100))


OPTIMIZERS = [
    (Sgd(), "sgd", []),
    (Adagrad(), "adagrad", ["norm"]),
    (Adagrad(weight_decay_factor=0.1, decouple_weight_decay=True), "dynamic_wd_adagrad", ["norm"]),
    (Adadelta(), "adadelta", ["accum", "accum_update"]),
    (Adam(), "adam", ["m", "v", "beta1_power", "beta2_power"]),
    (AmsGrad(), "amsgrad", ["m", "v", "vhat", "beta1_power", "beta2_power"]),
    (Momentum(), "momentum", ["n"]),
    (RmsProp(), "rmsprop", ["n"]),
    (RmsPropV2(), "rmspropv2", ["n"]),
    (Ftrl(), "ftrl", ["norm", "zero"]),
    (GroupFtrl(), "group_ftrl", ["norm", "zero"]),
    (GroupAdagrad(), "group_adagrad", ["grad_square_sum"]),
    (BatchSoftmax(), "batch_softmax", ["global_step"]),
]


def _dumped_and_restored(store: EmbeddingStore, table: TableConfig, keep_weights: bool = True) -> EmbeddingStore:
    """Another store with the entries of `store` as their dumps have them, with weights of 0 unless they are kept."""
    dumps = to_entry_dumps(table, _all_entries(store, table.name))
    messages = [EntryDump.FromString(dump) for dump in dumps]
    for message in messages:
        if not keep_weights:
            message.num[:] = [0.0] * len(message.num)
    restored = _store(table)
    restored.import_entries(table.name, from_entry_dumps(table, [each.SerializeToString() for each in messages]))
    return restored


@covers("emb:O6")
def test_the_norms_of_two_segments_come_back_and_go_on_from_weights_of_zero() -> None:
    segments = (
        Segment(1, Adagrad(1.0, initial_accumulator_value=1.0), Zeros()),
        Segment(2, Adagrad(2.0, initial_accumulator_value=2.0), Zeros()),
    )
    table = TableConfig("t", segments=segments)
    store = _store(table)
    store.apply_gradients("t", [1], [[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(store.lookup("t", [1]), [[-0.70710677, -1.6329931, -1.8090681]], rtol=1e-6)
    restored = _dumped_and_restored(store, table, keep_weights=False)
    assert restored.lookup("t", [1]).numpy().tolist() == [[0, 0, 0]]
    restored.apply_gradients("t", [1], [[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(restored.lookup("t", [1]), [[-0.57735026, -1.264911, -1.3416407]], rtol=1e-6)


@covers("emb:O10")
def test_both_powers_of_adam_come_back() -> None:
    table = TableConfig("t", 1, Adam(0.01), Zeros())
    store = _store(table)
    store.apply_gradients("t", [1], [[10.0]])
    restored = _dumped_and_restored(store, table)
    restored.apply_gradients("t", [1], [[10.0]])
    np.testing.assert_allclose(restored.lookup("t", [1]), [[-0.0198306]], rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "kind", "fields"), OPTIMIZERS, ids=[kind for _, kind, _ in OPTIMIZERS])
def test_every_field_of_an_optimizers_state_comes_back(optimizer: Optimizer, kind: str, fields: list[str]) -> None:
    table = TableConfig("table", 1 if kind == "batch_softmax" else 3, optimizer)
    entries = _all_entries(_trained(table), "table")
    dumps = to_entry_dumps(table, entries)
    _assert_equal(from_entry_dumps(table, dumps), entries)
    state = entries.values[0, table.dim :]
    (dump,) = EntryDump.FromString(dumps[0]).opt.dump
    found = getattr(dump, kind)
    flat = np.concatenate([np.ravel(getattr(found, field)) for field in fields]) if fields else np.zeros(0)
    np.testing.assert_array_equal(flat, state.view(np.int64) if kind == "batch_softmax" else state)


def test_segments_have_a_dump_each_except_for_moving_averages() -> None:
    entries = _all_entries(_trained(MIXED), "mixed")
    dumps = to_entry_dumps(MIXED, entries)
    assert [dump.WhichOneof("type") for dump in EntryDump.FromString(dumps[0]).opt.dump] == ["ftrl", "adam"]
    _assert_equal(from_entry_dumps(MIXED, dumps), entries)


def test_the_two_forms_of_adagrad_read_each_others_state() -> None:
    coupled, decoupled = (TableConfig("a", 2, Adagrad(decouple_weight_decay=flag)) for flag in (False, True))
    entries = _all_entries(_trained(coupled), "a")
    _assert_equal(from_entry_dumps(decoupled, to_entry_dumps(coupled, entries)), entries)
    _assert_equal(from_entry_dumps(coupled, to_entry_dumps(decoupled, entries)), entries)


def test_a_table_that_serves_takes_the_weights_of_any_record() -> None:
    entries = _all_entries(_trained(MIXED), "mixed")
    served = from_entry_dumps(MIXED.for_serving(), to_entry_dumps(MIXED, entries))
    np.testing.assert_array_equal(served.values, entries.values[:, : MIXED.dim])
    assert not EntryDump.FromString(to_entry_dumps(MIXED.for_serving(), served)[0]).HasField("opt")


def _record(**fields: object) -> bytes:
    sgd = SingleOptimizerDump(sgd=SingleOptimizerDump.Sgd())
    return EntryDump(**{"id": 5, "num": [2.5], "opt": {"dump": [sgd]}, **fields}).SerializeToString()


ADAM_WITHOUT_POWER = SingleOptimizerDump(adam=SingleOptimizerDump.Adam(m=[1], v=[1], beta1_power=0.9))
ADAGRAD_OF_NAN = SingleOptimizerDump(adagrad=SingleOptimizerDump.Adagrad(norm=[float("nan")]))
WRONG_RECORDS = [
    (SGD, _record(num=[1, 2]), "id 5: has 2 weights, expected 1"),
    (SGD, _record(num=[float("nan")]), "id 5: weights must be finite"),
    (
        TableConfig("t", 1, Adagrad()),
        _record(opt={"dump": [ADAGRAD_OF_NAN]}),
        "id 5, optimizer dump 0: norm must be finite",
    ),
    (SGD, _record(id=None), "an entry has no id"),
    (SGD, _record(opt=None), "id 5: has 0 optimizer dumps, expected 1"),
    (TableConfig("t", 1, Adagrad()), H30, "table 't', id 5, optimizer dump 0: has sgd, expected adagrad"),
    (
        TableConfig("t", 1, Momentum()),
        _record(opt={"dump": [{"momentum": {"n": [1, 2]}}]}),
        "id 5, optimizer dump 0: has 2 n, expected 1",
    ),
    (TableConfig("t", 1, Adam()), _record(opt={"dump": [ADAM_WITHOUT_POWER]}), "adam has no beta2_power"),
    (TableConfig("t", 1, AdaMom()), H30, "table 't', segment 0: AdaMom has no dump"),
]


@pytest.mark.parametrize(("table", "record", "problem"), WRONG_RECORDS, ids=[text for *_, text in WRONG_RECORDS])
def test_a_record_of_another_table_is_refused(table: TableConfig, record: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_entry_dumps(table, [record])


def test_bytes_that_are_no_record_are_refused() -> None:
    with pytest.raises(DecodeError):
        from_entry_dumps(SGD, [b"no record"])


FILE_SETS = [
    (["a/b-00000-of-00001"], None),
    (["a/b-00001-of-00002", "a/b-00000-of-00002"], None),
    ([f"a/b-{i:05}-of-00100" for i in range(100)], None),
    (["a/b-00000-of-00001", "a/b-00000-of-00002-tmp-1234"], None),
    (["a/b-00000-of-00002"], "must have numbers 0 to 1, but it has \\[0\\]"),
    (["a/b-00000-of-00001", "a/b-00001-of-00001"], "must have numbers 0 to 0, but it has \\[0, 1\\]"),
    (["a/b-00000-of-00002", "a/b-00001-of-00003"], "several checkpoints"),
    (["a/b-00000-of-00001", "a/b10-00000-of-00001"], "several checkpoints: a/b-\\*-of-00001, a/b10-\\*-of-00001"),
    (["a/b-00000-of-00002-tmp-1", "a/b"], "no file is named"),
    ([], "no file is named"),
]


@pytest.mark.parametrize(("files", "problem"), FILE_SETS)
def test_a_checkpoint_is_one_complete_set_of_files(files: list[str], problem: str | None) -> None:
    if problem:
        with pytest.raises(ValueError, match=problem):
            complete_file_set(files)
    else:
        assert [str(path) for path in complete_file_set(files)] == sorted(f for f in files if "tmp" not in f)


def _write(path: Path, dumps: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for dump in dumps:
            writer.write(dump)
    return path


def _checkpoint(folder: Path, table: TableConfig, entries: Entries, files: int) -> list[Path]:
    """The original's files of a table, entries spread over them."""
    dumps = to_entry_dumps(table, entries)
    names = [folder / f"{table.name}-{i:05}-of-{files:05}" for i in range(files)]
    return [_write(path, dumps[i::files]) for i, path in enumerate(names)]


def test_a_checkpoint_is_imported_with_state_and_times(tmp_path: Path) -> None:
    trained = _trained(MIXED)
    files = _checkpoint(tmp_path, MIXED, _all_entries(trained, "mixed"), files=3)
    other = _store(MIXED, SGD)
    other.assign("mixed", [12345], np.ones((1, MIXED.dim)))
    other.assign("sgd", [1], [[1.0]])
    assert import_entry_dumps(other, "mixed", files) == 20
    _assert_equal(_sorted(_all_entries(other, "mixed")), _sorted(_all_entries(trained, "mixed")))
    assert other.size("sgd") == 1
    assert other.steal_touched() == {}
    for store in (trained, other):
        store.apply_gradients("mixed", [0, 1], np.ones((2, MIXED.dim)), timestamp=2000)
    _assert_equal(_sorted(_all_entries(other, "mixed")), _sorted(_all_entries(trained, "mixed")))


def test_an_import_does_not_ask_the_filter(tmp_path: Path) -> None:
    files = _checkpoint(tmp_path, SGD, _all_entries(_trained(SGD), "sgd"), files=1)
    store = _store(TableConfig("sgd", 1, Sgd(), occurrence=Occurrence(CountingFilter(1000), 5)))
    import_entry_dumps(store, "sgd", files)
    assert store.size("sgd") == 20


def test_a_table_that_serves_imports_compressed_weights(tmp_path: Path) -> None:
    table = TableConfig("table", 3, Adagrad(), RandomUniform())
    entries = _all_entries(_trained(table), "table")
    store = _store(table.for_serving())
    import_entry_dumps(store, "table", _checkpoint(tmp_path, table, entries, files=1))
    np.testing.assert_array_equal(store.lookup("table", entries.ids), entries.values[:, :3])


@covers("emb:H21")
def test_zeros_of_dumps_and_snapshots_get_no_entry_in_a_table_that_skips_them(tmp_path: Path) -> None:
    trained = _store(SGD)
    trained.assign("sgd", np.arange(3000), np.arange(3000)[:, None] % 2)
    trained.save(tmp_path / "snapshot", with_state=False)
    files = _checkpoint(tmp_path, SGD, _all_entries(trained, "sgd"), files=2)
    imported, restored = (_store(dataclasses.replace(SGD.for_serving(), skip_zero=True)) for _ in range(2))
    import_entry_dumps(imported, "sgd", files)
    restored.restore(tmp_path / "snapshot")
    for store in (imported, restored):
        np.testing.assert_array_equal(store.contains("sgd", np.arange(3000)), np.arange(3000) % 2 == 1)


def test_damaged_or_foreign_files_leave_the_table_as_it_was(tmp_path: Path) -> None:
    store = _trained(SGD)
    before = _all_entries(store, "sgd")
    foreign = _checkpoint(tmp_path, MIXED, _all_entries(_trained(MIXED), "mixed"), files=1)
    with pytest.raises(ValueError, match=r"has 6 weights, expected 1"):
        import_entry_dumps(store, "sgd", foreign)
    junk = _write(tmp_path / "junk-00000-of-00001", [b"no record"])
    with pytest.raises(tf.errors.DataLossError, match="junk-00000-of-00001"):
        import_entry_dumps(store, "sgd", [junk])
    first, last = _checkpoint(tmp_path, SGD, before, files=2)
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(tf.errors.DataLossError, match="sgd-00001-of-00002"):
        import_entry_dumps(store, "sgd", [first, last])
    _assert_equal(_all_entries(store, "sgd"), before)


@pytest.mark.parametrize("timestamp", [-1, 1 << 32])
def test_times_that_are_no_seconds_are_refused(timestamp: int) -> None:
    store = _store(SGD)
    with pytest.raises(tf.errors.InvalidArgumentError, match="timestamps must be seconds"):
        store.import_entries("sgd", Entries(np.array([1]), np.ones((1, 1), np.float32), np.array([timestamp])))
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 'sgd' has entries of 1 floats"):
        store.import_entries("sgd", Entries(np.array([1]), np.ones((1, 2), np.float32), np.array([0])))
