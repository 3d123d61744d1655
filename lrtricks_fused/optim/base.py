"""What all masked optimizers share: groups, state, checkpoints, and the hand-over to a backend. No arithmetic."""

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..step.backends import check_backend, prepare, resolve
from ..step.call import StepCall
from ..step.keep import keep_mask
from ..step.operands import check_param as check_operand
from ..step.operands import check_state, check_step, is_step_count, is_wrapper, storage_holds, waited
from ..step.table import forget
from .checks import as_seed, check_group, check_kind, check_param, plain

Group = dict[str, Any]
PLAIN = {type(None), Tensor, torch.nn.Parameter}  # types of nearly all gradients


@dataclass
class _Part:
    """Parameters of one group that take part in a step together: on one device; on a GPU of one dtype, too."""

    key: Hashable
    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    indices: list[int]


class MaskedOptimizer(torch.optim.Optimizer):
    """Base of the drop-in classes: one fused step per parameter group, with learning rate dropout inside.

    Subclasses say which rule runs, which states a group needs and which hyper-parameters the rule reads.
    """

    rule: str
    _optional: frozenset[str] = frozenset()  # states of some variants only
    _flattened = False  # whether a parameter is a shard that FSDP1 has flattened

    def __init__(
        self,
        params: Iterable,
        defaults: Group,
        *,
        keep_prob: float | Tensor,
        grad_weight: float | Tensor,
        centralize: bool,
        seed: int,
        backend: str,
        state_dtype: torch.dtype | None,
    ) -> None:
        check_backend(backend)
        self.backend = backend
        self.state_dtype = state_dtype
        self._tables: dict[Hashable, Any] = {}  # of addresses, kept between steps
        self._slopes: dict[torch.device, Tensor] | None = None  # what LossGrad has each step add its slope to
        common = dict(keep_prob=keep_prob, grad_weight=grad_weight, centralize=centralize, seed=seed)
        defaults = {**defaults, **common}
        self._check_group(defaults)  # as torch.optim, also where every group overrides them
        super().__init__(params, defaults)
        if state_dtype is not None and not any(p.dtype.itemsize == 2 for g in self.param_groups for p in g["params"]):
            text = f"state_dtype={state_dtype} is of no effect: no parameter is bfloat16 or float16"
            warnings.warn(text, stacklevel=3)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """As torch's: with ``fused=True`` a step unscales and skips by itself, without waiting for the device."""
        return bool(self.defaults.get("fused"))

    # -- what a subclass defines ---------------------------------------------------------------------------

    def _rule(self, group: Group) -> str:
        """Which rule steps this group."""
        return self.rule

    def _state_names(self, group: Group) -> dict[str, bool]:
        """The rule's states in the order of its op, and whether this group has them."""
        raise NotImplementedError

    def _hyper(self, group: Group) -> dict[str, float | bool]:
        """The rule's hyper-parameters, by the names in its op."""
        raise NotImplementedError

    def _first_hyper(self, group: Group) -> dict[str, float | bool]:
        """Those of a step for which the parameter's states have just been made; the same by default."""
        return self._hyper(group)

    def _required_states(self, group: Group) -> set[str]:
        """The states that a checkpoint of this group holds of every parameter that has been stepped."""
        return {name for name, used in self._state_names(group).items() if used}

    def _check_rule(self, group: Group) -> None:
        """Raises ValueError for hyper-parameters that only this rule has."""
        raise NotImplementedError

    def _check_state(self, group: Group, params: list[Tensor]) -> None:
        """Raises ValueError where the states of these parameters do not fit the group; nothing to check by default."""

    def _check_group(self, group: Group) -> None:
        check_group(group)
        self._check_rule(group)
        if self._flattened:
            self._check_flattened(group)

    def _check_flattened(self, group: Group) -> None:
        """Raises TypeError for what takes the shape of a parameter, which FSDP1's flattened shards have lost."""
        masked = isinstance(group["keep_prob"], Tensor) or group["keep_prob"] != 1
        for name, used in (("keep_prob", masked), ("centralize", group["centralize"])):
            if used:
                raise TypeError(
                    f"Invalid {name}={group[name]} for parameters flattened by FullyShardedDataParallel: "
                    "they are shards of another shape"
                )

    # -- groups and state ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch.optim does. Keep bits of parameters added earlier do not change."""
        if isinstance(param_group, dict) and "params" in param_group:
            group = {**self.defaults, **param_group}
            self._check_group(group)
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else params
            if not isinstance(params, set):
                param_group["params"] = params = list(params)
                tensors = [param[1] if isinstance(param, tuple) else param for param in params]
                for tensor in tensors:
                    self._check_param(tensor)
                if any(getattr(tensor, "_fsdp_flattened", False) for tensor in tensors):
                    self._check_flattened(group)
                    self._flattened = True
        super().add_param_group(param_group)

    def _check_param(self, param: Any) -> None:
        check_kind(param)
        if isinstance(param, Tensor) and param.requires_grad:  # a frozen one may be of any dtype, on any device
            check_param(param, self.state_dtype)
            resolve(self.backend, param.device)

    def _state_dtype_of(self, param: Tensor) -> torch.dtype:
        return (self.state_dtype or torch.float32) if param.dtype.itemsize == 2 else param.dtype

    def _state_shape(self, group: Group, name: str, param: Tensor) -> tuple[int, ...]:
        """Shape of a state: the parameter's, unless the subclass says otherwise (such a state is contiguous)."""
        return tuple(param.shape)

    def _new_states(self, group: Group, param: Tensor, names: list[str]) -> dict[str, Tensor]:
        """What is missing of the parameter's state, as zeros.

        Raises:
            ValueError: a state is missing that the steps taken have advanced: zeros would be another one.
        """
        state = self.state.get(param, {})
        present = [name for name in ("step", *names) if name in state]
        lost = [name for name in ("step", *names) if name not in state and name not in self._optional]
        if lost and "step" in present:
            check_step(state["step"], param)
        if lost and present and not (present == ["step"] and not state["step"]):
            shape = tuple(param.shape)
            raise ValueError(
                f"Invalid state of a parameter of shape {shape}: it has {', '.join(present)}, but no {', '.join(lost)}"
            )
        new = {}
        if "step" not in state:
            # float64, and not torch.optim's float32, which would count to 2**24 only.
            new["step"] = torch.zeros((), dtype=torch.float64, device=param.device)
        for name in names:
            if name not in state:
                shape, dtype = self._state_shape(group, name, param), self._state_dtype_of(param)
                if shape == param.shape:
                    new[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                else:
                    new[name] = torch.zeros(shape, dtype=dtype, device=param.device)
        return new

    def _indexed(self) -> Iterator[tuple[Group, range]]:
        """Groups with the indices of their parameters in state_dict order."""
        first = 0
        for group in self.param_groups:
            last = first + len(group["params"])
            yield group, range(first, last)
            first = last

    # -- the step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            ValueError, TypeError: a hyper-parameter or a gradient is invalid; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step()
        else:
            with torch._C.DisableTorchFunctionSubclass():  # plain subclasses are stepped as tensors
                self._step()
        return loss

    def _step(self) -> None:
        """The step, after the closure: every call is built and checked before the first one runs."""
        work = [part for group, indices in self._indexed() for part in self._gather(group, indices)]
        new: dict[Tensor, dict[str, Tensor]] = {}
        calls = [call for part in work for call in self._calls(part, new)]
        runs = [resolve(self.backend, call.params[0].device) for call in calls]
        for run, call in zip(runs, calls, strict=True):
            call.alone = len(calls) == 1
            prepare(run, call)
        for param, states in new.items():
            self.state[param].update(states)
        for run, call in zip(runs, calls, strict=True):
            run(call)
        if len(self._tables) > len(calls):
            forget(self._tables, {call.table_key for call in calls})

    def _gather(self, group: Group, indices: range) -> list[_Part]:
        """The parameters of a checked group that have a gradient, in parts that one call can step."""
        self._check_group(group)
        params = group["params"]
        self._check_state(group, params)
        grads = [param.grad for param in params]
        kinds = {*map(type, grads)}
        if not kinds <= PLAIN and not torch.compiler.is_compiling() and any(map(is_wrapper, kinds - PLAIN)):
            grads = [grad if grad is None else waited(grad) for grad in grads]
        together = self.backend != "triton"  # the CPU's own backends take any mix of dtypes and layouts
        if together and params and type(None) not in kinds and all(param.is_cpu for param in params):
            return [_Part(params[0].device, group, list(params), grads, list(indices))]
        parts: dict[Hashable, _Part] = {}
        for param, grad, index in zip(params, grads, indices, strict=True):
            if grad is not None:
                on_cpu = together and param.device.type == "cpu"
                key = param.device if on_cpu else (param.device, param.dtype, param.is_contiguous())
                own = parts.setdefault(key, _Part(key, group, [], [], []))
                own.params.append(param)
                own.grads.append(grad)
                own.indices.append(index)
        return list(parts.values())

    def _calls(self, part: _Part, new: dict[Tensor, dict[str, Tensor]]) -> list[StepCall]:
        """The calls of a part. Missing states are made and entered into ``new``, not yet into the optimizer."""
        group, get = part.group, self.state.get
        names = self._state_names(group)
        wanted = ["step", *(name for name, used in names.items() if used)]
        states = [get(param) for param in part.params]
        try:
            columns = {name: [state[name] for state in states] for name in wanted}
        except (KeyError, TypeError):  # of a parameter that has no state at all
            return self._first_calls(part, names, wanted, new)
        return [self._call(part, columns, names, self._hyper(group), part.key)]

    def _first_calls(
        self, part: _Part, names: dict[str, bool], wanted: list[str], new: dict[Tensor, dict[str, Tensor]]
    ) -> list[StepCall]:
        """The same where states are missing: parameters that get some in this step, and the others."""
        group = part.group
        for param in part.params:
            if not torch.compiler.is_compiling():  # a tracer's tensors have no memory to look at
                check_operand(param)
            made = self._new_states(group, param, wanted[1:])
            if made:
                new[param] = made
        calls = []
        first, later = self._first_hyper(group), self._hyper(group)
        for hyper, fresh in ((first, True), (later, False)) if first != later else ((later, None),):
            own = [i for i, param in enumerate(part.params) if fresh is None or (param in new) == fresh]
            if own:
                columns = [[column[i] for i in own] for column in (part.params, part.grads, part.indices)]
                some = _Part((part.key, fresh), group, *columns)
                states = [{**self.state.get(param, {}), **new.get(param, {})} for param in some.params]
                columns = {name: [state[name] for state in states] for name in wanted}
                calls.append(self._call(some, columns, names, hyper, part.key if fresh is None else some.key))
        return calls

    def _call(
        self, part: _Part, columns: dict[str, list[Tensor]], names: Iterable[str], hyper: Group, key: Hashable
    ) -> StepCall:
        group = part.group
        return StepCall(
            rule=self._rule(group),
            params=part.params,
            grads=part.grads,
            states={name: columns.get(name, []) for name in names},
            steps=columns["step"],
            param_indices=part.indices,
            hyper=hyper,
            lr=_number(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            decoupled_weight_decay=bool(group.get("decoupled_weight_decay", False)),
            maximize=bool(group["maximize"]),
            keep_prob=_number(group["keep_prob"]),
            grad_weight=_number(group["grad_weight"]),
            seed=as_seed(group["seed"]),
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            centralize=bool(group["centralize"]),
            slope=self._slope(part.params[0].device),
            tables=self._tables,
            table_key=(id(group), key),
        )

    def _slope(self, device: torch.device) -> Tensor | None:
        if self._slopes is None:
            return None
        if device not in self._slopes:
            self._slopes[device] = torch.zeros((), dtype=torch.float64, device=device)
        return self._slopes[device]

    def keep_mask(self, param: Tensor, step: int) -> Tensor:
        """Which elements of ``param`` its ``step``-th update moves, at the group's present keep_prob and seed.

        keep(i) = bits(seed, step, index of the parameter, i) < rint(65536 keep_prob)

        Args:
            param: a parameter of this optimizer.
            step: the parameter's step count, 1 at its first update; any step, past or to come.

        Returns:
            A boolean tensor of the parameter's shape, on its device.

        Raises:
            ValueError: the parameter is not in this optimizer, or step < 1.
        """
        if step < 1:
            raise ValueError(f"Invalid step={step}: the first update is step 1")
        for group, indices in self._indexed():
            for index, candidate in zip(indices, group["params"], strict=True):
                if candidate is param:
                    keep_prob, seed = float(group["keep_prob"]), as_seed(group["seed"])
                    return keep_mask(param.shape, keep_prob, seed, step, index, param.device)
        raise ValueError(f"Invalid param of shape {tuple(param.shape)}: it is not in this optimizer")

    # -- checkpoints ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep."""
        own = {"backend": self.backend, "state_dtype": self.state_dtype, "_flattened": self._flattened}
        return {**super().__getstate__(), **own, "_tables": {}, "_slopes": None}

    def _complete_group(self, saved: Group, current: Group) -> Group:
        """A saved group with what torch.optim's checkpoints lack taken from the present one."""
        return {**current, **saved}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class or of the torch.optim class of the same name.

        Differs from torch in that fp32 states of 16-bit parameters stay fp32 (see ``state_dtype``), and that all is
        checked, and all that will be stored is made, before anything is changed. Entries that are not the rule's are
        carried along as torch does.

        Raises:
            ValueError, TypeError: a group, a hyper-parameter or a state does not fit; the optimizer is as it was.
        """
        restored: dict[Tensor, dict[str, Tensor]] = {}

        def before(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            groups = loaded["param_groups"]
            if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
                return loaded  # torch's own error
            completed = [self._complete_group(s, c) for s, c in zip(groups, self.param_groups, strict=True)]
            others = dict(loaded["state"])  # what torch itself shall carry along
            for saved, current in zip(completed, self.param_groups, strict=True):
                self._check_group(saved)
                for key, param in zip(saved["params"], current["params"], strict=True):
                    if key in others:
                        restored[param] = self._restored(saved, param, others[key])
                        own = {"step", *self._state_names(saved)}
                        others[key] = {name: value for name, value in others[key].items() if name not in own}
            return {**loaded, "param_groups": completed, "state": others}

        def after(_: torch.optim.Optimizer) -> None:
            forget(self._tables)
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

    def _restored(self, group: Group, param: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        """A parameter's saved state in this optimizer's dtypes, on its device; never the caller's own tensors.

        Raises:
            ValueError, TypeError: a state is missing, or is not what it says.
        """
        if not isinstance(saved, dict):
            raise TypeError(f"Invalid state_dict: the state of a parameter is {saved!r}, not a dict")
        state = {name: saved[name] for name in self._state_names(group) if saved.get(name) is not None}
        # torch.optim.SGD counts no steps: with a momentum buffer, at least one was taken.
        step = _step_count(saved.get("step", 1.0 if state else 0.0))
        lost = self._required_states(group) - state.keys()
        if lost and (state or step > 0):
            raise ValueError(
                f"Invalid state_dict: a parameter of shape {tuple(param.shape)} has taken {step:g} steps, "
                f"and its state has no {', '.join(sorted(lost))}"
            )
        if not param.dtype.is_floating_point or param.dtype.itemsize == 1:
            check_param(param, self.state_dtype)
        copies = {name: self._copied(group, param, name, value) for name, value in state.items()}
        return {**copies, "step": torch.tensor(step, dtype=torch.float64, device=param.device)}

    def _copied(self, group: Group, param: Tensor, name: str, saved: Any) -> Tensor:
        if not isinstance(saved, Tensor) or is_wrapper(type(saved)):
            raise TypeError(f"Invalid state_dict: {name} is a {type(saved).__name__}: must be a plain tensor")
        shape = self._state_shape(group, name, param)
        if tuple(saved.shape) != tuple(shape):
            raise ValueError(
                f"Invalid state_dict: {name} has shape {tuple(saved.shape)}, "
                f"its parameter {tuple(param.shape)}: must be {tuple(shape)}"
            )
        if not saved.is_floating_point() or saved.layout is not torch.strided or saved.is_meta:
            raise ValueError(
                f"Invalid state_dict: {name} is {saved.dtype}, {saved.layout} on {saved.device}: "
                "must be floating and strided"
            )
        if not saved._is_zerotensor() and not storage_holds(saved):
            raise ValueError(f"Invalid state_dict: the storage of {name} does not hold its shape {tuple(shape)}")
        dtype, saved = self._state_dtype_of(param), saved.resolve_neg()  # see reference._store
        if shape == param.shape:
            copy = torch.empty_like(saved.detach(), dtype=dtype, device=param.device).copy_(saved)
        else:
            copy = torch.empty(shape, dtype=dtype, device=param.device).copy_(saved)
        check_state(name, copy, param, shape)
        return copy


def _number(value: Any) -> float | Tensor:
    """A checked hyper-parameter as a backend takes it."""
    return value if isinstance(value, Tensor) else float(value)


def _step_count(step: Any) -> float:
    """A saved count of steps.

    Raises:
        ValueError: it is none.
    """
    readable = not isinstance(step, Tensor) or (step.numel() == 1 and not step.is_meta and not is_wrapper(type(step)))
    number = plain(step) if readable else None
    number = number[0] if isinstance(number, list) and len(number) == 1 else number
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    if not is_number or not is_step_count(number):
        raise ValueError(f"Invalid state_dict: step={step!r}: must be a whole number in [0, 2**53)")
    return float(number)
