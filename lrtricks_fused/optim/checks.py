"""Checks of hyper-parameters, groups, parameters and gradients: errors that name the argument and the value."""

import math
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

_MATCH = ("dtype", "device", "shape")
PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_range(name: str, value: float | Tensor, low: float, high: float, brackets: str = "[]") -> None:
    """Raises ValueError unless low <= value <= high (with ``brackets="[)"``: < high); NaN is refused.

    Tensors that are not on the CPU are not read: that would synchronise with the device.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            shape = tuple(value.shape)
            raise ValueError(f"Invalid {name} of shape {shape}: must be a float or a tensor of one element")
        if value.device.type != "cpu":
            return
        value = float(value)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"Invalid {name}={value!r}: must be a float")
    below_high = value < high if brackets[1] == ")" else value <= high
    if not (low <= value and below_high):
        wanted = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{brackets[1]}"
        raise ValueError(f"Invalid {name}={value}: must be {wanted}")


def check_group(group: dict[str, Any]) -> None:
    """Raises ValueError or TypeError unless the hyper-parameters that all rules share are valid."""
    check_range("lr", group["lr"], 0.0, math.inf)
    check_range("weight_decay", group["weight_decay"], 0.0, math.inf)
    check_range("keep_prob", group["keep_prob"], 0.0, 1.0)
    lowest = -math.inf if group.get("allow_negative_grad_weight", False) else 0.0  # set by GradientWeight
    check_range("grad_weight", group["grad_weight"], lowest, math.inf)
    if not isinstance(group["centralize"], bool):
        raise TypeError(f"Invalid centralize={group['centralize']!r}: must be a bool")
    seed = group["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"Invalid seed={seed!r}: must be an int in [0, 2**64)")
    if group.get("differentiable"):
        raise ValueError("Invalid differentiable=True: a fused step cannot be differentiated through")


def check_param(param: Any, state_dtype: torch.dtype | None) -> None:
    """Raises TypeError or ValueError unless a kernel exists for the parameter and the dtype of its states."""
    if not isinstance(param, Tensor):
        return  # torch's own error
    if param.dtype not in PARAM_DTYPES:
        raise TypeError(f"Invalid parameter of dtype {param.dtype}: must be one of {PARAM_DTYPES}")
    if state_dtype not in (None, torch.float32, param.dtype) and param.dtype.itemsize == 2:
        raise ValueError(
            f"Invalid state_dtype={state_dtype} for a {param.dtype} parameter: must be torch.float32 or {param.dtype}"
        )


def check_grads(params: list[Tensor], grads: list[Tensor]) -> None:
    """Raises ValueError unless every gradient is dense and matches its parameter."""
    matching = attrgetter(*_MATCH)
    if list(map(matching, grads)) == list(map(matching, params)) and all(g.layout is torch.strided for g in grads):
        return  # as nearly always; the rest finds which one it is
    for param, grad in zip(params, grads, strict=True):
        if grad.layout is not torch.strided:
            raise ValueError(f"Invalid gradient of layout {grad.layout}: sparse gradients are not supported")
        for what in _MATCH:
            of_grad, of_param = getattr(grad, what), getattr(param, what)
            if of_grad != of_param:
                raise ValueError(f"Invalid gradient of {what} {of_grad}: its parameter has {of_param}")
