"""Parameter groups by layer, and a scheduler that decays the learning rate of some of them only."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ..optim.checks import check_count, check_real
from .follow import FollowingLR

Group = dict[str, Any]


def _names(argument: str, names: str | Iterable[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    for index, name in enumerate(listed):
        if not isinstance(name, str):
            raise TypeError(f"Invalid {argument}: {name!r} is not a name")
        if name in listed[:index]:
            raise ValueError(f"Invalid {argument}: {name!r} is there twice")
    if not listed:
        raise ValueError(f"Invalid {argument}: there is no name in it")
    return listed


def _owner(names: list[str], layers: list[str]) -> str | None:
    """The layer of a parameter: the most specific one that holds the first of its names that any layer holds."""
    for name in names:
        holding = [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]
        if holding:
            return max(holding, key=len)
    return None


def layer_groups(
    model: torch.nn.Module,
    layers: str | Iterable[str] | Mapping[str, Mapping[str, Any]],
    *,
    rest: str = "rest",
    named: bool = False,
    **options: Any,
) -> list[Group]:
    """Parameter groups for an optimizer: one for each named layer, and one for what is left.

    Every parameter of the model is in exactly one group, a shared one too; inside a group they are in the order of
    ``model.parameters()``. With layers inside each other ("encoder", "encoder.0") the most specific one has the
    parameter; a shared parameter goes by the first of its names that a layer holds.

    Args:
        model: whose parameters, frozen ones too.
        layers: names of modules or parameters, each standing for all parameters below it ("layer1" does not stand
            for "layer10"); or a mapping from such names to options of their own group.
        rest: name of the last group, which has the optimizer's defaults; left out where nothing is left.
        named: groups hold (name, parameter), as ``model.named_parameters()``, for torch's ``param_names``.
        options: of the groups of all named layers, e.g. ``lr=1e-3``.

    Returns:
        Groups with "params" and "name", in the order of ``layers``.

    Raises:
        ValueError: a name is not in the model, twice in ``layers``, or no parameter is left for it.
        TypeError: a name is not a string.
    """
    listed = _names("layers", layers)
    if rest in listed:
        raise ValueError(f"Invalid rest={rest!r}: a layer has that name")
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    known = {name for name, _ in model.named_modules(remove_duplicate=False)} | {n for ns in names.values() for n in ns}
    members: dict[str | None, list] = {layer: [] for layer in listed} | {None: []}
    for param, own in names.items():
        members[_owner(own, listed)].append((own[0], param) if named else param)
    groups = []
    for layer in listed:
        if layer not in known or not layer:
            raise ValueError(f"Invalid layers: {layer!r} is not in the model")
        if not members[layer]:
            raise ValueError(f"Invalid layers: no parameter is left for {layer!r}")
        own_options = layers[layer] if isinstance(layers, Mapping) else {}
        groups.append({**options, **own_options, "params": members[layer], "name": layer})
    return groups + ([{"params": members[None], "name": rest}] if members[None] else [])


class SubnetworkLR(FollowingLR, LambdaLR):
    r"""LambdaLR on the groups of some names; the learning rates of all other groups are left as they are.

    .. math::
        \eta_t = \eta_0 \cdot \text{lr\_lambda}(t) \quad \text{in the groups named by names}

    Several of them, or another scheduler that writes other groups only, can work on one optimizer side by side. A group
    of such a name that is added later goes on from the lr it is given: its eta_0 is that lr / lr_lambda(t), or that lr
    where lr_lambda(t) is 0.

    Args:
        optimizer: with groups that have a "name", as from ``layer_groups``.
        names: a group's name, or several; all groups of such a name are meant.
        lr_lambda: the factor as a function of the number of steps of this scheduler; as for LambdaLR it is saved in
            the state_dict only if it is an object with a ``__dict__``, not a function.
        last_epoch: as for LambdaLR.

    Raises:
        ValueError: no group has one of the names, or a name is there twice.
        TypeError: lr_lambda is not callable, a name is not a string.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: str | Iterable[str],
        lr_lambda: Callable[[int], float],
        last_epoch: int = -1,
    ) -> None:
        if not callable(lr_lambda):
            raise TypeError(f"Invalid lr_lambda={lr_lambda!r}: must be a function of the step")
        self.names = _names("names", names)
        present = [group.get("name") for group in optimizer.param_groups]
        for name in self.names:
            if name not in present:
                raise ValueError(f"Invalid names: {name!r} is not the name of a group; the groups are {present}")
        last_epoch = check_count("last_epoch", last_epoch, -1)
        self._watch(optimizer)
        super().__init__(optimizer, lr_lambda, last_epoch)

    def _factor(self) -> float | Tensor:
        factor = self.lr_lambdas[0](self.last_epoch)
        return factor if isinstance(factor, Tensor) else check_real("lr_lambda", factor)

    def _adopt(self, lr: float | Tensor, place: int) -> Group:
        factor = self._factor()
        lr = lr.clone() if isinstance(lr, Tensor) else lr
        return {"base_lrs": lr / factor if factor else lr, "_last_lr": lr}

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of all groups at the present step."""
        factor = self._factor()
        return [
            base * factor if group.get("name") in self.names else group["lr"]
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As LambdaLR's; there is one lr_lambda, however many groups the checkpoint has."""
        super().load_state_dict({**state_dict, "lr_lambdas": state_dict["lr_lambdas"][: len(self.lr_lambdas)]})
