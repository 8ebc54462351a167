"""Settings of the endless training run."""

from dataclasses import dataclass
from pathlib import Path

from millrace.training.state.save_schedule import DailyWindow


@dataclass(frozen=True)
class OnlineOptions:
    """Settings of `train_online`.

    Args:
      model_dir: folder of checkpoints/, exports/, events/ (TensorBoard), progress.jsonl and predictions.bin.
      audit: count in an audit table how often each source row was applied; the feed must have the same setting.
      export_seconds: between the beginnings of two exports.
      checkpoint_seconds, checkpoint_steps: between the beginnings of two checkpoints; exactly one of them.
      checkpoint_window: daily hours outside of which another period holds; with `checkpoint_seconds` only.
      keep_checkpoints: newest checkpoints that stay on disk.
      keep_checkpoint_every_seconds: the first checkpoint of each such period stays for good; None: none does.
      delta_seconds: between two deltas.
      batch_size: most rows of a step.
      max_wait_seconds: how long the first row of a batch waits for more.
      micro_batch: rows of one update within a step; 0: the whole batch.
      on_not_finite: what becomes of rows whose update is NaN or infinite: "skip" counts them, sends them to the dead
        letters and goes on; "stop" ends the process.
      resume_from_good: go on after an alarm of the guard, from a checkpoint from before what went wrong; rows of the
        train topic before this position, as `resolve_start` takes it, are passed over. None: training stands then.
      create_topics: create the train topic when it is missing, instead of refusing to start.
      namespace: of models; agents look for the model there.
      keep_exports: newest versions that stay on disk, beside those that are served or held.
      dense_seconds: between two deltas of dense variables; None: one, or more for large ones.
      wait_for_lease: wait while another trainer has `model_dir`, instead of refusing to start.
      zookeeper, zookeeper_properties: where trainers of several folders meet: address and file of settings; None: only
        trainers of this folder keep each other out before one of them publishes.
      new_model: what the folder holds may replace the model that readers know.
    """

    model_dir: Path
    audit: bool = False
    export_seconds: float = 20.0
    checkpoint_seconds: float | None = 20.0
    checkpoint_steps: int | None = None
    checkpoint_window: DailyWindow | None = None
    keep_checkpoints: int = 3
    keep_checkpoint_every_seconds: float | None = None
    delta_seconds: float = 1.0
    batch_size: int = 512
    max_wait_seconds: float = 0.05
    micro_batch: int = 64
    on_not_finite: str = "skip"
    resume_from_good: str | None = None
    create_topics: bool = False
    namespace: str = "default"
    keep_exports: int = 3
    dense_seconds: float | None = None
    wait_for_lease: bool = False
    zookeeper: str | None = None
    zookeeper_properties: str | None = None
    new_model: bool = False
