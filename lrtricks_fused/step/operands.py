"""What the tensors of a step must be, whichever backend takes it: checked before any of them is touched.

[note: What an address does not say] A kernel reads memory. A tensor may stand for other values than its memory holds
(lazily negated or conjugated, a zero tensor), for none of its own (FakeTensor, AsyncCollectiveTensor, DTensor and every
other wrapper subclass), or its storage may have been resized under it. Wrappers are refused, lazy operands go through
plain copies, and a storage that is too small is an error.
"""

import sys
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from .call import BESIDE, StepCall
from .storage import GRAD_DTYPES, PAIRS, STATE_DTYPES

MAX_STEP = 2**53  # a float64 counts to here


def is_wrapper(kind: Any) -> bool:
    """Whether tensors of this type compute by a dispatch of their own: their memory is not their value."""
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def waited(grad: Tensor) -> Tensor:
    """A gradient as a plain tensor: what a functional collective has not delivered yet is waited for.

    Raises:
        TypeError: it is another wrapper subclass.
    """
    if not is_wrapper(type(grad)):
        return grad
    collectives = sys.modules.get("torch.distributed._functional_collectives")  # there where one has been made
    if collectives is not None and isinstance(grad, collectives.AsyncCollectiveTensor):
        return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device).copy_(grad)
    raise TypeError(f"Invalid gradient of type {type(grad).__name__}: must be a plain tensor, as its parameter is")


def is_lazy(tensor: Tensor) -> bool:
    """Whether the values differ from what lies in memory."""
    return tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor()


def extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last in memory."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where the elements begin and end in memory."""
    first = tensor.data_ptr()
    return first, first + extent(tensor)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def storage_holds(tensor: Tensor) -> bool:
    """Whether the storage has the bytes that shape, strides and offset name."""
    own, before, storage = extent(tensor), tensor.storage_offset() * tensor.element_size(), tensor.untyped_storage()
    return own == 0 or (storage.data_ptr() != 0 and before + own <= storage.nbytes())


def may_overlap(tensor: Tensor) -> bool:
    """Whether two indices may name one address, which no update in place can honour; as ``csrc/cpu/strided.cpp``."""
    reach = 0  # the largest offset that the inner dimensions span
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _describe(tensor: Tensor) -> str:
    return f"of dtype {tensor.dtype} and shape {tuple(tensor.shape)}"


def _check_memory(name: str, tensor: Tensor, written: bool) -> None:
    if written and tensor._is_zerotensor():
        raise ValueError(f"Invalid {name} {_describe(tensor)}: a zero tensor cannot be written to")
    if not tensor._is_zerotensor() and not storage_holds(tensor):
        size = tensor.untyped_storage().nbytes()
        raise ValueError(f"Invalid {name} {_describe(tensor)}: its storage of {size} bytes does not hold it")
    if written and not tensor.is_contiguous() and may_overlap(tensor):
        raise ValueError(f"Invalid {name} {_describe(tensor)}: elements of it share memory")


def check_grad(param: Tensor, grad: Tensor) -> None:
    """Raises ValueError unless a gradient is dense, in memory, and matches its parameter."""
    if grad.layout is not torch.strided:
        raise ValueError(f"Invalid gradient of layout {grad.layout}: sparse gradients are not supported")
    for what in ("device", "shape"):
        of_grad, of_param = getattr(grad, what), getattr(param, what)
        if of_grad != of_param:
            raise ValueError(f"Invalid gradient of {what} {of_grad}: its parameter has {of_param}")
    if grad.dtype not in GRAD_DTYPES[param.dtype]:
        allowed = " or ".join(map(str, GRAD_DTYPES[param.dtype]))
        raise ValueError(f"Invalid gradient of dtype {grad.dtype}: its parameter has {param.dtype}: must be {allowed}")
    _check_memory("gradient", grad, written=False)


