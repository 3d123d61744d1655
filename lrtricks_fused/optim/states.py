"""The states of new parameters: what they start from, in which dtype."""

from typing import Any

import torch
from torch import Tensor

from ..step.operands import check_step
from ..step.rule import RULES
from ..step.storage import STATE_DTYPES
from .groups import Group, GroupedOptimizer
from .shards import is_dtensor, local, placed


class StatefulOptimizer(GroupedOptimizer):
    """What all optimizers share of how states begin."""

    def _state_dtype_of(self, param: Tensor) -> torch.dtype:
        allowed = STATE_DTYPES.get(param.dtype, (param.dtype,))  # a frozen parameter may be of any dtype
        return self.state_dtype if self.state_dtype in allowed else allowed[0]

    def _new_states(self, group: Group, param: Tensor, names: list[str]) -> dict[str, Any]:
        """What is missing of the parameter's tensors: zeros, and the numbers that scalar states start from.

        Raises:
            ValueError: a state is missing that the steps taken have advanced: a new one would be another.
        """
        state = self.state.get(param, {})
        self._check_missing(state, param, ["step", *names], RULES[self._rule(group)].optional_states)
        # float64, and not torch.optim's float32, which would count to 2**24 only.
        scalars = {"step": 0.0, **self._scalar_states(group)}
        new: dict[str, Any] = {}
        for name in ("step", *names):
            if name in state:
                continue
            if name in scalars:
                new[name] = torch.full((), scalars[name], dtype=torch.float64, device=param.device)
                continue
            own, dtype = local(param), self._state_dtype_of(param)
            shape = self._state_shape(group, name, own)
            if shape == own.shape:
                zeros = torch.zeros_like(own, dtype=dtype, memory_format=torch.preserve_format)
            else:
                zeros = torch.zeros(shape, dtype=dtype, device=param.device)
            new[name] = placed(zeros, param) if is_dtensor(param) else zeros
        return new

    @staticmethod
    def _check_missing(state: dict[str, Any], param: Tensor, names: list[str], optional: tuple[str, ...]) -> None:
        """Raises ValueError where some of these states are there, and others, which steps have advanced, are not."""
        present = [name for name in names if name in state]
        lost = [name for name in names if name not in state and name not in optional]
        if lost and "step" in present:
            check_step(state["step"], param)
        if lost and present and not (present == ["step"] and not state["step"]):
            shape = tuple(param.shape)
            raise ValueError(
                f"Invalid state of a parameter of shape {shape}: it has {', '.join(present)}, but no {', '.join(lost)}"
            )
