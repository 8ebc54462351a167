"""Small exports as the trainer lays them out: a bias and a version, no tables."""

import json
import time
from pathlib import Path

import tensorflow as tf

from runtime.checksum import crc32c_of_file

MODEL = "tiny"


class TinyModel(tf.Module):
    """click = bias for every row; version = the version for every row."""

    def __init__(self, bias: float, version: int) -> None:
        super().__init__()
        self.bias = tf.Variable([bias], dtype=tf.float32)
        self.dense_variables = [self.bias]
        self._version = version

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "user_id"),
            tf.TensorSpec([None], tf.int64, "item_id"),
            tf.TensorSpec([None], tf.string, "device"),
        ]
    )
    def score(self, user_id: tf.Tensor, item_id: tf.Tensor, device: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.cast(user_id + item_id, tf.float32) * 0.0 + tf.cast(tf.strings.length(device), tf.float32) * 0.0
        return {"click": rows + self.bias, "version": tf.cast(rows, tf.int64) + self._version}


def write_export(
    base_path: Path,
    version: int,
    bias: float = 0.0,
    delta_topic: str = "",
    delta_offset: int = 0,
    delta_sequence: int = 0,
    model: str = MODEL,
) -> Path:
    """Writes one version below `base_path` as an exporter does: under another name, then renamed; returns its folder."""
    temporary = base_path / f"temp-{version}"
    tiny = TinyModel(bias, version)
    tf.saved_model.save(tiny, str(temporary), signatures={"serving_default": tiny.score})
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {
        "schema_version": 1,
        "model_name": model,
        "version": version,
        "global_step": version,
        "store": "",
        "tables": [],
        "dense_variables": ["bias"],
        "delta_topic": delta_topic,
        "delta_offsets": {"0": delta_offset} if delta_topic else {},
        "delta_sequence": delta_sequence,
        "created_at_ms": time.time_ns() // 1_000_000,
        "signature": {"inputs": {}, "outputs": []},
        "files": [
            {
                "path": str(path.relative_to(temporary)),
                "size_bytes": path.stat().st_size,
                "crc32c": crc32c_of_file(path),
            }
            for path in files
        ],
    }
    (temporary / "assets.extra").mkdir()
    (temporary / "assets.extra" / "millrace.json").write_text(json.dumps(manifest))
    return temporary.rename(base_path / str(version))