def check_param(param: Tensor) -> None:
    """Raises TypeError or ValueError unless a kernel can step the parameter."""
    if is_wrapper(type(param)):
        kind = type(param).__name__
        raise TypeError(f"Invalid parameter of type {kind}: must be a plain tensor, or a DTensor whose gradient is one")
    if param.dtype not in STATE_DTYPES:
        raise TypeError(f"Invalid parameter of dtype {param.dtype}: must be one of {', '.join(map(str, STATE_DTYPES))}")
    if param.layout is not torch.strided:
        raise ValueError(f"Invalid parameter of layout {param.layout}: must be strided")
    _check_memory("parameter", param, written=True)


def check_state(name: str, state: object, param: Tensor, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless ``state`` can be a state of ``param``, of this shape."""
    if not isinstance(state, Tensor) or is_wrapper(type(state)):
        raise TypeError(f"Invalid state {name} of type {type(state).__name__}: must be a plain tensor")
    if state.layout is not torch.strided:
        raise ValueError(f"Invalid state {name} of layout {state.layout}: must be strided")
    if state.device != param.device:
        raise ValueError(f"Invalid state {name} on {state.device}: its parameter is on {param.device}")
    if tuple(state.shape) != tuple(shape):
        raise ValueError(f"Invalid state {name} of shape {tuple(state.shape)}: must be {tuple(shape)}")
    if state.dtype not in STATE_DTYPES[param.dtype]:
        allowed = " or ".join(map(str, STATE_DTYPES[param.dtype]))
        raise ValueError(f"Invalid state {name} of dtype {state.dtype}: must be {allowed}")
    _check_memory(f"state {name}", state, written=True)


def check_mirror(mirror: object, param: Tensor) -> None:
    """Raises TypeError or ValueError unless a parameter's rounding can be written to ``mirror``."""
    if not isinstance(mirror, Tensor) or is_wrapper(type(mirror)):
        raise TypeError(f"Invalid mirror of type {type(mirror).__name__}: must be a plain tensor")
    if param.dtype != torch.float32:
        raise ValueError(f"Invalid mirror of a {param.dtype} parameter: only torch.float32 ones have one")
    if mirror.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"Invalid mirror of dtype {mirror.dtype}: must be torch.bfloat16 or torch.float16")
    if mirror.shape != param.shape or mirror.device != param.device or mirror.layout is not torch.strided:
        where = f"of shape {tuple(mirror.shape)} on {mirror.device}, {mirror.layout}"
        raise ValueError(f"Invalid mirror {where}: must be strided, {tuple(param.shape)} on {param.device}")
    _check_memory("mirror", mirror, written=True)
    if mirror.numel() and _overlap(_span(mirror), _span(param)):
        raise ValueError(f"Invalid mirror {_describe(mirror)}: it shares memory with its parameter")


def check_low(low: object, param: Tensor) -> None:
    """Raises TypeError or ValueError unless ``low`` can complete a bfloat16 parameter to its float32 master."""
    if not isinstance(low, Tensor) or is_wrapper(type(low)):
        raise TypeError(f"Invalid state param_low of type {type(low).__name__}: must be a plain tensor")
    if low.dtype != torch.int16 or low.shape != param.shape or low.device != param.device:
        where = f"on {low.device}: must be torch.int16 of shape {tuple(param.shape)} on {param.device}"
        raise ValueError(f"Invalid state param_low {_describe(low)} {where}")
    _check_memory("state param_low", low, written=True)


def is_staged(call: StepCall) -> bool:
    """Whether some checked operands are stored otherwise than kernels step them; see staged.py."""
    if call.storage is not None:
        return True
    states = next((column for column in call.states.values() if column), call.params)
    return any(
        grad.dtype != param.dtype or (param.dtype, state.dtype) not in (*PAIRS, (param.dtype, param.dtype))
        for param, grad, state in zip(call.params, call.grads, states, strict=True)
    )


