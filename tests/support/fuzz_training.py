"""What a training script does to an optimizer between its steps: each event is a function of it and of a generator.

All are allowed, at any time. Applied to several optimizers with equal generators, an event does the same to each; one
that returns an optimizer puts that in its place.
"""

import copy
import pickle
import random

import torch
from torch import Tensor

Optimizer = torch.optim.Optimizer
Random = random.Random
SHAPES = [(1,), (65,), (513,), (5, 7), (33, 20), (2, 3, 4, 5), (8, 600)]
OF_PACKAGE = ("keep_prob", "grad_weight", "centralize", "seed")  # of a group, which torch.optim's have not


def params_of(opt: Optimizer) -> list[Tensor]:
    return [param for group in opt.param_groups for param in group["params"]]


def values(rng: Random, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn(shape, generator=generator).to(dtype)


def new_gradients(opt: Optimizer, rng: Random) -> None:
    """New objects, of all that have one; float32 where the parameter has 16 bits, now and then."""
    for param in params_of(opt):
        if param.grad is not None:
            param.grad = values(rng, param.shape, param.dtype)


def gradients_in_place(opt: Optimizer, rng: Random) -> None:
    for param in params_of(opt):
        if param.grad is not None:
            param.grad.add_(values(rng, param.shape, param.dtype))


def zeros_as_gradients(opt: Optimizer, rng: Random) -> None:
    opt.zero_grad(set_to_none=False)


def a_gradient_appears(opt: Optimizer, rng: Random) -> None:
    param = rng.choice(params_of(opt))
    param.grad = values(rng, param.shape, param.dtype)


def a_gradient_is_gone(opt: Optimizer, rng: Random) -> None:
    rng.choice(params_of(opt)).grad = None


def all_gradients_are_gone(opt: Optimizer, rng: Random) -> None:
    opt.zero_grad()


def a_gradient_of_other_strides(opt: Optimizer, rng: Random) -> None:
    param = rng.choice(params_of(opt))
    param.grad = values(rng, param.shape[::-1], param.dtype).permute(*range(param.dim() - 1, -1, -1))


def data_swapped(opt: Optimizer, rng: Random) -> None:
    param = rng.choice(params_of(opt))
    param.data = param.data.clone() + 1


def data_transposed(opt: Optimizer, rng: Random) -> None:
    """The same values in another layout."""
    param = rng.choice(params_of(opt))
    param.data = param.data.transpose(0, -1).contiguous().transpose(0, -1)


def data_in_place(opt: Optimizer, rng: Random) -> None:
    with torch.no_grad():
        rng.choice(params_of(opt)).mul_(0.5)


def frozen(opt: Optimizer, rng: Random) -> None:
    param = rng.choice(params_of(opt))
    param.requires_grad_(not param.requires_grad)


def added_group(opt: Optimizer, rng: Random) -> None:
    shape, dtype = rng.choice(SHAPES), params_of(opt)[0].dtype
    param = values(rng, shape, dtype).requires_grad_()
    param.grad = rng.choice([None, values(rng, shape, dtype)])
    named = "param_names" in opt.param_groups[0]
    opt.add_param_group({"params": [(f"later.{len(opt.param_groups)}", param)] if named else [param], "lr": 0.05})


def removed_group(opt: Optimizer, rng: Random) -> None:
    if len(opt.param_groups) > 1:
        for param in opt.param_groups.pop()["params"]:
            opt.state.pop(param, None)


def other_order(opt: Optimizer, rng: Random) -> None:
    group = rng.choice(opt.param_groups)
    places = list(range(len(group["params"])))
    rng.shuffle(places)
    for name in ("params", "param_names"):
        if name in group:
            group[name] = [group[name][place] for place in places]


def scheduled(opt: Optimizer, rng: Random) -> None:
    for group in opt.param_groups:
        group["lr"] *= 0.9


def deep_copied(opt: Optimizer, rng: Random) -> Optimizer:
    return copy.deepcopy(opt)


def pickled(opt: Optimizer, rng: Random) -> Optimizer:
    return pickle.loads(pickle.dumps(opt))


def loaded(opt: Optimizer, rng: Random) -> None:
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def loaded_own(opt: Optimizer, rng: Random) -> None:
    """Of its very own tensors."""
    opt.load_state_dict(opt.state_dict())


def loaded_of_other_types(opt: Optimizer, rng: Random) -> None:
    """As torch.optim saves it: counts in float32."""
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"]).float()
    opt.load_state_dict(saved)


def loaded_without_groups_of_the_package(opt: Optimizer, rng: Random) -> None:
    """What a checkpoint of torch.optim lacks is taken from the groups as they are."""
    saved = copy.deepcopy(opt.state_dict())
    for group in saved["param_groups"]:
        for name in OF_PACKAGE:
            group.pop(name, None)
    for state in saved["state"].values():
        state.pop("note", None)
    opt.load_state_dict(saved)


def foreign_entry(opt: Optimizer, rng: Random) -> None:
    """A state of the user's own, which nobody reads."""
    param = rng.choice(params_of(opt))
    if param in opt.state:
        opt.state[param]["note"] = 3


def states_are_gone(opt: Optimizer, rng: Random) -> None:
    opt.state.pop(rng.choice(params_of(opt)), None)


def state_dict_looked_at(opt: Optimizer, rng: Random) -> None:
    opt.state_dict()
    repr(opt)


TRAINING = [
    new_gradients, new_gradients, gradients_in_place, zeros_as_gradients, a_gradient_appears, a_gradient_appears,
    a_gradient_is_gone, all_gradients_are_gone, a_gradient_of_other_strides, data_swapped, data_transposed,
    data_in_place, frozen, added_group, removed_group, other_order, scheduled, deep_copied, pickled, loaded, loaded_own,
    loaded_of_other_types, loaded_without_groups_of_the_package, foreign_entry, states_are_gone, state_dict_looked_at,
]  # fmt: skip


# -- of this package's optimizers alone --------------------------------------------------------------------------------


def metrics_toggled(opt, rng):
    opt.track_metrics = not opt.track_metrics


def changes_toggled(opt, rng):
    opt.track_changes = not opt.track_changes


def clipping_toggled(opt, rng):
    opt.max_norm = None if opt.max_norm else 0.5


def mirrored(opt, rng):
    param = rng.choice(params_of(opt))
    if param.dtype == torch.float32:
        opt.mirror(param, rng.choice([None, torch.empty_like(param, dtype=torch.bfloat16, requires_grad=False)]))


def identity_of_an_earlier_version(opt, rng):
    """Loaded from a checkpoint without identities: those of the names, or the indices, by which it drew."""
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        state.pop("identity", None)
    opt.load_state_dict(saved)


def masked_otherwise(opt, rng):
    opt.param_groups[0]["keep_prob"] = rng.choice([0.3, 1.0, torch.tensor(0.5)])


def skipped_for_an_overflow(opt, rng):
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(float(rng.random() < 0.5))


OWN = [metrics_toggled, metrics_toggled, changes_toggled, clipping_toggled, mirrored, identity_of_an_earlier_version,
       masked_otherwise, skipped_for_an_overflow]  # fmt: skip
