"""Whose keep bits a parameter draws: its identity, 32 bits that go with the parameter and not with its place.

A parameter that has been stepped has its identity in its state, and a checkpoint carries it. One that has not takes it
from its name, so that it is the same in every optimizer, group, order and process; and without names from its index in
``optimizer.state_dict()`` order.
"""

import zlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor, nn

from ..step.operands import check_identity

IDENTITY = "identity"  # the entry in a parameter's state
# Components that a wrapper puts into the names of what it wraps: DDP and FSDP1, torch.compile, FSDP1, checkpoints.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

Group = dict[str, Any]
Names = nn.Module | Iterable[tuple[str, Tensor]]


def canonical(name: str) -> str:
    """A parameter's name in the model without wrappers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def of_name(name: str) -> int:
    """The identity of a parameter of this name, which wrappers do not change."""
    return zlib.crc32(canonical(name).encode())


# A tracer cannot look into it: torch.compiler.assume_constant_result, which would import the compiler, and Triton, now.
vars(of_name)["_dynamo_marked_constant"] = True


def by_param(names: Names | None) -> dict[Tensor, str] | None:
    """Names by their parameters, of a model or of pairs; of several names of one parameter the first.

    Raises:
        TypeError: it is neither.
    """
    if names is None:
        return None
    pairs = list(names.named_parameters() if isinstance(names, nn.Module) else _iterated(names))
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise TypeError(f"Invalid names: {_described(pair)} is no pair of a name and a parameter")
    return {param: name for name, param in reversed(pairs)}


def _iterated(names: Any) -> Iterable[Any]:
    if not isinstance(names, Iterable) or isinstance(names, str) or hasattr(names, "__array__"):
        raise TypeError(
            f"Invalid names of type {type(names).__name__}: must be a model, or pairs of name and parameter"
        )
    return names


def _described(value: object) -> str:
    return type(value).__name__ if isinstance(value, (Tensor, tuple)) else repr(value)


def names_of(group: Group, params: list[Any], given: Mapping[Tensor, str] | None) -> list[str] | None:
    """The names of a new group's parameters: those that it brings itself, else those ``given``, else None.

    Raises:
        ValueError: some parameters have a name and others have none.
    """
    named = [param[0] for param in params if isinstance(param, tuple)]
    if named:
        return named if len(named) == len(params) else None  # which torch refuses
    if "param_names" in group or given is None:
        return group.get("param_names")
    missing = [tuple(param.shape) for param in params if isinstance(param, Tensor) and param not in given]
    if missing:
        some = ", ".join(map(str, missing[:3]))
        raise ValueError(f"Invalid names: {len(missing)} of {len(params)} parameters have none (of shapes {some})")
    return [given[param] for param in params if isinstance(param, Tensor)]


def check_names(groups: list[Group], names: list[str] | None, count: int) -> None:
    """Raises ValueError or TypeError unless these can be the names of ``count`` parameters beside those of ``groups``.

    Names are taken without the components of wrappers, as identities are.
    """
    if names is None:
        return
    check_name_count(names, count)
    seen = {canonical(name): name for group in groups for name in group.get("param_names", ())}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Invalid param_names: {name!r} is not a name")
        if canonical(name) in seen:
            raise ValueError(
                f"Invalid param_names: {name!r} and {seen[canonical(name)]!r} are the same name, and would draw the "
                "same masks"
            )
        seen[canonical(name)] = name


def check_name_count(names: list[str], count: int) -> None:
    """Raises ValueError unless there is one name for each of ``count`` parameters."""
    if len(names) != count:
        raise ValueError(
            f"Invalid param_names: {len(names)} names of {count} parameters; where a wrapper hands on only some of the "
            "parameters (as ZeroRedundancyOptimizer does), give names=model instead"
        )


class OwnNames:
    """The names that parameters of groups have by ``names``, whatever others write into the groups since.

    ZeroRedundancyOptimizer, where it loads, writes the names of one rank's parameters into the groups of all ranks.

    Args:
        groups: those that it knows.
        names: of the parameters of each, or None.
    """

    def __init__(self, groups: Iterable[Group] = (), names: Iterable[list[str] | None] = ()) -> None:
        pairs = zip(groups, names, strict=True)
        self._known = {id(group): (_ids(group), own) for group, own in pairs if own is not None}

    def enter(self, group: Group, by_names: bool) -> None:
        """Know those of a new group, if ``names`` gives them."""
        self._known.pop(id(group), None)
        if by_names:
            self._known[id(group)] = _ids(group), list(group["param_names"])

    def of(self, groups: Iterable[Group]) -> list[list[str] | None]:
        """The names of each group's parameters; None where they are not known, or the group has others by now."""
        return [self._of(group) for group in groups]

    def _of(self, group: Group) -> list[str] | None:
        ids, names = self._known.get(id(group), (None, None))
        return names if ids is not None and ids == _ids(group) else None

    def restore(self, group: Group) -> None:
        """Put them back where the group has other names."""
        own = self._of(group)
        if own is not None and own != group.get("param_names"):
            group["param_names"] = list(own)


