"""Loads one exported version: verifies it, restores it, warms it up, keeps it fresh, and frees it again."""

import gc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topic_watch import TopicWatch
from millrace.serving.deltas.delta_applier import DeltaApplier
from millrace.serving.deltas.delta_consumer import DeltaConsumer
from millrace.serving.deltas.delta_order import DeltaOrder
from millrace.serving.deltas.delta_topic import DeltaTopic
from millrace.serving.deltas.freshness import VersionFreshness
from millrace.serving.server import export_manifest, tensors
from millrace.serving.server.embedding_stores import StoreAccess
from millrace.serving.server.errors import ExportError, InvalidRequestError, NotFoundError
from millrace.serving.server.export_manifest import ExportManifest
from millrace.serving.server.model_roots import ModelRoots
from millrace.serving.server.servable import Freshness, VersionSource
from millrace.serving.server.tensors import InputSpec

_LOG = logging.getLogger(__name__)
_DEFAULT_SIGNATURE = "serving_default"
# Two sizes: the first call traces nothing but fills TensorFlow's caches, and batch 1 and batch n take other kernels.
_WARM_UP_BATCHES = (1, 8)
# After this time without a broker a version is served without its deltas: stale answers are better than none.
_CATCH_UP_SECONDS = 30.0


class SavedModelServable:
    """What requests use: the signatures of a loaded SavedModel."""

    def __init__(self, model: Any, signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]) -> None:
        self.signature_defs = signature_defs
        self._model = model  # signatures hold weak references to the variables: keep their owner
        self._functions: dict[str, Callable[..., dict[str, tf.Tensor]]] = dict(model.signatures)
        self._inputs = {name: _input_specs(function) for name, function in model.signatures.items()}
        self._arguments = {name: _argument_names(function) for name, function in model.signatures.items()}

    def inputs(self, signature: str) -> dict[str, InputSpec]:
        """{input name: spec}; InvalidRequestError for an unknown signature."""
        try:
            return self._inputs[signature or _DEFAULT_SIGNATURE]
        except KeyError:
            raise InvalidRequestError(
                f"signature_name '{signature}' is unknown; signatures: {', '.join(sorted(self._inputs))}"
            ) from None

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. `inputs` must fit `inputs(signature)`; InvalidRequestError where the graph refuses them."""
        signature = signature or _DEFAULT_SIGNATURE
        arguments = self._arguments[signature]
        try:
            outputs = self._functions[signature](
                **{arguments[name]: tf.convert_to_tensor(value) for name, value in inputs.items()}
            )
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        except tf.errors.InvalidArgumentError as error:
            raise InvalidRequestError(_refusal(error.message, inputs)) from error
        except tf.errors.NotFoundError as error:
            raise NotFoundError(error.message.splitlines()[0]) from error


def _refusal(message: str, inputs: Mapping[str, np.ndarray]) -> str:
    """What TensorFlow says, without where in the graph; or, where inputs differ in rows, their numbers of rows."""
    if rows := tensors.unequal_rows(inputs):
        return f"the model refuses inputs with different numbers of rows: {rows}"
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Graph execution error", "Detected at node"))]
    return f"the model refuses the inputs: {said[0] if said else message}"


def _input_specs(function: Any) -> dict[str, InputSpec]:
    return {
        spec.name: InputSpec(spec.dtype, None if spec.shape.rank is None else tuple(spec.shape.as_list()))
        for spec in function.structured_input_signature[1].values()
    }


def _argument_names(function: Any) -> dict[str, str]:
    """{input name: Python argument}: TensorFlow turns `context.device` into `context_device`."""
    return {spec.name: argument for argument, spec in function.structured_input_signature[1].items()}


class SavedModelLoader:
    """Loader of one export folder (see `millrace.serving.server.servable.Loader`).

    Args:
      kafka: where the deltas are; None serves the export as it is.
      stores: access to embedding stores.
      roots: where the folder must lie.
    """

    def __init__(
        self,
        name: str,
        version: int,
        source: VersionSource,
        kafka: KafkaConnection | None = None,
        stores: StoreAccess | None = None,
        catch_up_seconds: float = _CATCH_UP_SECONDS,
        roots: ModelRoots | None = None,
    ) -> None:
        self._name = name
        self._version = version
        self._folder = Path(source.path)
        self._as_of_ms = source.as_of_ms
        self._kafka = kafka
        self._stores = stores or StoreAccess()
        self._catch_up_seconds = catch_up_seconds
        self._roots = roots or ModelRoots()
        self._model: Any = None
        self._store_name = ""
        self._consumer: DeltaConsumer | None = None
        self._freshness = VersionFreshness(name, version, takes_deltas=False)

    def load(self) -> SavedModelServable:
        """The servable, warm and caught up with the deltas.

        Raises:
          ExportError: the export is incomplete, corrupt, of another model or version, or does not run.
        """
        self._roots.check(self._folder)
        manifest = export_manifest.read_verified(self._folder)
        if (manifest.model_name, manifest.version) != (self._name, self._version):
            raise ExportError(
                f"{self._folder}: holds {manifest.model_name}:{manifest.version}, not {self._name}:{self._version}"
            )
        try:
            servable = self._restore(manifest)
            _warm_up(servable)
            self._follow_deltas(manifest)
        except BaseException:
            self.unload()
            raise
        self._freshness.show()
        return servable

    def unload(self) -> None:
        """Stops the deltas and frees variables and tables."""
        self._freshness.hide()
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._model = None
        gc.collect()
        if self._store_name:
            self._stores.release(self._store_name)
            self._store_name = ""

    def hold(self, as_of_ms: int | None) -> bool:
        consumer = self._consumer
        return consumer is None or consumer.hold(as_of_ms)

    def freshness(self) -> Freshness:
        fresh = self._freshness
        return Freshness(fresh.model_age_ms(), fresh.delta_lag_ms(), fresh.resync_required)

    def _restore(self, manifest: ExportManifest) -> SavedModelServable:
        try:
            if manifest.store:
                self._model, self._store_name = self._stores.load(self._folder, manifest.store)
            else:
                self._model = tf.saved_model.load(str(self._folder))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ExportError(f"{self._folder}: TensorFlow cannot load it: {str(error).splitlines()[0]}") from error
        return SavedModelServable(self._model, _signature_defs(self._folder))

    def _follow_deltas(self, manifest: ExportManifest) -> None:
        kafka, topic = self._kafka, manifest.delta_topic
        takes_deltas = kafka is not None and bool(topic) and bool(manifest.delta_offsets)
        self._freshness = VersionFreshness(
            self._name, self._version, manifest.event_time_ms, manifest.cut_at_ms, takes_deltas
        )
        if kafka is None or not takes_deltas:
            return
        store = self._stores.attach(self._store_name) if self._store_name else None
        order = DeltaOrder(self._name, manifest.lineage, manifest.epoch, manifest.delta_sequence)
        watch = TopicWatch(kafka, topic)
        self._consumer = DeltaConsumer(
            f"{self._name}:{self._version}",
            DeltaApplier(store, manifest.tables, _dense_variables(self._model, manifest), order),
            self._freshness,
            lambda start: DeltaTopic(kafka, topic, watch, start),
            manifest.delta_offsets,
            self._as_of_ms,
        )
        self._consumer.start()
        if not self._consumer.wait_caught_up(self._catch_up_seconds):
            _LOG.warning(
                "%s:%d: %s not read to its end within %g s; serving what is loaded while reading on",
                self._name,
                self._version,
                topic,
                self._catch_up_seconds,
            )


def _signature_defs(folder: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """SignatureDefs as exported, without the ones that TensorFlow keeps for itself."""
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    definitions = saved_model.meta_graphs[0].signature_def
    return {name: definition for name, definition in definitions.items() if not name.startswith("__")}


def _dense_variables(model: Any, manifest: ExportManifest) -> dict[str, Any]:
    variables = list(getattr(model, "dense_variables", ()))
    if len(variables) != len(manifest.dense_variables):
        raise ExportError(
            f"{export_manifest.MANIFEST_PATH}: {len(manifest.dense_variables)} dense variables are named, "
            f"the SavedModel has {len(variables)}"
        )
    return dict(zip(manifest.dense_variables, variables, strict=True))


def _warm_up(servable: SavedModelServable) -> None:
    """Calls each signature once per batch size, with zeros and empty strings."""
    for signature in servable.signature_defs:
        specs = servable.inputs(signature)
        if any(spec.shape is None for spec in specs.values()):
            continue
        for batch in _WARM_UP_BATCHES:
            inputs = {name: _zeros(spec, batch) for name, spec in specs.items()}
            try:
                servable.run(signature, inputs)
            except InvalidRequestError as error:
                _LOG.warning("warm-up of '%s' with zeros: %s", signature, error)


def _zeros(spec: InputSpec, batch: int) -> np.ndarray:
    shape = [batch if size is None else size for size in spec.shape or ()]
    if spec.dtype == tf.string:
        return np.full(shape, b"", object)
    return np.zeros(shape, spec.dtype.as_numpy_dtype)
