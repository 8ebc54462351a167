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
from millrace.runtime.topic_reader import TopicReader
from millrace.serving.deltas.delta_consumer import DeltaApplier, DeltaConsumer, EmbeddingTables
from millrace.serving.server import export_manifest
from millrace.serving.server.errors import ExportError, InvalidRequestError, NotFoundError
from millrace.serving.server.export_manifest import ExportManifest
from millrace.serving.server.tensors import InputSpec

_LOG = logging.getLogger(__name__)
_DEFAULT_SIGNATURE = "serving_default"
# Two sizes: the first call traces nothing but fills TensorFlow's caches, and batch 1 and batch n take other kernels.
_WARM_UP_BATCHES = (1, 8)
# After this time without a broker a version is served without its deltas: stale answers are better than none.
_CATCH_UP_SECONDS = 30.0


class StoreAccess:
    """Access to the embedding stores that loading a SavedModel opens (`millrace.ops.embedding_table`)."""

    def prepare(self) -> None:
        """Registers the ops with TensorFlow; called before any export with tables is loaded."""
        from millrace.ops import library

        library.load()

    def attach(self, shared_name: str) -> EmbeddingTables:
        from millrace.ops.embedding_table import EmbeddingStore

        store: EmbeddingTables = EmbeddingStore.attach(shared_name)
        return store

    def release(self, shared_name: str) -> None:
        """Frees the tables of an unloaded version."""
        from millrace.ops.embedding_table import EmbeddingStore

        EmbeddingStore.release(shared_name)


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
            raise InvalidRequestError(f"the model refuses the inputs: {error.message.splitlines()[0]}") from error
        except tf.errors.NotFoundError as error:
            raise NotFoundError(error.message.splitlines()[0]) from error


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
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        kafka: KafkaConnection | None = None,
        stores: StoreAccess | None = None,
        catch_up_seconds: float = _CATCH_UP_SECONDS,
    ) -> None:
        self._name = name
        self._version = version
        self._folder = Path(path)
        self._kafka = kafka
        self._stores = stores or StoreAccess()
        self._catch_up_seconds = catch_up_seconds
        self._model: Any = None
        self._store_name = ""
        self._consumer: DeltaConsumer | None = None

    def load(self) -> SavedModelServable:
        """The servable, warm and caught up with the deltas.

        Raises:
          ExportError: the export is incomplete, corrupt, of another model or version, or does not run.
        """
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
        return servable

    def unload(self) -> None:
        """Stops the deltas and frees variables and tables."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._model = None
        gc.collect()
        if self._store_name:
            self._stores.release(self._store_name)
            self._store_name = ""

    def _restore(self, manifest: ExportManifest) -> SavedModelServable:
        if manifest.store:
            self._stores.prepare()
            self._store_name = manifest.store
        try:
            self._model = tf.saved_model.load(str(self._folder))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ExportError(f"{self._folder}: TensorFlow cannot load it: {str(error).splitlines()[0]}") from error
        return SavedModelServable(self._model, _signature_defs(self._folder))

    def _follow_deltas(self, manifest: ExportManifest) -> None:
        kafka = self._kafka
        if kafka is None or not manifest.delta_topic or not manifest.delta_offsets:
            return
        store = self._stores.attach(manifest.store) if manifest.store else None
        dense = _dense_variables(self._model, manifest)
        self._consumer = DeltaConsumer(
            self._name,
            DeltaApplier(store, manifest.tables, dense, manifest.delta_sequence),
            lambda: TopicReader(kafka, manifest.delta_topic, manifest.delta_offsets),
        )
        self._consumer.start()
        if not self._consumer.wait_caught_up(self._catch_up_seconds):
            _LOG.warning(
                "%s:%d: %s not read to its end within %g s; serving what is loaded while reading on",
                self._name,
                self._version,
                manifest.delta_topic,
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
