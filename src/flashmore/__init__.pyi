from .backends.contract import attention, describe_call
from .backends.explain import explain
from .config import TrainConfig
from .errors import FlashmoreError
from .generation.options import GenerateOptions
from .generation.sample import generate, score
from .generation.text import continue_text
from .rules import AttentionCall
from .runs import Run
from .share.maps import attention_maps
from .share.page import page
from .training.loop import Observer, resume, train
from .upgrade.find import find_sites

__all__ = [
    "AttentionCall",
    "FlashmoreError",
    "GenerateOptions",
    "Observer",
    "Run",
    "TrainConfig",
    "attention",
    "attention_maps",
    "continue_text",
    "describe_call",
    "explain",
    "find_sites",
    "generate",
    "page",
    "resume",
    "score",
    "train",
]
