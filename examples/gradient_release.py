"""Peak memory of a training step with and without step_in_backward: ``python -m examples.gradient_release``.

A stack of linear layers, with Adam: parameters and two states of it stay, gradients come and go. An ordinary step needs
all gradients at once; a step in the backward pass needs those of about one layer. Counted are the bytes that torch's
CPU allocator hands out and takes back, by its profiler: the memory of the process would tell of other things, too.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lrtricks_fused import Adam, step_in_backward

from .command import at_least

LAYERS, WIDTH, BATCH = 24, 512, 8


def model_of(layers: int, width: int) -> nn.Module:
    """Linear layers of width x width."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def peak_of_step(in_backward: bool, layers: int = LAYERS, width: int = WIDTH) -> tuple[int, list[Tensor]]:
    """The bytes that a step has at its peak beyond those that stay, and the parameters after it."""
    model = model_of(layers, width)
    optimizer = Adam(model.parameters(), keep_prob=0.5)
    handle = step_in_backward(model, optimizer) if in_backward else None
    inputs = torch.ones(BATCH, width)

    def step() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the states, which stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    if handle is not None:
        handle.remove()
    return peak, [param.detach() for param in model.parameters()]


def main() -> None:
    """Prints both peaks, and whether the parameters are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=at_least(1), default=LAYERS)
    parser.add_argument("--width", type=at_least(1), default=WIDTH)
    given = parser.parse_args()
    (ordinary, expected), (released, params) = (peak_of_step(kind, given.layers, given.width) for kind in (False, True))
    model = sum(param.nbytes for param in params)
    same = all(map(torch.equal, params, expected))
    print(f"parameters                     {model / 2**20:8.2f} MiB")
    print(f"peak of an ordinary step       {ordinary / 2**20:8.2f} MiB")
    print(f"peak of a step in backward     {released / 2**20:8.2f} MiB")
    print(f"the same bits in all parameters: {same}")


if __name__ == "__main__":
    main()
