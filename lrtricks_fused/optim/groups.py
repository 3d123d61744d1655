"""Parameter groups and the states of their parameters: what may be in them, and what a new one starts from."""

from collections.abc import Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ..step.backends import resolve
from ..step.host import same
from ..step.rule import RULES
from ..step.storage import STATE_DTYPES
from . import compiled, identity
from .arguments import ARGUMENTS, GROUP_CHECKS, IN_TENSORS, NOT_OF_GROUP, OF_OPTIMIZER, check_number
from .checks import as_python, as_seed, check_grad_weight, check_group, check_kind, check_param
from .flattened import are_flattened, check_flattened, of_wholes
from .kept import KeptStates
from .shards import index_map, is_dtensor

Group = dict[str, Any]
Hyper = dict[str, float | bool | int]
LISTS = ("params", "param_names")  # a group's entries with one element per parameter
LOW = "param_low"  # the state that completes a bfloat16 parameter to its master
ALLOW_NEGATIVE = "allow_negative_grad_weight"  # a group's key in checkpoints of earlier versions


# Of values that these types have, all is said by which object they are.
_CONSTANTS = (float, int, bool, str, type(None))


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS or (type(value) is tuple and all(map(_is_constant, value)))


_of_optimizer = attrgetter(*OF_OPTIMIZER)


