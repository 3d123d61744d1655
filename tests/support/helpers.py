"""What several test files share: bitwise comparison, snapshots of an optimizer, training loops.

Nothing in here knows a formula.
"""

import copy
import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from lrtricks_fused.step import table
from lrtricks_fused.step.rule import RULES

# States of one number per parameter, whatever the parameter is: of float64, and the identity, an int.
SCALAR_STATES = {"step", "identity", *(name for rule in RULES.values() for name, _ in rule.scalar_states)}
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: Tensor | int, right: Tensor | int) -> bool:
    """Equal dtype, shape and bits; any NaN equals any NaN, because IEEE does not fix their payload."""
    left, right = torch.as_tensor(left), torch.as_tensor(right)
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left, right = left.detach().contiguous(), right.detach().contiguous()
    if not left.is_floating_point():
        return torch.equal(left, right)
    integer = _INTEGER[left.element_size()]
    equal = left.view(integer) == right.view(integer)
    return bool((equal | (left.isnan() & right.isnan())).all())


def assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    """Both lists hold the same bits; tells where they do not."""
    assert len(left) == len(right)
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        if not same_bits(a, b):
            where = (a != b).nonzero()[:5].tolist() if a.shape == b.shape else "shapes"
            raise AssertionError(
                f"tensor {i}: {a.dtype} {tuple(a.shape)} differs from {b.dtype} {tuple(b.shape)} at {where}:\n{a}\n{b}"
            )


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters and their states, in a fixed order."""
    tensors = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            tensors.append(param.detach())
            state = optimizer.state.get(param, {})
            tensors += [torch.as_tensor(state[name]) for name in sorted(state)]  # an identity is an int
    return tensors


def call_of(optimizer: Any) -> Any:
    """What a step of the optimizer's first group would hand to its backend."""
    group, new = optimizer.param_groups[0], {}
    (part,) = optimizer._gather(group)
    (call,) = optimizer._calls(part, new)
    for param, states in new.items():
        optimizer.state[param].update(states)
    return call


class Snapshot:
    """What a failed call must leave as it was: parameters, gradients, states, groups."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.tensors = [tensor.clone() for tensor in everything(optimizer)]
        self.names = {id(param): sorted(state) for param, state in optimizer.state.items()}
        self.groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self.params = [list(map(id, group["params"])) for group in optimizer.param_groups]
        self.grads = [None if g is None else g.clone() for g in self._grads()]

    def _grads(self) -> list[Tensor | None]:
        return [param.grad for group in self.optimizer.param_groups for param in group["params"]]

    def assert_unchanged(self) -> None:
        """Raises AssertionError if anything differs."""
        now = Snapshot(self.optimizer)
        assert now.params == self.params
        assert now.groups == self.groups
        assert now.names == self.names
        assert_same_bits(now.tensors, self.tensors)
        assert [g is None for g in now.grads] == [g is None for g in self.grads]
        assert_same_bits([g for g in now.grads if g is not None], [g for g in self.grads if g is not None])


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """N(0, 1) parameters."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def random_grads(params: list[Tensor], step: int) -> None:
    """Gradients N(0, 1) that depend on the step only, so that two runs see the same ones."""
    generator = torch.Generator().manual_seed(500 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)


def train(optimizer: torch.optim.Optimizer, steps: range, **attributes: Any) -> None:
    """Step ``optimizer`` with the gradients of the given steps."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in steps:
        random_grads(params, step)
        optimizer.step()


def clones(params: list[Tensor]) -> list[Tensor]:
    """Independent leaves of the same values."""
    return [param.detach().clone().requires_grad_() for param in params]


def check_left_alone(case: Any, count: float, run: Any) -> None:
    """A kernel that cannot raise leaves a tensor alone whose count of steps is none; others step, and have a slope."""
    optimizer = case.make(leaves((9000,), (9000,)), keep_prob=0.5, backend="reference")
    params = optimizer.param_groups[0]["params"]
    random_grads(params, 0)
    call = call_of(optimizer)
    call.sums = torch.zeros((), dtype=torch.float64)
    call.steps[1].fill_(count)
    before = [tensor.clone() for tensor in [params[1], *(column[1] for column in call.states.values() if column)]]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "check_operands", lambda call: None)  # which reads no count on a device
        run(call)
    after = [params[1].detach(), *(column[1] for column in call.states.values() if column)]
    assert_same_bits(after, before)
    assert same_bits(call.steps[1], torch.tensor(count, dtype=torch.float64))
    alone = case.make(leaves((9000,)), keep_prob=0.5, backend="reference")
    alone.param_groups[0]["params"][0].grad = params[0].grad
    slopes: dict[torch.device, torch.Tensor] = {}
    with alone.add_slopes_to(slopes):
        alone.step()
    assert_same_bits([params[0], call.sums], [alone.param_groups[0]["params"][0], *slopes.values()])


def shrink_in_place(tensor: Tensor) -> None:
    """Take a byte from the storage of 5,000 numbers, and leave it where it is, as an allocator may."""
    storage, size = tensor.untyped_storage(), tensor.untyped_storage().nbytes()
    words = (ctypes.c_int64 * 10).from_address(storage._cdata)  # of c10::StorageImpl
    (place,) = (number for number, word in enumerate(words) if word == size)
    words[place] = size - 1
    assert storage.nbytes() == size - 1
