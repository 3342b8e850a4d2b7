"""A run's folder: settings, metrics, and whole checkpoints with checksums."""

from flashmore.runs.checkpoint import Checkpoint
from flashmore.runs.folder import Run

__all__ = ["Checkpoint", "Run"]
