"""Offloading: a bf16 model "on the device", masters and moments "on the host": ``python -m examples.offload``.

The model computes in bfloat16. Its gradients are copied to the host as they are; one step there reads them, moves the
float32 masters, and writes their rounding to bfloat16 into pinned memory, from where it goes back to the model. Where
there is a GPU the model is on it, and the copies are ordered by its stream; else both are the CPU.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from lrtricks_fused import AdamW

from .command import at_least

WIDTH, BATCH, STEPS = 256, 32, 20


class OffloadedAdamW:
    """AdamW over float32 masters on the host, of a model in bfloat16 elsewhere."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # of the model, its master, the way back
        self.grads: list[Tensor] = []  # the way there
        named = []
        for name, param in model.named_parameters():
            pinned = param.device.type == "cuda"
            master = param.detach().to("cpu", torch.float32).requires_grad_()
            master.grad_dtype = param.dtype
            there, back = (torch.empty(param.shape, dtype=param.dtype, pin_memory=pinned) for _ in range(2))
            self.grads.append(there)
            self.pairs.append((param, master, back))
            named.append((name, master))
        self.optimizer = AdamW(named, **options)
        for _, master, mirror in self.pairs:
            self.optimizer.mirror(master, mirror)

    @torch.no_grad()
    def step(self) -> None:
        """Gradients to the host, one pass there, and the rounded parameters back."""
        for (param, master, _), grad in zip(self.pairs, self.grads, strict=True):
            master.grad = None if param.grad is None else grad.copy_(param.grad, non_blocking=True)
        for device in {param.device for param, _, _ in self.pairs if param.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # the host reads what has arrived
        self.optimizer.step()
        for param, _, mirror in self.pairs:
            param.copy_(mirror, non_blocking=True)
            param.grad = None


def train(offload: bool, steps: int = STEPS, keep_prob: float = 0.5) -> list[Tensor]:
    """The float32 masters after some steps, offloaded or by a plain optimizer of float32 copies."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).to(device, torch.bfloat16)
    inputs = torch.randn(BATCH, WIDTH).to(device, torch.bfloat16)
    options: dict[str, Any] = dict(lr=1e-3, keep_prob=keep_prob)
    if offload:
        optimizer = OffloadedAdamW(model, **options)
        masters = [master for _, master, _ in optimizer.pairs]
    else:
        masters = [param.detach().to("cpu", torch.float32).requires_grad_() for param in model.parameters()]
        names = [name for name, _ in model.named_parameters()]
        plain = AdamW(list(zip(names, masters, strict=True)), **options)
    for _ in range(steps):
        (model(inputs) - inputs).square().mean().backward()
        if offload:
            optimizer.step()
            continue
        for param, master in zip(model.parameters(), masters, strict=True):
            grad, param.grad = param.grad, None
            master.grad = None if grad is None else grad.to("cpu", torch.float32)
        plain.step()
        with torch.no_grad():
            for param, master in zip(model.parameters(), masters, strict=True):
                param.copy_(master)
    return [master.detach() for master in masters]


def main() -> None:
    """Trains both ways, and compares the masters bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least(1), default=STEPS)
    given = parser.parse_args()
    same = all(map(torch.equal, train(True, given.steps), train(False, given.steps)))
    print(f"masters after {given.steps} steps: {'the same bits' if same else 'DIFFERENT'} as float32 training")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
