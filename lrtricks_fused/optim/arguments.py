"""The arguments that all classes share, said once: type, default, check and documentation of each.

A new one is one entry of :class:`SharedArguments`. A class takes them as ``**shared: Unpack[SharedArguments]``, which
is what type checkers read; :func:`with_shared_arguments` puts them into its signature and its documentation.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from ..step.backends import check_backend
from .checks import (
    check_bool,
    check_dtype,
    check_grad_weight,
    check_lr,
    check_max_norm,
    check_range,
    check_seed,
    one_of,
)

Check = Callable[[str, Any], object]  # of a name and a value; raises ValueError or TypeError
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Argument:
    """What is said of one argument, next to its type."""

    default: Any
    check: Check | None  # None: the value alone does not tell
    doc: str
    # Every parameter group has its own, or it is an attribute of the optimizer, or only the constructor has it.
    place: Literal["group", "optimizer", "constructor"] = "group"


def between(low: float, high: float) -> Check:
    """The check that a number, or a tensor of one, is in [low, high]."""

    def check(name: str, value: Any) -> None:
        if not (type(value) is float and low <= value <= high):  # as it is nearly always, and asked at every step
            check_range(name, value, low, high)

    return check


# fmt: off
class SharedArguments(TypedDict, total=False):
    """The keywords, in the order of the signatures."""

    keep_prob: Annotated[float | Tensor, Argument(
        1.0, between(0.0, 1.0),
        "probability in [0, 1] that an element **is** updated (the paper's p); float or 0-dim tensor.")]
    grad_weight: Annotated[float | Tensor, Argument(
        1.0, None,  # checked by the optimizer, which knows whether negative ones are allowed
        "factor on the gradient, applied before weight decay; float or 0-dim tensor; >= 0 unless the optimizer's "
        "attribute ``allow_negative_grad_weight`` is True.")]
    centralize: Annotated[bool, Argument(
        False, check_bool,
        "subtract from the gradient of a parameter of several dimensions its mean over all of them but the first, "
        "before anything else (gradient centralization).")]
    seed: Annotated[int, Argument(
        0, check_seed, "64-bit seed of the keep decisions; the same on all replicas.")]
    backend: Annotated[str, Argument(
        "auto", lambda _, backend: check_backend(backend), '"auto", "native", "triton" or "reference".',
        place="optimizer")]
    state_dtype: Annotated[torch.dtype | None, Argument(
        None, check_dtype,  # and with each parameter, whose dtype decides
        "dtype of the states of bf16 and fp16 parameters; None is torch.float32. torch.bfloat16 is also that of the "
        "states of fp32 parameters.", place="optimizer")]
    max_norm: Annotated[float | None, Argument(
        None, check_max_norm,
        "largest L2 norm of all gradients together, to which a step scales them as "
        "torch.nn.utils.clip_grad_norm_ would; ``.grad`` stays as it is. None does not clip.", place="optimizer")]
    track_metrics: Annotated[bool, Argument(
        False, check_bool,
        "sum up in every step what ``metrics()`` tells of it; may be set at any time.", place="optimizer")]
    master: Annotated[Literal["split"] | None, Argument(
        None, None,  # checked where it is kept
        '"split" completes bf16 parameters by an int16 state to fp32 masters, which the steps are taken in.',
        place="constructor")]
    rounding: Annotated[Literal["nearest", "stochastic"], Argument(
        "nearest", one_of("nearest", "stochastic"),
        "of 16-bit parameters without a master: to nearest even, or up and down by bits that are drawn as the keep "
        "decisions are, right on average.", place="optimizer")]
    state_rounding: Annotated[Literal["nearest", "stochastic"], Argument(
        "nearest", one_of("nearest", "stochastic"), "the same of 16-bit states.", place="optimizer")]
    track_changes: Annotated[bool, Argument(
        False, check_bool,
        "keep a bit per element that says whether the stored parameter has changed, see ``pop_changes()``.",
        place="optimizer")]
    names: Annotated[nn.Module | Iterable[tuple[str, Tensor]] | None, Argument(
        None, None,  # checked when it is read
        "the model, or pairs of name and parameter, where ``params`` has no names itself: the keep decisions of a "
        "parameter then follow its name, whatever optimizer, group, order or process it is in; not kept.",
        place="constructor")]
# fmt: on


_TYPES = get_type_hints(SharedArguments, include_extras=True)
ARGUMENTS: dict[str, Argument] = {name: annotated.__metadata__[0] for name, annotated in _TYPES.items()}
OF_GROUP = tuple(name for name, argument in ARGUMENTS.items() if argument.place == "group")
OF_OPTIMIZER = tuple(name for name, argument in ARGUMENTS.items() if argument.place == "optimizer")
# Of these a group may have its ``names``, the model.
NOT_OF_GROUP = {name for name, argument in ARGUMENTS.items() if argument.place != "group"} - {"names"}
GROUP_CHECKS = tuple((name, check) for name in OF_GROUP if (check := ARGUMENTS[name].check) is not None)
_check_keep_prob = dict(GROUP_CHECKS)["keep_prob"]
IN_TENSORS = ("lr", "keep_prob", "grad_weight")  # numbers that a step reads where a tensor holds them


def check_number(name: str, value: Any, allow_negative: bool) -> None:
    """Raises ValueError or TypeError unless ``value`` is valid for one of IN_TENSORS.

    Args:
        name: of IN_TENSORS.
        value: a float or a tensor.
        allow_negative: whether gradient weights may be below 0.
    """
    if name == "lr":
        check_lr(value)
    elif name == "keep_prob":
        _check_keep_prob(name, value)
    else:
        check_grad_weight(value, allow_negative)


# What is said of torch.optim's own arguments, before and after those that only some classes have.
TORCH_FIRST = {
    "params": "parameters or groups, as for torch.optim.",
    "lr": "learning rate, >= 0; a float or a tensor of one element.",
}
TORCH_FLAGS = {
    "maximize": "ascend instead of descend.",
    "foreach": "accepted; it chooses nothing: the parameters of a group are stepped together in any case.",
    "capturable": "accepted; it chooses nothing: a step can be captured in a CUDA graph in any case.",
    "fused": "True has torch.amp.GradScaler leave unscaling and skipping to the step, as torch.optim.Adam's does; a "
    "step is fused in any case.",
    "differentiable": "must be False.",
}
RAISES = "    ValueError, TypeError: an argument is out of range; the message names it."
WIDTH = 112  # of a line, without the indentation that help() adds


def completed(kind: type, given: SharedArguments) -> dict[str, Any]:
    """The shared arguments that a constructor was given, and the defaults of the others.

    Raises:
        TypeError: one of another name, with Python's own words.
    """
    for name in given:
        if name not in ARGUMENTS:
            raise TypeError(f"{kind.__qualname__}.__init__() got an unexpected keyword argument {name!r}")
    return {**{name: argument.default for name, argument in ARGUMENTS.items()}, **given}


def with_shared_arguments(cls: Class) -> Class:
    """The class, whose signature and documentation now tell the shared arguments, too.

    Its constructor ends in ``**shared: Unpack[SharedArguments]``; its documentation has a section of its own arguments.
    """
    init: Any = vars(cls)["__init__"]
    signature = inspect.signature(init)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=argument.default, annotation=_TYPES[name].__origin__
        )
        for name, argument in ARGUMENTS.items()
    ]
    init.__signature__ = signature.replace(parameters=[*own, *shared])
    if cls.__doc__:  # not under python -OO
        cls.__doc__ = _documentation(inspect.cleandoc(cls.__doc__), {parameter.name for parameter in own})
    return cls


def _documentation(text: str, own: Iterable[str]) -> str:
    """Google's sections of a docstring, with what all classes say alike around what the class says itself."""
    start, _, rest = text.partition("\n\nArgs:\n")
    arguments, _, raises = rest.partition("\n\nRaises:\n")
    flags = {name: doc for name, doc in TORCH_FLAGS.items() if name in own}
    after = {**flags, **{name: argument.doc for name, argument in ARGUMENTS.items()}}
    lines = [*map(_entry, TORCH_FIRST.items()), arguments.rstrip(), *map(_entry, after.items())]
    return "\n".join([start, "", "Args:", *lines, "", "Raises:", raises or RAISES]) + "\n"


def _entry(item: tuple[str, str]) -> str:
    text = ": ".join(item)
    return textwrap.fill(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
