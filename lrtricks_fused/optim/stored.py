"""What an optimizer keeps beside 16-bit tensors, or in them: split masters, mirrors, stochastic rounding, changed bits.

See step/staged.py for what a step does with it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..step.call import Storage
from ..step.operands import check_mirror
from ..step.rounding import joined
from .changes import Changes, all_changed, taken
from .checkpoints import SavedOptimizer
from .groups import LOW, Group
from .shards import is_dtensor, local, placed

STOCHASTIC = "stochastic"


class StoredOptimizer(SavedOptimizer):
    """What all optimizers share of how parameters and states are stored."""

    rounding: str = "nearest"  # which earlier versions have not pickled, as the next two
    state_rounding: str = "nearest"
    track_changes: bool = False
    _mirrors: dict[Tensor, Tensor]
    _changes: dict[Tensor, Tensor]  # bitmaps, made when they are first needed
    _all_changed = False  # whether what was stepped before these bitmaps began is unknown

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what pickle, copy.deepcopy or ``load_state_dict`` bring: from now on anything may have changed."""
        super().__setstate__(state)
        self.__dict__.setdefault("_mirrors", {})
        self._changes, self._all_changed = {}, True

    def _check_storage(self) -> None:
        """Raises ValueError for arguments that would round, or complete, nothing."""
        dtypes = {param.dtype for param in self._params()}
        states = {self._state_dtype_of(param) for param in self._params()}
        if self._master is not None and torch.bfloat16 not in dtypes:
            raise ValueError(
                f"Invalid master={self._master!r}: no parameter is torch.bfloat16, the others have no half"
            )
        rounded = {dtype for dtype in dtypes if dtype.itemsize == 2 and not self._splits(dtype)}
        if self.rounding == STOCHASTIC and not rounded:
            raise ValueError(f"Invalid rounding={self.rounding!r}: no parameter is rounded to 16 bits")
        if self.state_rounding == STOCHASTIC and not any(dtype.itemsize == 2 for dtype in states):
            raise ValueError(f"Invalid state_rounding={self.state_rounding!r}: no state is rounded to 16 bits")

    def _check_group(self, group: Group, allow_negative: bool = False) -> None:
        super()._check_group(group, allow_negative)
        if group.get("mirrors") is not None:
            raise ValueError("Invalid mirrors in a group that is there: mirror(param, out) sets that of a parameter")

    def _check_changed(self, names: set[str]) -> None:
        super()._check_changed(names)
        if names & {"rounding", "state_rounding", "state_dtype"}:
            self._check_storage()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch.optim does; it may also have ``mirrors``, one for each parameter, or None.

        Raises:
            ValueError, TypeError: an option, a parameter, a name or a mirror is invalid; the optimizer is as it was.
        """
        mirrors: list[Any] = []
        before = dict(param_group) if isinstance(param_group, dict) else {}
        if isinstance(param_group, dict) and param_group.get("mirrors") is not None:
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            mirrors = check_mirrors(param_group["mirrors"], [p[1] if isinstance(p, tuple) else p for p in params])
            param_group["params"] = params
            del param_group["mirrors"]
        try:
            super().add_param_group(param_group)
        except BaseException:
            if before:
                if isinstance(before["params"], Iterator):  # which has given what it had
                    before["params"] = param_group["params"]
                param_group.clear()
                param_group.update(before)
            raise
        for param, out in zip(self.param_groups[-1]["params"], mirrors, strict=False):
            self.mirror(param, out)

    def _lacks_lows(self, params: list[Tensor]) -> bool:
        """Whether the other half of a master has to be made."""
        if self._master is None:
            return False
        return any(self._splits(param.dtype) and LOW not in self.state.get(param, {}) for param in params)

    def _new_states(self, group: Group, param: Tensor, names: list[str]) -> dict[str, Any]:
        new = super()._new_states(group, param, names)
        if self._splits(param.dtype) and LOW not in self.state.get(param, {}):
            zeros = torch.zeros_like(local(param), dtype=torch.int16, memory_format=torch.preserve_format)
            new[LOW] = placed(zeros, param) if is_dtensor(param) else zeros
        return new

    def _storage(self, params: list[Tensor], new: dict[Tensor, dict[str, Any]]) -> Storage | None:
        """How these parameters are stored; None where as the kernels step them."""
        rounds = self.rounding == STOCHASTIC, self.state_rounding == STOCHASTIC
        if self._changes and not self.track_changes:
            self._changes.clear()  # they will not know of this step
        if not (self._master or self._mirrors or self.track_changes or any(rounds)):
            return None
        storage = Storage(stochastic=rounds[0], stochastic_states=rounds[1])
        if self._master is not None:
            states = [{**self.state.get(param, {}), **new.get(param, {})} for param in params]
            storage.lows = [
                local(state[LOW]) if self._splits(param.dtype) else None
                for param, state in zip(params, states, strict=True)
            ]
        if self._mirrors:
            storage.mirrors = [self._mirrors.get(param) for param in params]
        if self.track_changes:
            storage.changes = [self._bitmap(param) for param in params]
        return storage

    def mirror(self, param: Tensor, out: Tensor | None) -> None:
        """Have every step write the rounding of a float32 parameter to ``out``, too, in the same pass.

        out = round(param) now, and of every element that a step moves.

        Args:
            param: a float32 parameter of this optimizer.
            out: bfloat16 or float16 of its shape and on its device (of a DTensor's local tensor), such as pinned
                memory; rounded to nearest even. None ends it. Copies and checkpoints of the optimizer do not hold it.

        Raises:
            ValueError, TypeError: the parameter is not float32 or not in this optimizer, or ``out`` cannot be written.
        """
        if not any(candidate is param for candidate in self._params()):
            raise ValueError(f"Invalid param of shape {tuple(param.shape)}: not in this optimizer")
        if out is None:
            self._mirrors.pop(param, None)
            return
        own = local(param)
        check_mirror(out, own)
        with torch.no_grad():
            out.copy_(own)
        self._mirrors[param] = out

    @torch.no_grad()
    def master(self, param: Tensor) -> Tensor:
        """The float32 value of a parameter, exactly: a copy.

        bits(master) = (bits(param) << 16) + param_low of a bfloat16 parameter under ``master="split"``; before its
        first step, and of other dtypes that lose nothing, the parameter in float32.

        Raises:
            ValueError: the parameter has no master, or is not in this optimizer.
        """
        if not any(candidate is param for candidate in self._params()):
            raise ValueError(f"Invalid param of shape {tuple(param.shape)}: not in this optimizer")
        if param.dtype != torch.float32 and not self._splits(param.dtype):
            raise ValueError(f"Invalid param of dtype {param.dtype}: it has no master (master={self._master!r})")
        low = self.state.get(param, {}).get(LOW)
        own = local(param)
        whole = own.float() if low is None else joined(own, local(low))
        whole = whole.clone() if whole is own else whole
        return placed(whole, param) if is_dtensor(param) else whole

    # -- changed bits ------------------------------------------------------------------------------------------------

    def _bitmap(self, param: Tensor) -> Tensor:
        if param not in self._changes:
            own = local(param)
            none = torch.zeros(-(-own.numel() // 8), dtype=torch.uint8, device=own.device)
            self._changes[param] = all_changed(own) if self._all_changed or self._has_stepped(param) else none
        return self._changes[param]

    def _prepare_changes(self, param: Tensor) -> None:
        """Make the bitmap of a parameter before it gets states, by which it would seem to have been stepped."""
        if self.track_changes:
            self._bitmap(param)

    def _has_stepped(self, param: Tensor) -> bool:
        """Whether the parameter has taken a step; where a look would have to wait for a device, it may have."""
        step = self.state.get(param, {}).get("step")
        return step is not None and (torch.compiler.is_compiling() or not step.is_cpu or step.item() != 0)

    @torch.no_grad()
    def pop_changes(self) -> dict[str | int, Changes]:
        """Which elements of each parameter have other bits than at the last call, and their values; then begins anew.

        The stored bits count: those of a mirror where a parameter has one, else the parameter's. All elements count as
        changed after ``load_state_dict``, of copies, and where ``track_changes`` was set after steps were taken.

        Returns:
            By the parameters' names where the optimizer knows them, else by their index in ``state_dict()`` order; see
            :class:`.Changes` and :func:`.apply_changes`. Of DTensors this rank's elements.

        Raises:
            ValueError: ``track_changes`` is False.
        """
        if not self.track_changes:
            raise ValueError("Invalid track_changes=False: changes are kept only where this is True")
        self._look_at(self.param_groups)
        names = [name for group in self.param_groups for name in group.get("param_names") or group["params"]]
        popped: dict[str | int, Changes] = {}
        for number, (param, name) in enumerate(zip(self._params(), names, strict=True)):
            key = name if isinstance(name, str) else number
            popped[key] = taken(self._bitmap(param), self._mirrors.get(param, local(param)), param)
        return popped


def check_mirrors(mirrors: Iterable[Any], params: list[Tensor]) -> list[Any]:
    """The mirrors of a new group's parameters.

    Raises:
        ValueError, TypeError: they are more or less than the parameters, or one cannot be a mirror.
    """
    if isinstance(mirrors, Tensor) or not isinstance(mirrors, Iterable):
        raise TypeError(f"Invalid mirrors of type {type(mirrors).__name__}: must be a list, a mirror per parameter")
    listed = list(mirrors)
    if len(listed) != len(params):
        raise ValueError(f"Invalid mirrors: {len(listed)} for {len(params)} parameters")
    for param, out in zip(params, listed, strict=True):
        if out is not None:
            check_mirror(out, local(param))
    return listed
