"""Checks of hyper-parameters, groups and parameters: errors that name the argument and the value."""

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..step.operands import STATE_DTYPES, is_wrapper

FLAGS = ("amsgrad", "centered", "decoupled_weight_decay", "maximize", "nesterov")
ACCEPTED = ("capturable", "differentiable", "foreach", "fused")  # flags of torch.optim, which may be None


def plain(value: Any) -> Any:
    """Arrays and scalars of numpy and torch as Python's lists and numbers, which a checkpoint can hold.

    A tensor that has no numbers (on meta, a wrapper) stays what it is.
    """
    if isinstance(value, Tensor) and (value.is_meta or is_wrapper(type(value))):
        return value
    return value.tolist() if hasattr(value, "tolist") else value


def as_python(value: Any) -> Any:
    """A hyper-parameter as one of Python's own types, or a tensor: what torch.load takes for data."""
    if type(value) in (int, float, bool, str, type(None)) or isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_python, value)) if type(value) in (list, tuple) else value
    number = plain(value)
    return float(number) if isinstance(number, Real) and not isinstance(number, int) else number


def check_real(name: str, value: Any) -> float:
    """``value`` as a Python number.

    Raises:
        TypeError: it is no real one, of any library, and does not hold just one.
        ValueError: it is too large for a float.
    """
    number = plain(value)
    if not isinstance(number, Real):
        raise TypeError(f"Invalid {name}={value!r}: must be a float")
    _check_size(name, number)
    return number if type(number) is int or type(number) is float else float(number)


def _check_size(name: str, number: object) -> None:
    """Raises ValueError for an int that no float can hold; asks nothing that a tracer's int does not know."""
    if isinstance(number, int) and abs(number) > 2**1023:
        raise ValueError(f"Invalid {name} of {len(hex(number)) * 4} bits: too large for a float")


