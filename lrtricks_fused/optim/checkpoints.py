"""Checkpoints: what is kept of an optimizer, and how a saved state becomes this one's, checked before it is stored."""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from ..step.operands import check_state, is_step_count, is_wrapper, storage_holds
from ..step.table import forget
from . import identity
from .arguments import OF_OPTIMIZER
from .checks import as_python, check_param, check_scalar, is_negative, plain
from .groups import ALLOW_NEGATIVE, LOW, Group
from .repeats import Repeats
from .shards import is_dtensor, local, placed, saved_part
from .states import StatefulOptimizer


class SavedOptimizer(StatefulOptimizer):
    """What all optimizers share of pickling, and of ``load_state_dict``."""

    _tables: dict[Any, Any]  # of addresses, kept between steps

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep."""
        names = (*OF_OPTIMIZER, "allow_negative_grad_weight", "_flattened", "_master")
        own = {name: getattr(self, name) for name in names}
        fresh: dict[str, Any] = {
            "_tables": {}, "_checked_groups": {}, "_maps": {}, "_slopes": None, "_measured": {}, "_kept": None,
            "_repeats": Repeats(),
        }  # fmt: skip
        return {**super().__getstate__(), **own, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what pickle, copy.deepcopy or ``load_state_dict`` bring."""
        super().__setstate__(state)
        for name in ("_checked_groups", "_maps", "_measured"):  # not in what earlier versions have pickled
            self.__dict__.setdefault(name, {})
        self.__dict__.setdefault("_repeats", Repeats())
        for group in self.param_groups:
            self._take_over(group)

    def _complete_group(self, saved: Group, current: Group) -> Group:
        """A saved group with what torch.optim's checkpoints lack taken from the present one."""
        completed = {**current, **saved}
        completed.pop("param_names", None)  # of another arrangement, maybe: this optimizer's own stay
        return {**completed, "param_names": current["param_names"]} if "param_names" in current else completed

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's; numbers of other libraries, which a scheduler may have set, are Python's in it."""
        saved = super().state_dict()
        if not isinstance(saved, dict) or "param_groups" not in saved:  # a hook's
            return saved
        names = {"initial_lr", *self.defaults}
        own = [{name: as_python(group[name]) for name in group.keys() & names} for group in saved["param_groups"]]
        groups = [{**group, **numbers} for group, numbers in zip(saved["param_groups"], own, strict=True)]
        return {**saved, "param_groups": groups}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class or of the torch.optim class of the same name.

        Differs from torch in that fp32 states of 16-bit parameters stay fp32 (see ``state_dtype``), and that all is
        checked, and all that will be stored is made, before anything is changed. Entries that are not the rule's are
        carried along as torch does. The parameters' names stay, and the identities are the saved ones; without any,
        those of the names, and where an earlier version of this package has saved it, the indices in state_dict order,
        by which it drew. A negative gradient weight was allowed where it was saved, and is from now on.

        Raises:
            ValueError, TypeError: a group, a hyper-parameter or a state does not fit; the optimizer is as it was.
        """
        restored: dict[Tensor, dict[str, Any]] = {}
        own_names = self._own_names.of(self.param_groups)

        def before(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            return self._checked(loaded, restored)

        def after(_: torch.optim.Optimizer) -> None:
            forget(self._tables)
            self._maps.clear()  # which hold states, too
            self._kept = None
            self._own_names = identity.OwnNames(self.param_groups, own_names)
            for param, state in restored.items():
                self.state[param].update(state)

        # Innermost of all hooks: the user's own see the dict that is loaded, and the final state.
        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            with torch._C.DisableTorchFunctionSubclass():
                super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _checked(self, loaded: dict[str, Any], restored: dict[Tensor, dict[str, Any]]) -> dict[str, Any]:
        """What torch itself shall load: the groups, and other states than the rule's, which go to ``restored``."""
        self._look_at(self.param_groups)
        groups = loaded["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            return loaded  # torch's own error
        completed = [self._complete_group(s, c) for s, c in zip(groups, self.param_groups, strict=True)]
        others, states, lost = dict(loaded["state"]), {}, 0
        for saved, current in zip(completed, self.param_groups, strict=True):
            self._check_group(saved, allow_negative=True)
            if is_negative(saved["grad_weight"]):
                saved[ALLOW_NEGATIVE] = True
            for key, param in zip(saved["params"], current["params"], strict=True):
                if key in others:
                    if isinstance(others[key], dict) and others[key].get(LOW) is not None:
                        lost += not self._splits(param.dtype)
                    restored[param] = self._restored(saved, param, others[key])
                    states[param] = others[key]
                    own = {"step", identity.IDENTITY, LOW, *self._state_names(saved)}
                    others[key] = {name: value for name, value in others[key].items() if name not in own}
        if lost:
            text = f"the state_dict's {LOW} of {lost} parameters is not loaded: here they are not halves of masters"
            warnings.warn(text, stacklevel=9)  # of load_state_dict, with torch's hook and wrapper between
        for param, number in identity.loaded_identities(self.param_groups, groups, states).items():
            restored[param][identity.IDENTITY] = number
        return {**loaded, "param_groups": completed, "state": others}

    def _restored(self, group: Group, param: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        """A parameter's saved state in this optimizer's dtypes, on its device; never the caller's own tensors.

        Raises:
            ValueError, TypeError: a state is missing, or is not what it says.
        """
        if not isinstance(saved, dict):
            raise TypeError(f"Invalid state_dict: the state of a parameter is {saved!r}, not a dict")
        state = {name: saved[name] for name in self._state_names(group) if saved.get(name) is not None}
        if "step" not in saved and not state.keys() <= {"momentum_buffer"}:
            raise ValueError(f"Invalid state_dict: the state {', '.join(sorted(state))} of a parameter has no step")
        # torch.optim.SGD counts no steps: with a momentum buffer, at least one was taken.
        scalars = {"step": _step_count(saved.get("step", 1.0 if state else 0.0))}
        lost = self._required_states(group) - state.keys()
        if lost and (state or scalars["step"] > 0):
            raise ValueError(
                f"Invalid state_dict: a parameter of shape {tuple(param.shape)} has taken {scalars['step']:g} steps, "
                f"and its state has no {', '.join(sorted(lost))}"
            )
        if not param.dtype.is_floating_point or param.dtype.itemsize == 1:
            check_param(param, self.state_dtype)
        for name in state.keys() & self._scalar_states(group).keys():
            scalars[name] = _scalar(name, state.pop(name))
        copies = {name: self._copied(group, param, name, value) for name, value in state.items()}
        if self._splits(param.dtype) and saved.get(LOW) is not None:
            copies[LOW] = self._copied_low(param, saved[LOW])
        numbers = {n: torch.tensor(x, dtype=torch.float64, device=param.device) for n, x in scalars.items()}
        return {**copies, **numbers}

    def _copied(self, group: Group, param: Tensor, name: str, saved: Any) -> Tensor:
        if not isinstance(saved, Tensor) or is_wrapper(type(local(saved))):
            raise TypeError(f"Invalid state_dict: {name} is a {type(saved).__name__}: must be a plain tensor")
        shape = self._state_shape(group, name, param)
        if tuple(saved.shape) != tuple(shape):
            raise ValueError(
                f"Invalid state_dict: {name} has shape {tuple(saved.shape)}, "
                f"its parameter {tuple(param.shape)}: must be {tuple(shape)}"
            )
        saved = saved_part(saved, param)
        if not saved.is_floating_point() or saved.layout is not torch.strided or saved.is_meta:
            raise ValueError(
                f"Invalid state_dict: {name} is {saved.dtype}, {saved.layout} on {saved.device}: "
                "must be floating and strided"
            )
        if not saved._is_zerotensor() and not storage_holds(saved):
            raise ValueError(f"Invalid state_dict: the storage of {name} does not hold its shape {tuple(shape)}")
        own = local(param)
        shape = self._state_shape(group, name, own)
        dtype, saved = self._state_dtype_of(param), saved.resolve_neg()  # see reference._store
        if shape == own.shape:
            copy = torch.empty_like(saved.detach(), dtype=dtype, device=param.device).copy_(saved)
        else:
            copy = torch.empty(shape, dtype=dtype, device=param.device).copy_(saved)
        check_state(name, copy, own, shape)
        return placed(copy, param) if is_dtensor(param) else copy

    def _copied_low(self, param: Tensor, saved: Any) -> Tensor:
        """The other half of a master, which no dtype but its own can hold."""
        if not isinstance(saved, Tensor) or saved.dtype != torch.int16 or tuple(saved.shape) != tuple(param.shape):
            raise ValueError(f"Invalid state_dict: {LOW} is {saved!r}: must be torch.int16 of its parameter's shape")
        own, saved = local(param), saved_part(saved, param)
        if saved.layout is not torch.strided or saved.is_meta or not storage_holds(saved):
            raise ValueError(
                f"Invalid state_dict: {LOW} is {saved.layout} on {saved.device}: must be strided, and in its storage"
            )
        copy = torch.empty_like(own.detach(), dtype=torch.int16).copy_(saved)
        return placed(copy, param) if is_dtensor(param) else copy


def _saved_number(value: Any) -> float | None:
    """A finite number, saved as one of any library or as a tensor of one element; None where it is none."""
    if isinstance(value, Tensor):
        try:
            check_scalar("number", value)
        except (TypeError, ValueError):
            return None
    number = plain(value)
    number = number[0] if isinstance(number, list) and len(number) == 1 else number
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return number if is_number and abs(number) <= sys.float_info.max else None


def _step_count(step: Any) -> float:
    """A saved count of steps; raises ValueError where it is none."""
    number = _saved_number(step)
    if number is None or not is_step_count(number):
        raise ValueError(f"Invalid state_dict: step={step!r}: must be a whole number in [0, 2**53)")
    return float(number)


def _scalar(name: str, saved: Any) -> float:
    """A saved state of one number; raises ValueError where it is none."""
    number = _saved_number(saved)
    if number is None:
        raise ValueError(f"Invalid state_dict: {name}={saved!r}: must be a finite number")
    return float(number)
