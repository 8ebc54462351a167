"""What a modeller writes: `from millrace.training.task import Guard, Head, LabelRule, SparseFeature, Task`."""

from millrace.training.task.guard import Guard
from millrace.training.task.task import Head, SparseFeature, Task, load_task
from millrace.transforms.feed.config import LabelRule

__all__ = ["Guard", "Head", "LabelRule", "SparseFeature", "Task", "load_task"]
