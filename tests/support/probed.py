"""What the stability probe is tried on."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from lrtricks_fused import StabilityProbe, StabilityReport


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mse(output, target):
    return F.mse_loss(output, target)


def network() -> nn.Module:
    """Everything a forward may disturb: statistics, dropout, an embedding that renormalises its own weights."""
    torch.manual_seed(3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 6, max_norm=0.5)
            self.first = nn.Linear(6, 8)
            self.norm = nn.BatchNorm1d(8)
            self.act = nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.5)
            self.last = nn.Linear(8, 3)

        def forward(self, index):
            return self.last(self.drop(self.act(self.norm(self.first(self.table(index))))))

    return Net()


class Constant(nn.Module):
    """Its logits are its parameter."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits) if isinstance(logits, list) else logits.clone())

    def forward(self, _):
        return self.logits * 1


INDEX, LABELS = torch.tensor([0, 3, 3, 9, 5, 1, 7]), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def row(report: StabilityReport, layer: str) -> dict:
    return next(row for row in report.layers if row["layer"] == layer)


def compare(model, inputs, change, loss_fn=mse, targets=None, **options) -> StabilityReport:
    """The report of a change."""
    if targets is None:
        with torch.no_grad():
            targets = torch.zeros_like(copy.deepcopy(model)(inputs))
    probe = StabilityProbe(model, inputs, loss_fn, targets, **options)
    before = probe.snapshot()
    with torch.no_grad():
        change()
    return probe.compare(before, probe.snapshot())