def check_count(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an int; raises TypeError unless it is one, no bool; ValueError unless least <= value <= most."""
    count = plain(value)
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"Invalid {name}={value!r}: must be an int")
    count = operator.index(count)
    if count < least:
        raise ValueError(f"Invalid {name}={count}: must be >= {least}")
    if count > most:
        raise ValueError(f"Invalid {name}={count}: must be <= {most}")
    return count


OF_SCALER = "grad_scale", "found_inf"  # attributes that GradScaler sets for a step, and takes away after it


def check_scalar(name: str, value: Tensor, or_float: str = "") -> None:
    """Raises TypeError or ValueError unless a tensor has one real number."""
    kind = type(value)
    if is_wrapper(kind):
        raise TypeError(f"Invalid {name} of type {kind.__name__}: must be {or_float}a plain tensor")
    if value.numel() != 1 or value.is_complex() or value.is_quantized or value.layout is not torch.strided:
        what = "shape" if value.numel() != 1 else "layout" if value.layout is not torch.strided else "dtype"
        got = tuple(value.shape) if what == "shape" else getattr(value, what)
        raise ValueError(f"Invalid {name} of {what} {got}: must be {or_float}a real tensor of one element")
    if value.is_meta:
        raise ValueError(f"Invalid {name} on meta: must have a value")


def of_scaler(optimizer: Any) -> dict[str, Any]:
    """What a GradScaler tells a step by attributes of the optimizer.

    Raises:
        TypeError, ValueError: one of them is no tensor of one number.
    """
    given = {name: getattr(optimizer, name, None) for name in OF_SCALER}
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"Invalid {name}={value!r}: must be a tensor, as GradScaler has it")
        check_scalar(name, value)
    return given


def check_range(name: str, value: float | Tensor, low: float, high: float, brackets: str = "[]") -> None:
    """Raises ValueError unless low <= value <= high (with ``brackets="[)"``: < high); NaN is refused.

    Tensors that are not on the CPU are not read: that would synchronise with the device.
    """
    if type(value) is float or type(value) is int:
        pass  # as nearly always, and at every step
    elif isinstance(value, Tensor):
        check_scalar(name, value, "a float or ")
        if value.device.type != "cpu" or torch.compiler.is_compiling():  # see compiled.py, which looks later
            return
        value = float(value)
    else:
        value = check_real(name, value)
    below_high = value < high if brackets[1] == ")" else value <= high
    if not (low <= value and below_high):
        wanted = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{brackets[1]}"
        raise ValueError(f"Invalid {name}={value}: must be {wanted}")
    _check_size(name, value)


def check_lr(value: float | Tensor) -> None:
    """Raises ValueError unless ``value`` is a learning rate."""
    check_range("lr", value, 0.0, math.inf)


def check_grad_weight(value: float | Tensor, allow_negative: bool) -> None:
    """Raises ValueError unless ``value`` is a gradient weight."""
    check_range("grad_weight", value, -math.inf if allow_negative else 0.0, math.inf)


def is_negative(value: float | Tensor) -> bool:
    """Whether a checked number is below 0; of tensors that are not on the CPU, which are not read, it says no."""
    return not (isinstance(value, Tensor) and value.device.type != "cpu") and float(value) < 0


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is true or false, in Python's or numpy's way, or as 0 or 1."""
    number = plain(value)
    if isinstance(number, Tensor) or number not in (False, True):
        raise TypeError(f"Invalid {name}={value!r}: must be a bool")


def check_bool(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is Python's or numpy's True or False."""
    if value is not True and value is not False and not isinstance(plain(value), bool):
        raise TypeError(f"Invalid {name}={value!r}: must be a bool")


def as_seed(seed: Any) -> int:
    """``seed`` as an int; raises ValueError unless it is one in [0, 2**64), of any library."""
    if type(seed) is int and 0 <= seed < 2**64:
        return seed
    number = plain(seed)
    if isinstance(number, Tensor) or not hasattr(number, "__index__") or not 0 <= operator.index(number) < 2**64:
        raise ValueError(f"Invalid seed={seed!r}: must be an int in [0, 2**64)")
    return operator.index(number)


def check_seed(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a seed."""
    as_seed(value)


def one_of(*allowed: Any) -> Callable[[str, Any], None]:
    """The check that an argument is one of these."""

    def check(name: str, value: Any) -> None:
        if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
            raise ValueError(f"Invalid {name}={value!r}: must be {' or '.join(map(repr, allowed))}")

    return check


def check_dtype(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is None or a dtype of torch."""
    if value is not None and not isinstance(value, torch.dtype):
        raise TypeError(f"Invalid {name}={value!r}: must be a torch.dtype")


def check_max_norm(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless ``value`` is None or a number that is at least 0; it is read on the CPU."""
    if value is not None:
        check_range(name, value, 0.0, math.inf)
        if isinstance(value, Tensor) and not value.is_cpu:
            raise ValueError(f"Invalid {name} on {value.device}: must be on the CPU")


def check_group(group: dict[str, Any]) -> None:
    """Raises ValueError or TypeError unless what torch.optim's rules share is valid."""
    check_lr(group["lr"])
    check_range("weight_decay", group["weight_decay"], 0.0, math.inf)
    for name in FLAGS:
        value = group.get(name, False)
        if value is not True and value is not False:
            check_flag(name, value)
    for name in ACCEPTED:
        value = group.get(name)
        if value is not True and value is not False and value is not None:
            check_flag(name, value)
    if group.get("differentiable"):
        raise ValueError("Invalid differentiable=True: a fused step cannot be differentiated through")


def check_kind(param: Any) -> None:
    """Raises TypeError for a tensor subclass that is stepped by dispatch: its memory is not its value."""
    if isinstance(param, Tensor) and is_wrapper(type(param)):
        raise TypeError(f"Invalid parameter of type {type(param).__name__}: must be a plain tensor or a DTensor")


def check_param(param: Any, state_dtype: torch.dtype | None) -> None:
    """Raises TypeError or ValueError unless a kernel exists for the parameter and the dtype of its states."""
    if not isinstance(param, Tensor):
        return  # torch's own error
    if param.dtype not in STATE_DTYPES:
        raise TypeError(f"Invalid parameter of dtype {param.dtype}: must be one of {', '.join(map(str, STATE_DTYPES))}")
    if state_dtype is not None and param.dtype.itemsize == 2 and state_dtype not in STATE_DTYPES[param.dtype]:
        raise ValueError(
            f"Invalid state_dtype={state_dtype} for a {param.dtype} parameter: must be torch.float32 or {param.dtype}"
        )
