"""What all masked optimizers share: groups, state, checkpoints, and the hand-over to a backend. No arithmetic."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import check_backend, resolve
from ..call import StepCall
from ..keep import keep_mask
from ..ops import native_step
from ..table import forget
from .checks import check_grads, check_group, check_param

Group = dict[str, Any]


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
    _step_supports_amp_scaling = True

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

    def _check_rule(self, group: Group) -> None:
        """Raises ValueError for hyper-parameters that only this rule has."""
        raise NotImplementedError

    def _check_state(self, group: Group, params: list[Tensor]) -> None:
        """Raises ValueError where the states of these parameters do not fit the group; nothing to check by default."""

    def _check_group(self, group: Group) -> None:
        check_group(group)
        self._check_rule(group)

    # -- groups and state ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch.optim does. Keep bits of parameters added earlier do not change."""
        if isinstance(param_group, dict) and "params" in param_group:
            self._check_group({**self.defaults, **param_group})
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else params
            if not isinstance(params, set):
                param_group["params"] = params = list(params)
                for param in params:
                    self._check_param(param[1] if isinstance(param, tuple) else param)
        super().add_param_group(param_group)

    def _check_param(self, param: Any) -> None:
        check_param(param, self.state_dtype)
        if isinstance(param, Tensor):
            resolve(self.backend, param.device)

    def _state_dtype_of(self, param: Tensor) -> torch.dtype:
        return (self.state_dtype or torch.float32) if param.dtype.itemsize == 2 else param.dtype

    def _state_shape(self, group: Group, name: str, param: Tensor) -> tuple[int, ...]:
        """Shape of a state: the parameter's, unless the subclass says otherwise (such a state is contiguous)."""
        return tuple(param.shape)

    def _init_state(self, group: Group, param: Tensor, names: list[str]) -> None:
        """Create what is missing of the parameter's state, as zeros."""
        state = self.state[param]
        if "step" not in state:
            # float64, and not torch.optim's float32, which would count to 2**24 only.
            state["step"] = torch.zeros((), dtype=torch.float64, device=param.device)
        for name in names:
            if name not in state:
                shape, dtype = self._state_shape(group, name, param), self._state_dtype_of(param)
                if shape == param.shape:
                    state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                else:
                    state[name] = torch.zeros(shape, dtype=dtype, device=param.device)

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
        work = [part for group, indices in self._indexed() for part in self._gather(group, indices)]
        runs = [resolve(self.backend, part.params[0].device) for part in work]
        if len(work) > 1 or runs != [native_step]:  # a single native call checks all before it writes
            for part in work:
                check_grads(part.params, part.grads)
        for run, part in zip(runs, work, strict=True):
            try:
                run(self._call(part))
            except RuntimeError:
                check_grads(part.params, part.grads)  # the same error, naming the argument and the value
                raise
        return loss

    def _gather(self, group: Group, indices: range) -> list[_Part]:
        """The parameters of a checked group that have a gradient, in parts that one call can step."""
        self._check_group(group)
        params = group["params"]
        self._check_state(group, params)
        grads = [param.grad for param in params]
        together = self.backend != "triton"  # the CPU's own backends take any mix of dtypes and layouts
        if together and params and all(g is not None for g in grads) and all(param.is_cpu for param in params):
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

    def _call(self, part: _Part) -> StepCall:
        group = part.group
        names = self._state_names(group)
        wanted = ["step", *(name for name, used in names.items() if used)]
        states = [self.state[param] for param in part.params]
        try:
            columns = {name: [state[name] for state in states] for name in wanted}
        except KeyError:
            check_grads(part.params, part.grads)  # before states are created
            for param in part.params:
                self._init_state(group, param, wanted[1:])
            columns = {name: [state[name] for state in states] for name in wanted}
        return StepCall(
            rule=self._rule(group),
            params=part.params,
            grads=part.grads,
            states={name: columns.get(name, []) for name in names},
            steps=columns["step"],
            param_indices=part.indices,
            hyper=self._hyper(group),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group.get("decoupled_weight_decay", False),
            maximize=group["maximize"],
            keep_prob=group["keep_prob"],
            grad_weight=group["grad_weight"],
            seed=group["seed"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            centralize=group["centralize"],
            slope=self._slope(part.params[0].device),
            tables=self._tables,
            table_key=(id(group), part.key),
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
                    return keep_mask(param.shape, float(group["keep_prob"]), group["seed"], step, index, param.device)
        raise ValueError(f"Invalid param of shape {tuple(param.shape)}: it is not in this optimizer")

    # -- checkpoints ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep."""
        return {**super().__getstate__(), "backend": self.backend, "state_dtype": self.state_dtype, "_tables": {},
                "_slopes": None}

    def _complete_group(self, saved: Group, current: Group) -> Group:
        """A saved group with what torch.optim's checkpoints lack taken from the present one."""
        return {**current, **saved}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class or of the torch.optim class of the same name.

        Differs from torch in that fp32 states of 16-bit parameters stay fp32 (see ``state_dtype``), and that shapes
        and hyper-parameters are checked before anything is changed.

        Raises:
            ValueError: the groups, shapes or hyper-parameters do not fit; the optimizer is as it was.
        """
        seen: dict[str, Any] = {}

        def before(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            groups = loaded["param_groups"]
            if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
                return loaded  # torch's own error
            completed = [self._complete_group(s, c) for s, c in zip(groups, self.param_groups, strict=True)]
            for group in completed:
                self._check_group(group)
            seen.update(loaded, param_groups=completed)
            for group, param, saved in self._saved_states(seen):
                self._check_saved(group, param, saved)
            return dict(seen)

        def after(_: torch.optim.Optimizer) -> None:
            forget(self._tables)
            for _, param, saved in self._saved_states(seen):
                self.state[param] = self._restored(param, saved)

        # Innermost of all hooks: the user's own see the dict that is loaded, and the final state.
        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _saved_states(self, state_dict: dict[str, Any]) -> Iterator[tuple[Group, Tensor, dict[str, Any]]]:
        for saved, current in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for key, param in zip(saved["params"], current["params"], strict=True):
                if key in state_dict["state"]:
                    yield saved, param, state_dict["state"][key]

    def _check_saved(self, group: Group, param: Tensor, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            if name == "step" or not isinstance(value, Tensor):
                continue
            shape = self._state_shape(group, name, param)
            if value.shape != shape:
                raise ValueError(f"Invalid state_dict: {name} has shape {tuple(value.shape)}, "
                                 f"its parameter {tuple(param.shape)}: must be {shape}")

    def _restored(self, param: Tensor, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved state in this optimizer's dtypes, on the parameter's device; never the caller's own tensors."""
        state = {}
        for name, value in saved.items():
            if name != "step" and isinstance(value, Tensor) and value.is_floating_point():
                value = value.detach().to(dtype=self._state_dtype_of(param), device=param.device, copy=True)
            if value is not None:  # torch.optim.SGD saves momentum_buffer=None
                state[name] = value
        # torch.optim.SGD counts no steps: with a momentum buffer, at least one was taken.
        step = saved.get("step", 1.0 if state else 0.0)
        state["step"] = torch.tensor(float(step), dtype=torch.float64, device=param.device)
        return state
