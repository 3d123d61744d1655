"""What all masked optimizers share: groups, state, checkpoints, and the hand-over to a backend. No arithmetic."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..backends import check_backend, resolve
from ..call import StepCall
from ..keep import keep_mask

Group = dict[str, Any]
PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_range(name: str, value: float | Tensor, low: float, high: float, brackets: str = "[]") -> None:
    """Raises ValueError unless low <= value <= high (with ``brackets="[)"``: < high); NaN is refused.

    Tensors that are not on the CPU are not read: that would synchronise with the device.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Invalid {name} of shape {tuple(value.shape)}: must be a float or a tensor of one element")
        if value.device.type != "cpu":
            return
        value = float(value)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"Invalid {name}={value!r}: must be a float")
    below_high = value < high if brackets[1] == ")" else value <= high
    if not (low <= value and below_high):
        wanted = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{brackets[1]}"
        raise ValueError(f"Invalid {name}={value}: must be {wanted}")


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
        seed: int,
        backend: str,
        state_dtype: torch.dtype | None,
    ) -> None:
        check_backend(backend)
        self.backend = backend
        self.state_dtype = state_dtype
        super().__init__(params, dict(defaults, keep_prob=keep_prob, grad_weight=grad_weight, seed=seed))

    # -- what a subclass defines ---------------------------------------------------------------------------

    def _state_names(self, group: Group) -> dict[str, bool]:
        """The rule's states in the order of its op, and whether this group has them."""
        raise NotImplementedError

    def _hyper(self, group: Group) -> dict[str, float | bool]:
        """The rule's hyper-parameters, by the names in its op."""
        raise NotImplementedError

    def _check_rule(self, group: Group) -> None:
        """Raises ValueError for hyper-parameters that only this rule has."""
        raise NotImplementedError

    # -- validation ----------------------------------------------------------------------------------------

    def _check_group(self, group: Group) -> None:
        check_range("lr", group["lr"], 0.0, math.inf)
        check_range("weight_decay", group["weight_decay"], 0.0, math.inf)
        check_range("keep_prob", group["keep_prob"], 0.0, 1.0)
        check_range("grad_weight", group["grad_weight"], 0.0, math.inf)
        seed = group["seed"]
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"Invalid seed={seed!r}: must be an int in [0, 2**64)")
        if group.get("differentiable"):
            raise ValueError("Invalid differentiable=True: a fused step cannot be differentiated through")
        self._check_rule(group)

    def _check_param(self, param: Any) -> None:
        if not isinstance(param, Tensor):
            return  # torch's own error
        if param.dtype not in PARAM_DTYPES:
            raise TypeError(f"Invalid parameter of dtype {param.dtype}: must be one of {PARAM_DTYPES}")
        if self.state_dtype not in (None, torch.float32, param.dtype) and param.dtype.itemsize == 2:
            raise ValueError(f"Invalid state_dtype={self.state_dtype} for a {param.dtype} parameter: "
                             f"must be torch.float32 or {param.dtype}")
        resolve(self.backend, param.device)

    def _check_grad(self, param: Tensor, grad: Tensor) -> None:
        if grad.layout is not torch.strided:
            raise ValueError(f"Invalid gradient of layout {grad.layout}: sparse gradients are not supported")
        for what in ("dtype", "device", "shape"):
            of_grad, of_param = getattr(grad, what), getattr(param, what)
            if of_grad != of_param:
                raise ValueError(f"Invalid gradient of {what} {of_grad}: its parameter has {of_param}")

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

    def _state_dtype_of(self, param: Tensor) -> torch.dtype:
        return (self.state_dtype or torch.float32) if param.dtype.itemsize == 2 else param.dtype

    def _init_state(self, param: Tensor, names: list[str]) -> dict[str, Tensor]:
        """The parameter's state, with what is missing created as zeros."""
        state = self.state[param]
        if "step" not in state:
            # float64, and not torch.optim's float32, which would count to 2**24 only.
            state["step"] = torch.zeros((), dtype=torch.float64, device=param.device)
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(
                    param, dtype=self._state_dtype_of(param), memory_format=torch.preserve_format
                )
        return state

    def _indexed(self) -> Iterator[tuple[Group, list[tuple[int, Tensor]]]]:
        """Groups with their parameters numbered in state_dict order."""
        first = 0
        for group in self.param_groups:
            yield group, list(enumerate(group["params"], first))
            first += len(group["params"])

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
        work = []
        for group, params in self._indexed():  # all checks come first
            self._check_group(group)
            by_device: dict[torch.device, list[tuple[int, Tensor, Tensor]]] = {}
            for index, param in params:
                grad = param.grad
                if grad is not None:
                    self._check_grad(param, grad)
                    by_device.setdefault(param.device, []).append((index, param, grad))
            work += [(resolve(self.backend, device), group, items) for device, items in by_device.items()]
        for run, group, items in work:
            run(self._call(group, items))
        return loss

    def _call(self, group: Group, items: list[tuple[int, Tensor, Tensor]]) -> StepCall:
        names = self._state_names(group)
        wanted = [name for name, used in names.items() if used]
        indices, params, grads = map(list, zip(*items, strict=True))
        states = [self._init_state(param, wanted) for param in params]
        return StepCall(
            rule=self.rule,
            params=params,
            grads=grads,
            states={name: [state[name] for state in states] if used else [] for name, used in names.items()},
            steps=[state["step"] for state in states],
            param_indices=indices,
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
        )

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
        for group, params in self._indexed():
            for index, candidate in params:
                if candidate is param:
                    return keep_mask(param.shape, float(group["keep_prob"]), group["seed"], step, index, param.device)
        raise ValueError(f"Invalid param of shape {tuple(param.shape)}: it is not in this optimizer")

    # -- checkpoints ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep."""
        return {**super().__getstate__(), "backend": self.backend, "state_dtype": self.state_dtype}

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
            for param, saved in self._saved_states(seen):
                self._check_saved(param, saved)
            return dict(seen)

        def after(_: torch.optim.Optimizer) -> None:
            for param, saved in self._saved_states(seen):
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

    def _saved_states(self, state_dict: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for saved, current in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for key, param in zip(saved["params"], current["params"], strict=True):
                if key in state_dict["state"]:
                    yield param, state_dict["state"][key]

    def _check_saved(self, param: Tensor, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            if name != "step" and isinstance(value, Tensor) and value.shape != param.shape:
                raise ValueError(f"Invalid state_dict: {name} has shape {tuple(value.shape)}, "
                                 f"its parameter {tuple(param.shape)}")

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
