"""A run's folder: settings, metrics, and checkpoints that are replaced atomically."""

from flashmore.runs.checkpoint import Checkpoint, LossScale, State, Unevaluated
from flashmore.runs.folder import Run, locked
from flashmore.runs.settings import Settings

__all__ = ["Checkpoint", "LossScale", "Run", "Settings", "State", "Unevaluated", "locked"]
