"""A compiled step: one op of its own in the graph, which takes an ordinary step whenever the graph runs.

[note: What a graph holds] torch.compile traces how a step is made up: groups, states that are missing, gradients. The
calls themselves go into one op, ``lrtricks_fused::step_``, so that no backend breaks the graph, and what can only be
seen in memory (addresses, layouts, values of tensors) is looked at when the graph runs. A float that has changed
between two steps is an input of the graph from then on, as a tensor: it reaches the op in ``numbers``; an argument of
type float would have to be a constant. All else is in ``layout``, a text, so that graphs can be kept.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any
from weakref import WeakValueDictionary, finalize, ref

import torch
from torch import Tensor
from torch._guards import CompileContext

from ..step.backends import prepare
from ..step.call import StepCall, Storage
from ..step.keep import IndexMap
from ..step.table import forget
from .arguments import IN_TENSORS, check_number
from .clipping import Clipping, Places

_PACKED = tuple(
    field.name
    for field in fields(StepCall)
    if field.name
    not in ("clip", "tables", "table_key", "alone", "prepared", "table", "copies", "norms", "pieces", "staged")
)
_OF_STORAGE = tuple(field.name for field in fields(Storage))
_WRITTEN = {"params", "states", "scalar_states", "steps", "sums", "storage"}
_POOLS = ("written", "read", "numbers", "integers")
_REFERENCE = "$"  # the key of a JSON object that names an entry, or a range of entries, of a pool

_last_traced = ""  # the graph that is being made, or was the last, by torch's number
_serials = itertools.count()
_optimizers: WeakValueDictionary[str, Any] = WeakValueDictionary()


def enter(optimizer: Any) -> None:
    """Give an optimizer the name by which its graphs find its tables: a text, which a guard takes for a constant."""
    optimizer._serial = str(next(_serials))
    _optimizers[optimizer._serial] = optimizer


# -- while a graph is made -------------------------------------------------------------------------------------


def begin_graph(serial: str) -> None:
    """What is done outside the graph, before a step is traced.

    The states are made, so that one graph has all steps, unless the trace has looked at them already, or something is
    invalid, whose errors the step names; those of a step that is refused when the graph runs stay, as none was taken.
    """
    from torch._dynamo import symbolic_convert  # which takes a second, and is there when this is called

    optimizer = _optimizers[serial]
    with contextlib.suppress(AttributeError):  # all of it private, and what is lost without it is a graph more
        output = symbolic_convert.InstructionTranslator.current_tx().output
        _make_what_lacks(optimizer, output.side_effects.id_to_variable)
        output.add_graph_finalizer(partial(_let_go_with, ref(optimizer)))
        _forget_constants(symbolic_convert.TensorifyState)


vars(begin_graph)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result would import torch._dynamo


def _make_what_lacks(optimizer: Any, looked_at: Mapping[int, Any]) -> None:
    """Make what the second step would find and the first would not, unless the trace has seen that it is not there."""
    if id(optimizer.state) not in looked_at:
        with contextlib.suppress(ValueError, TypeError), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            optimizer._begin_states()
    if optimizer.max_norm is not None and id(optimizer._measured) not in looked_at:
        optimizer._measured.setdefault("grad_norm", torch.zeros((), dtype=torch.float64, device="cpu"))


def _let_go_with(optimizer: ref[Any], graph: torch.fx.GraphModule) -> None:
    """Have a graph let the optimizer's tensors go with it: torch has made them attributes, and keeps graphs."""
    alive = optimizer()
    if alive is not None:
        states = [tensor for state in alive.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
        finalize(alive, _let_go, ref(graph), {id(tensor) for tensor in (*alive._params(), *states)})


def _let_go(graph: ref[torch.fx.GraphModule], tensors: set[int]) -> None:
    alive = graph()
    for kept in () if alive is None else (alive._parameters, alive._buffers):
        for name in [name for name, tensor in kept.items() if id(tensor) in tensors]:
            del kept[name]


def _forget_constants(state: Any) -> None:
    """Forget which floats had to be constants in the graph before.

    torch notes them by names while it traces a frame again and again, and does not forget them afterwards: other floats
    of the next graph have the same names, and would be constants, too.
    """
    global _last_traced
    number = str(CompileContext.current_compile_id())
    if _last_traced != number:
        _last_traced = number
        state.clear()


class _Pools:
    """What the op takes of several calls, in lists."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []
        self.read: list[Tensor] = []
        self.numbers: list[float] = []
        self.integers: list[int] = []

    def encoded(self, value: Any, written: bool) -> str:
        """``value`` in JSON, with references in the place of tensors and of floats that are not constant."""
        if isinstance(value, Tensor):
            return self._tensor(value, written)
        if isinstance(value, Storage):
            return self.encoded({name: getattr(value, name) for name in _OF_STORAGE}, written)
        if isinstance(value, list) and value and all(isinstance(entry, Tensor) for entry in value):
            pool = self.written if written else self.read
            pool.extend(value)
            return _reference("written" if written else "read", f"[{len(pool) - len(value)}, {len(pool)}]")
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join([self.encoded(entry, written) for entry in value]) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join([f'"{name}": {self.encoded(entry, written)}' for name, entry in value.items()]) + "}"
        return self._constant(value)

    def _tensor(self, value: Tensor, written: bool) -> str:
        pool = self.written if written else self.read
        place = len(pool)
        if written:  # by several calls, of which a graph must not hear as of several tensors
            for number, other in enumerate(pool):
                place = number if other is value else place
        if place == len(pool):
            pool.append(value)
        return _reference("written" if written else "read", f"{place}")

    def _constant(self, value: Any) -> str:
        if value is None:
            return "null"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return f'"{value}"'
        from torch.fx.experimental.symbolic_shapes import guard_scalar, has_static_value  # slow; there when traced

        if isinstance(value, float) and not (has_static_value(value) and math.isfinite(value)):
            self.numbers.append(value)
            return _reference("numbers", f"{len(self.numbers) - 1}")
        if isinstance(value, int) and not has_static_value(value):
            self.integers += [value // 2**32, value % 2**32]  # an op takes integers of 64 bits with a sign
            return _reference("integers", f"{len(self.integers) // 2 - 1}")
        return f"{guard_scalar(value)!r}"


def _reference(pool: str, place: str) -> str:
    return '{"' + _REFERENCE + pool + '": ' + place + "}"


def step_in_graph(optimizer: Any, calls: list[StepCall], places: Places | None) -> None:
    """Put a step of these calls into the graph that is being made; ``places`` where it clips, see clipping.py."""
    optimizer._measured.clear()
    if not calls:
        return
    pools = _Pools()
    clipping = "null"
    if places is not None:
        norm = torch.empty((), dtype=torch.float64, device=calls[0].params[0].device)
        optimizer._measured["grad_norm"] = norm
        limit = optimizer.max_norm
        max_norm = pools.encoded(limit if isinstance(limit, (int, float, Tensor)) else float(limit), False)
        listed = [list(own) for own in places]
        clipping = f'{{"max_norm": {max_norm}, "places": {listed!r}, "norm": {pools.encoded(norm, True)}}}'
    encoded = []
    for call in calls:
        entries = [f'"{name}": {pools.encoded(getattr(call, name), name in _WRITTEN)}' for name in _PACKED]
        encoded.append("{" + ", ".join(entries) + "}")
    negative = "true" if optimizer.allow_negative_grad_weight else "false"
    layout = (
        f'{{"optimizer": "{optimizer._serial}", "backend": "{optimizer.backend}", "allow_negative": {negative}, '
        f'"clipping": {clipping}, "calls": [{", ".join(encoded)}]}}'
    )
    # A product, because torch makes tensors of floats where these meet tensors, and there alone.
    one = torch.ones((), dtype=torch.float64, device="cpu")
    numbers = [one * number for number in pools.numbers]
    packed = torch.stack(numbers) if numbers else torch.empty(0, dtype=torch.float64, device="cpu")
    torch.ops.lrtricks_fused.step_(pools.written, pools.read, packed, pools.integers, layout)


# -- while a graph runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One entry of a pool, or a range of them."""

    pool: int
    place: int | slice


def _referred(value: dict[str, Any]) -> Any:
    for number, pool in enumerate(_POOLS):
        if _REFERENCE + pool in value:
            place = value[_REFERENCE + pool]
            return _Entry(number, slice(*place) if isinstance(place, list) else place)
    return value


@lru_cache(maxsize=256)
def _parsed(layout: str) -> Mapping[str, Any]:
    return json.loads(layout, object_hook=_referred)


def _filled(value: Any, pools: tuple[Any, ...]) -> Any:
    if isinstance(value, _Entry):
        return pools[value.pool][value.place]
    if isinstance(value, dict):
        return {name: _filled(entry, pools) for name, entry in value.items()}
    if isinstance(value, list) and any(isinstance(entry, (_Entry, dict, list)) for entry in value):
        return [_filled(entry, pools) for entry in value]
    return value


def _tables(optimizer: Any, calls: list[StepCall], layout: str) -> None:
    """Have the calls keep tables where the tensors are the optimizer's own, and not copies of one run of a graph."""
    if optimizer is None or not all(call.params[0] in optimizer.state for call in calls):
        return
    for number, call in enumerate(calls):
        call.tables, call.table_key = optimizer._tables, (layout, number)
    forget(optimizer._tables, {call.table_key for call in calls})


@torch.library.custom_op(
    "lrtricks_fused::step_",
    mutates_args=("written",),
    tags=(torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else (),
)
def _step(written: list[Tensor], read: list[Tensor], numbers: Tensor, integers: Sequence[int], layout: str) -> None:
    """The step that ``layout`` describes; errors as an ordinary step's, before anything is changed.

    Args:
        written: parameters, states and counts of steps, and where the norm of the gradients goes.
        read: gradients and tensors of one number.
        numbers: the floats that are not constants of the graph, float64 on the CPU.
        integers: the integers that are not, in halves of 32 bits.
        layout: which calls these are the operands of, in JSON.
    """
    parsed = _parsed(layout)
    halves = zip(integers[::2], integers[1::2], strict=True)
    pools = (written, read, numbers.tolist(), [high << 32 | low for high, low in halves])
    calls = [StepCall(**_filled(call, pools)) for call in parsed["calls"]]
    for call in calls:
        if call.storage is not None:
            call.storage = Storage(**call.storage)  # type: ignore[arg-type]  # as JSON has it
        if call.index_maps is not None:
            call.index_maps = [index_map and IndexMap(*index_map) for index_map in call.index_maps]
        for name in IN_TENSORS:
            check_number(name, getattr(call, name), parsed["allow_negative"])
    optimizer = _optimizers.get(parsed["optimizer"])
    if optimizer is not None:
        vars(optimizer)["_opt_called"] = True  # by which torch's schedulers know that a step came before theirs
    _tables(optimizer, calls, layout)
    clips = parsed["clipping"]
    clipping = clips and Clipping(_filled(clips["max_norm"], pools), calls, clips["places"])
    backends = prepare(parsed["backend"], calls)
    if clipping:
        _filled(clips["norm"], pools).copy_(clipping.measure(backends))
    for backend, call in zip(backends, calls, strict=True):
        backend.step(call)


@_step.register_fake
def _(written: list[Tensor], read: list[Tensor], numbers: Tensor, integers: Sequence[int], layout: str) -> None:
    """Nothing is returned."""
