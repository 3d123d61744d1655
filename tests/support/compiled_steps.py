"""Steps under torch.compile, and the graphs they make."""

import warnings

import pytest
import torch
from helpers import everything, random_grads
from torch._dynamo.utils import counters

STEPS = 6
NAMES = ("lr", "keep_prob", "grad_weight")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for of_torch in (".*torch.jit.script", "The .grad attribute of a Tensor that is not a leaf"):
            warnings.filterwarnings("ignore", of_torch)
        yield
    torch.set_grad_enabled(True)  # which a compiled no_grad forgets when something raises in it
    torch.compiler.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def compiled(optimizer, **options):
    return torch.compile(optimizer.step, **{"fullgraph": True, "backend": "eager", **options})


def run(optimizer, step, between=lambda number: None):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number in range(STEPS):
        random_grads(params, number)
        step()
        between(number)
    return everything(optimizer)


def scheduled(optimizer, kind):
    """Groups whose three numbers differ at every step, as new floats or written into tensors."""
    for group in optimizer.param_groups:
        group.update({name: kind(value) for name, value in zip(NAMES, (0.01, 0.5, 1.0), strict=True)})

    def between(number):
        for group in optimizer.param_groups:
            for name in NAMES:
                if isinstance(group[name], torch.Tensor):
                    group[name].mul_(0.9)
                else:
                    group[name] *= 0.9

    return between
