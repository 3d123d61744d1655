"""The mask a real native step draws: which elements of a zero parameter an SGD step of lr 1 moved.

Fast enough for 1e7 elements per step, and it is the kernel itself that answers.
"""

import torch
from torch import Tensor


def native_mask(numel: int, keep_prob: float, seed: int = 0, step: int = 1, param: int = 0) -> Tensor:
    """Boolean mask of elements moved by the native op at the given step count and parameter index."""
    values = torch.zeros(numel)
    torch.ops.lrtricks_fused.sgd_(
        [values], [torch.ones(1).expand(numel)], [], [torch.tensor(step - 1.0, dtype=torch.float64)], [param],
        momentum=0.0, dampening=0.0, nesterov=False, lr=1.0, weight_decay=0.0, decoupled_weight_decay=False,
        maximize=False, keep_prob=keep_prob, grad_weight=1.0, seed=seed - (seed >> 63 << 64),
    )  # fmt: skip
    return values != 0