class CheckedGroup:
    """What follows from the values of a checked group, kept for as long as these stay.

    Attributes:
        names: the states of the rule, and whether the group has them.
        wanted: the count of steps, the identity, and the states that it has.
        hyper, first_hyper: the rule's hyper-parameters, and those of the step for which states have just been made.
        arguments: what a StepCall takes from the group.
        tensors: those of IN_TENSORS that tensors hold.
        is_constant: whether the values themselves cannot change, but only be replaced.
        is_steady: whether that is so of all but the tensors.
    """

    def __init__(self, optimizer: "GroupedOptimizer", group: Group) -> None:
        if isinstance(group.get("names"), torch.nn.Module):  # ZeroRedundancyOptimizer hands it on with every step
            del group["names"]
        optimizer._check_group(group)
        self._group, self._names, self._values = group, list(group), list(group.values())
        self._lists = [group.get(name) for name in LISTS]
        self._of_optimizer = optimizer._what_checks_read()
        self.tensors = {name: group[name] for name in IN_TENSORS if type(group[name]) is Tensor}
        constant = {name: _is_constant(value) for name, value in group.items() if name not in LISTS}
        self.is_constant = all(constant.values())
        self.is_steady = all(steady or name in self.tensors for name, steady in constant.items())
        self.names = optimizer._state_names(group)
        self.wanted = ["step", identity.IDENTITY, *(name for name, used in self.names.items() if used)]
        self.hyper, self.first_hyper = optimizer._hyper(group), optimizer._first_hyper(group)
        self.scalars = optimizer._scalar_states(group)
        self.arguments: dict[str, Any] = dict(
            rule=optimizer._rule(group),
            lr=_number(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            decoupled_weight_decay=bool(group.get("decoupled_weight_decay", False)),
            maximize=bool(group["maximize"]),
            keep_prob=_number(group["keep_prob"]),
            grad_weight=_number(group["grad_weight"]),
            seed=as_seed(group["seed"]),
            centralize=bool(group["centralize"]),
        )

    def holds(self, optimizer: "GroupedOptimizer", group: Group) -> bool:
        """Whether the group is the same, with the very same values."""
        return (
            self.is_constant
            and self._group is group
            and self._names == list(group)
            and all(map(is_, group.values(), self._values))
            and same(self._of_optimizer, optimizer._what_checks_read())
        )

    def has_lists(self, group: Group) -> bool:
        """Whether the group has the same lists of parameters and names."""
        return all(group.get(name) is held for name, held in zip(LISTS, self._lists, strict=True))

    def check_tensors(self, optimizer: "GroupedOptimizer") -> None:
        """Raises ValueError or TypeError where a number in a tensor, which may be another by now, is invalid."""
        for name, value in self.tensors.items():
            check_number(name, value, optimizer.allow_negative_grad_weight)


def _number(value: Any) -> float | Tensor:
    """A checked hyper-parameter as a backend takes it."""
    return value if isinstance(value, Tensor) else float(value)


class GroupedOptimizer(torch.optim.Optimizer):
    """What all optimizers share of groups and states.

    Subclasses say which rule runs, which states a group needs and which hyper-parameters the rule reads.
    """

    rule: str
    backend: str
    state_dtype: torch.dtype | None
    allow_negative_grad_weight = False  # whether steps take gradient weights below 0; see MaskedOptimizer
    _checked_groups: dict[int, CheckedGroup]  # by the groups' ids, kept between steps
    _names: dict[Tensor, str] | None = None  # the constructor's, while it adds the groups
    _own_names: identity.OwnNames
    _attributes: tuple[Any, ...] | None = None  # of OF_OPTIMIZER, as they were checked
    _maps: dict[Any, Any]  # what is local of DTensors, kept between steps
    _kept: KeptStates | None = None  # of the last step
    _master: str | None = None  # the argument ``master``, which earlier versions have not pickled
    _flattened = False  # whether a parameter is a shard that FSDP1 has flattened

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Whether it is constructed, copied or unpickled."""
        optimizer = super().__new__(cls)
        optimizer._own_names = identity.OwnNames()
        compiled.enter(optimizer)
        return optimizer

    # -- what a subclass defines ---------------------------------------------------------------------------

    def _rule(self, group: Group) -> str:
        """Which rule steps this group."""
        return self.rule

    def _state_names(self, group: Group) -> dict[str, bool]:
        """The rule's states in the order of its op, and whether this group has them; rules of variants override it."""
        return dict.fromkeys(RULES[self._rule(group)].always, True)

    def _scalar_states(self, group: Group) -> dict[str, float]:
        """Those of the states that are one float64 number per parameter, and what each starts from."""
        return dict(RULES[self._rule(group)].scalar_states)

    def _hyper(self, group: Group) -> Hyper:
        """The rule's hyper-parameters, by the names in its op."""
        raise NotImplementedError

    def _first_hyper(self, group: Group) -> Hyper:
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

    def _state_shape(self, group: Group, name: str, param: Tensor) -> tuple[int, ...]:
        """Shape of a state: the parameter's, unless the subclass says otherwise (such a state is contiguous)."""
        return tuple(param.shape)

    def _splits(self, dtype: torch.dtype) -> bool:
        """Whether parameters of this dtype are halves of masters."""
        return self._master is not None and dtype == torch.bfloat16

    # -- groups --------------------------------------------------------------------------------------------

    def _check_group(self, group: Group, allow_negative: bool = False) -> None:
        check_group(group)
        for name, check in GROUP_CHECKS:
            check(name, group[name])
        check_grad_weight(group["grad_weight"], allow_negative or self.allow_negative_grad_weight)
        self._check_rule(group)
        if group.get("param_names") is not None and "params" in group:
            identity.check_name_count(group["param_names"], len(group["params"]))
        if self._flattened:
            self._check_flattened(group)

    def _what_checks_read(self) -> tuple[Any, ...]:
        """Of the optimizer, what the check of a group depends on."""
        if not self._flattened:
            return (self.allow_negative_grad_weight,)
        return self.allow_negative_grad_weight, *of_wholes(self).values()

    def _check_attributes(self) -> None:
        """Look at the arguments that are attributes, where these are others than at the last look.

        Raises:
            ValueError, TypeError: one of them is invalid, or does not go with the parameters.
        """
        now = _of_optimizer(self)
        if self._attributes is not None and same(self._attributes, now):
            return
        for name, value in zip(OF_OPTIMIZER, now, strict=True):
            check = ARGUMENTS[name].check
            if check is not None:
                check(name, value)
        if self._attributes is not None:
            before = zip(OF_OPTIMIZER, self._attributes, now, strict=True)
            self._check_changed({name for name, old, new in before if old is not new})
        self._attributes = now

    def _check_changed(self, names: set[str]) -> None:
        """Raises ValueError or TypeError where attributes of these names do not go with the parameters."""
        if "state_dtype" in names:
            for param in self._params():
                if param.requires_grad and param.dtype in STATE_DTYPES:
                    check_param(param, self.state_dtype)

    def _checked_group(self, group: Group) -> CheckedGroup:
        """The group, checked, and what follows from it.

        Raises:
            ValueError, TypeError: a hyper-parameter is invalid.
        """
        if torch.compiler.is_compiling():
            return CheckedGroup(self, group)
        checked = self._checked_groups.get(id(group))
        if checked is None or not checked.holds(self, group):
            if checked is None or not checked.has_lists(group):
                self._look_at([group] if self._checked_groups else self.param_groups)
            checked = self._checked_groups[id(group)] = CheckedGroup(self, group)
        if len(self._checked_groups) > len(self.param_groups):  # some have gone, and nothing may hold their parameters
            self._checked_groups = {id(group): checked}
        return checked

    def _look_at(self, groups: list[Group]) -> None:
        """See what others have done to groups: names of other parameters are replaced, flattened ones are noted."""
        for group in groups:
            self._own_names.restore(group)
            self._flattened = self._flattened or are_flattened(group["params"])

    def _check_flattened(self, group: Group) -> None:
        check_flattened({**of_wholes(self), **group})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch.optim does. Keep bits of parameters added earlier do not change.

        Args:
            param_group: may also have ``names``, the model that names its parameters; it is not kept.

        Raises:
            ValueError, TypeError: an option, a parameter or a name is invalid; the optimizer is as it was.
        """
        flattened = by_names = False
        if isinstance(param_group, dict) and "params" in param_group:
            self._check_names(param_group)
            group = {**self.defaults, **param_group}
            self._check_group(group, bool(group.get(ALLOW_NEGATIVE)))
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else params
            if not isinstance(params, set):
                param_group["params"] = params = list(params)
                tensors = [param[1] if isinstance(param, tuple) else param for param in params]
                for tensor in tensors:
                    self._check_param(tensor)
                flattened = are_flattened(tensors)
                if flattened:
                    self._check_flattened(group)
                by_names = self._name(param_group, params)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        added.update({name: as_python(added[name]) for name in added.keys() & self.defaults})
        self._flattened = self._flattened or flattened
        self._own_names.enter(added, by_names)
        self._take_over(added)

    def _check_names(self, group: Group) -> None:
        """Raises ValueError where a new group says otherwise what is said of the whole optimizer.

        What says the same is ignored: ZeroRedundancyOptimizer has all arguments of the constructor in its groups.
        """
        for name in sorted(NOT_OF_GROUP & group.keys()):
            own = self._master if name == "master" else getattr(self, name)
            if not (group[name] is own or bool(group[name] == own)):
                raise ValueError(f"Invalid {name}={group[name]!r} in a group: it is {own!r} for the whole optimizer")

    def _name(self, group: Group, params: list[Any]) -> bool:
        """Enter the names of a new group's parameters, if there are any, where torch has them.

        Returns:
            Whether ``names`` says them, the constructor's or the group's.
        """
        given = identity.by_param(group.get("names")) or self._names
        names = identity.names_of(group, params, given)
        identity.check_names(self.param_groups, names, len(params))
        group.pop("names", None)
        if names is not None:
            group["param_names"] = list(names)
        return names is not None and given is not None

    def _take_over(self, group: Group) -> None:
        """Move what a group of an earlier version says, that negative weights are allowed, to the optimizer."""
        if group.pop(ALLOW_NEGATIVE, False):
            self.allow_negative_grad_weight = True

    def _check_param(self, param: Any) -> None:
        if is_dtensor(param):
            index_map(param)  # which refuses what cannot be stepped
        else:
            check_kind(param)
        if isinstance(param, Tensor) and param.requires_grad:  # a frozen one may be of any dtype, on any device
            check_param(param, self.state_dtype)
            resolve(self.backend, param.device)

    def _params(self) -> Iterator[Tensor]:
        """All parameters, in state_dict order."""
        return (param for group in self.param_groups for param in group["params"])


def allow_negative_grad_weight(optimizer: Any, allowed: bool) -> None:
    """Set this attribute of one of our optimizers, also of one inside a wrapper that has its groups, such as LossGrad.

    Args:
        optimizer: of any kind; others are left alone.
        allowed: whether its steps take gradient weights below 0.
    """
    while not isinstance(optimizer, GroupedOptimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if isinstance(optimizer, GroupedOptimizer):
        optimizer.allow_negative_grad_weight = allowed
