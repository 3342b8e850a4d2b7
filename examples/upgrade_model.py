"""Rewrite the attention in a model file: show the changes, then test and write them.

python examples/upgrade_model.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = """\
import math
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("seen", torch.tril(torch.ones(64, 64)))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.seen[:T, :T] == 0, float("-inf"))
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return (weights @ v).transpose(1, 2).reshape(B, T, C)


def with_weights(q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1)
    return weights @ v, weights
"""


def run(folder: Path, *words: str) -> None:
    """Run a command as a user does, and print what it prints and its exit code."""
    print("$ flashmore", *words)
    command = [sys.executable, "-m", "flashmore", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(f"{done.stdout}exit code {done.returncode}\n")


with tempfile.TemporaryDirectory() as name:
    model = Path(name, "model.py")
    model.write_text(MODEL, encoding="utf-8")
    run(model.parent, "upgrade", "model.py")
    run(model.parent, "upgrade", "model.py", "--write")
    run(model.parent, "upgrade", "model.py")
    print(model.read_text(encoding="utf-8"))