def _ids(group: Group) -> list[int]:
    """Of a group's parameters, which are not held: they may be replaced, as accelerate does, and have other names."""
    return list(map(id, group["params"]))


def identities(
    groups: list[Group], known: Mapping[Tensor, int], by_index: AbstractSet[Tensor] = frozenset()
) -> dict[Tensor, int]:
    """The identities of all parameters.

    The known ones stay. Others follow from the names, or, without names and for the parameters of ``by_index``, are the
    index in state_dict order. Where another parameter has that number already (groups were removed or put in another
    order), it is the first one that no parameter's index and no identity is.

    Raises:
        ValueError: a group has names, but not one for each of its parameters.
    """
    taken = set(known.values())
    found: dict[Tensor, int] = {}
    displaced: list[Tensor] = []
    index = 0
    for group in groups:
        params, names = group["params"], group.get("param_names")
        if names is not None:
            check_name_count(names, len(params))
        for place, param in enumerate(params):
            if param in known:
                found[param] = known[param]
            elif names is not None and param not in by_index:
                found[param] = of_name(names[place])
            elif index in taken:
                displaced.append(param)
            else:
                found.setdefault(param, index)
            index += 1
    for param in displaced:
        while index in taken:
            index += 1
        found[param] = index
        index += 1
    return found


def present_identities(groups: list[Group], state: Mapping[Tensor, Any]) -> dict[Tensor, int]:
    """The identities of all parameters of an optimizer, of those that have not been stepped, too."""
    states = {param: state[param] for group in groups for param in group["params"] if param in state}
    known = {param: check_identity(own[IDENTITY]) for param, own in states.items() if IDENTITY in own}
    # As pickled by a version without identities, which stepped by the index.
    by_index = {param for param, own in states.items() if "step" in own and IDENTITY not in own}
    return identities(groups, known, by_index)


def loaded_identities(
    groups: list[Group], saved_groups: list[Group], saved_states: Mapping[Tensor, Group]
) -> dict[Tensor, int]:
    """The identities of the parameters that a checkpoint has states of.

    The saved ones stay. A checkpoint of our own without any is of an earlier version, which drew by the index in
    state_dict order, and so goes on; one of torch.optim's has drawn nothing.

    Args:
        groups: the optimizer's.
        saved_groups: the checkpoint's, beside them.
        saved_states: the checkpoint's states by the optimizer's parameters.

    Raises:
        ValueError: a saved identity is none, or of another parameter.
    """
    known = {
        p: check_identity(state[IDENTITY], "state_dict: ") for p, state in saved_states.items() if IDENTITY in state
    }
    _check_owners(groups, known)
    ours = [group for group, saved in zip(groups, saved_groups, strict=True) if "seed" in saved]
    # Not those whose state is empty: somebody has asked for it, and no version has stepped them.
    by_index = {param for group in ours for param in group["params"] if "step" in saved_states.get(param, ())}
    found = identities(groups, known, by_index)
    return {param: found[param] for param in saved_states}


def _check_owners(groups: list[Group], known: Mapping[Tensor, int]) -> None:
    """Raises ValueError where two parameters have one identity, or one has what another's name says."""
    named = {p: name for g in groups for p, name in zip(g["params"], g.get("param_names") or (), strict=False)}
    of_names = {of_name(name): param for param, name in named.items()}
    owners: dict[int, Tensor] = {}
    for param, identity in known.items():
        own = param in named and identity == of_name(named[param])  # two names may, by chance, have one identity
        if identity in owners and not own:
            shapes = f"{tuple(owners[identity].shape)} and {tuple(param.shape)}"
            raise ValueError(
                f"Invalid state_dict: two parameters, of shapes {shapes}, have identity={identity}; without the "
                "entries 'identity' they would draw by their names or indices"
            )
        if identity in of_names and not own:
            raise ValueError(
                f"Invalid state_dict: identity={identity} of {named.get(param)!r} is that of "
                f"{named[of_names[identity]]!r}: the parameters are in another order than those that were saved"
            )
        owners[identity] = param
