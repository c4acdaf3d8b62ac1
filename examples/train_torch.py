"""Trains a fresh PyTorch network on a distilled set: python train_torch.py FOLDER"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

folder = Path(sys.argv[1])
data = load_file(folder / "distilled.safetensors")
x, y, lr = data["x"].float(), data["y"].float(), data["lr"]
card = json.loads((folder / "card.json").read_text())
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr, eps=1e-4),  # close to ours
}


class TextCNN(torch.nn.Module):
    def __init__(self, width, classes, sizes=(2, 3), filters=128):
        super().__init__()
        convs = [torch.nn.Conv1d(width, filters, k, padding=k - 1) for k in sizes]
        self.convs = torch.nn.ModuleList(convs)
        self.out = torch.nn.Linear(filters * len(sizes), classes)

    def forward(self, x):  # word vectors [examples, tokens, width]
        pooled = [conv(x.mT).amax(-1).relu() for conv in self.convs]
        return self.out(torch.cat(pooled, -1))


def mean_loss():
    with torch.no_grad():
        return F.cross_entropy(model(x.flatten(0, 1)), y.flatten(0, 1)).item()


torch.manual_seed(0)
model = TextCNN(x.shape[-1], y.shape[-1])
make = OPTIMIZERS[card.get("inner_optimizer", "sgd")]
optimizer = make(model.parameters(), lr=1.0)
print(f"loss before: {mean_loss():.4f}")
for step_sizes in lr:  # E passes
    for batch, labels, step_size in zip(x, y, step_sizes, strict=True):  # S minibatches
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        optimizer.param_groups[0]["lr"] = step_size.item()
        optimizer.step()
print(f"loss after: {mean_loss():.4f}")