def is_step_count(value: float) -> bool:
    """Whether this can be a count of steps: a whole number in [0, 2**53)."""
    return 0 <= value < MAX_STEP and value == int(value)


def check_scalar_state(name: str, state: object, param: Tensor) -> Tensor:
    """``state``, if it can be a state of ``param`` that is one number.

    Raises:
        TypeError, ValueError: it cannot.
    """
    if not isinstance(state, Tensor) or is_wrapper(type(state)):
        raise TypeError(f"Invalid state {name} of type {type(state).__name__}: must be a plain tensor")
    if state.dtype != torch.float64 or state.numel() != 1 or state.device != param.device or is_lazy(state):
        where = f"on {state.device}: must be one float64 on {param.device}"
        raise ValueError(f"Invalid state {name} {_describe(state)} {where}")
    _check_memory(f"state {name}", state, written=True)
    return state


def check_step(step: object, param: Tensor) -> None:
    """Raises TypeError or ValueError unless ``step`` can be the count of ``param``'s steps; read on the CPU only."""
    step = check_scalar_state("step", step, param)
    if step.is_cpu and not is_step_count(float(step)):
        raise ValueError(f"Invalid state step={float(step)}: must be a whole number in [0, 2**53)")


def check_identity(value: Any, where: str = "state ") -> int:
    """``value``, if it can be the 32 bits by which a parameter draws its keep decisions.

    Raises:
        ValueError: it is no int in [0, 2**32).
    """
    if type(value) is not int or not 0 <= value < 2**32:
        raise ValueError(f"Invalid {where}identity={value!r}: must be an int in [0, 2**32)")
    return value


def check_operands(call: StepCall) -> None:
    """Raises TypeError or ValueError unless every operand of the call is what the kernels take it for."""
    if torch.compiler.is_compiling():
        return  # a tracer's tensors have no memory; the op looks when it runs
    used = {name: column for name, column in call.states.items() if column}
    for identity in call.param_indices:
        check_identity(identity)
    columns = zip(call.params, call.grads, call.steps, call.maps, strict=True)
    for index, (param, grad, step, index_map) in enumerate(columns):
        check_param(param)
        check_grad(param, grad)
        if index_map is not None:
            index_map.check(param.numel())
        for name, column in used.items():
            state = column[index]
            check_state(name, state, param, call.state_shape(param))
            if state.dtype != next(iter(used.values()))[index].dtype:
                raise ValueError(f"Invalid state {name} of dtype {state.dtype}: the states of a parameter have one")
            if call.window is not None and not state.is_contiguous():
                raise ValueError(f"Invalid state {name} {_describe(state)}: must be contiguous")
        for name, column in call.scalar_states.items():
            check_scalar_state(name, column[index], param)
        check_step(step, param)
    for check, name in ((check_low, "lows"), (check_mirror, "mirrors")):
        for param, stored in zip(call.params, getattr(call.storage, name, None) or (), strict=False):
            if stored is not None:
                check(stored, param)


def operands(call: StepCall) -> Iterable[Tensor]:
    """All that the address table would point to but what is one number per parameter."""
    return chain(call.params, call.grads, *call.states.values())


def beside(call: StepCall) -> Iterable[Tensor]:
    """What is stored beside the parameters and their states."""
    stored = [getattr(call.storage, name, None) for name in BESIDE]
    return (tensor for column in stored if column for tensor in column if tensor is not None)


def written(call: StepCall) -> Iterable[Tensor]:
    """All that a step writes to."""
    columns = call.params, call.steps, *call.states.values(), *call.scalar_states.values()
    return chain(*columns, beside(call))


def shares_memory(call: StepCall) -> bool:
    """Whether what is written of one parameter may lie where something of another does.

    The later one must then see what the earlier has become: they are stepped one by one, and not at once.
    """
    if len(call.params) < 2:
        return False
    return any(_overlap(*pair) for pair in pairwise(sorted(_span(t) for t in written(call) if t.numel())))
