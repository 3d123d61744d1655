"""What may happen to an optimizer between two steps: each event is a function of it and of a random generator.

Applied to two optimizers with equal generators, an event does the same to both. Events that a step may refuse return
how to take them back.
"""

import copy
import math
import pickle
import random
from collections.abc import Callable

import numpy as np
import tensors as layouts
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

Optimizer = torch.optim.Optimizer
Random = random.Random
Undo = Callable[[], object] | None
SHAPES = [
    (), (0,), (1,), (63,), (64,), (65,), (511,), (512,), (513,), (5, 7), (33, 20), (1, 9), (3, 0, 2), (2, 3, 4, 5)
]  # fmt: skip
NUMBERS = {"step", "identity"}  # of a state, beside its tensors
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Plain(torch.Tensor):
    """A subclass that computes as a tensor does."""


class Quiet(torch.Tensor):
    """One without a __torch_function__ of its own."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def values(rng: Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """N(0, 1); some of a hundred are infinite or no numbers."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if numbers.numel() > 1 and rng.random() < 0.03:
        numbers.view(-1)[rng.randrange(numbers.numel())] = rng.choice([math.nan, math.inf, -math.inf])
    return numbers


def laid_out(rng: Random, tensor: Tensor, grad: bool = False) -> Tensor:
    """The same values in some memory layout."""
    fit = [layouts.contiguous, layouts.contiguous, layouts.unaligned]
    fit += [layouts.gapped] * (tensor.dim() >= 1) + [layouts.transposed] * (tensor.dim() >= 2)
    fit += [layouts.channels_last] * (tensor.dim() == 4) + [layouts.expanded] * (grad and tensor.numel() > 0)
    return rng.choice(fit)(tensor)


def numbered(rng: Random, shape: tuple[int, ...], dtype: torch.dtype, grad: bool = False) -> Tensor:
    """Values in some memory layout."""
    return laid_out(rng, values(rng, shape, dtype), grad)


def leaf(rng: Random, dtypes: list[torch.dtype]) -> Tensor:
    """A parameter; some of a plain subclass."""
    tensor = numbered(rng, rng.choice(SHAPES), rng.choice(dtypes))
    return tensor.as_subclass(rng.choice([Plain, Quiet, *[Tensor] * 60])).requires_grad_()


def params_of(opt: Optimizer) -> list[Tensor]:
    return [param for group in opt.param_groups for param in group["params"]]


def set_grads(opt: Optimizer, rng: Random) -> None:
    """New gradients, of all but one of sixteen."""
    for param in params_of(opt):
        if type(param).__torch_dispatch__ is Tensor.__torch_dispatch__:
            param.grad = None if rng.random() < 1 / 16 else numbered(rng, param.shape, param.dtype, grad=True)


def put(mapping: dict, key: object, value: object) -> Undo:
    """Enters ``value``; how to take it back."""
    old = mapping.get(key, mapping)
    mapping[key] = value
    return lambda: mapping.pop(key, None) if old is mapping else mapping.__setitem__(key, old)


def memory(tensor: Tensor) -> Tensor | None:
    """All of a tensor's storage as numbers of its dtype; None if it has none of its own."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or tensor.layout is not torch.strided:
        return None
    storage = tensor.untyped_storage()
    if tensor.is_meta or tensor._is_zerotensor() or (storage.nbytes() and not storage.data_ptr()):
        return None
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // tensor.itemsize,), (1,))


def some_param(opt: Optimizer, rng: Random) -> Tensor:
    return rng.choice(params_of(opt))  # of none an IndexError, which the caller takes for nothing to do


def plain_param(opt: Optimizer, rng: Random) -> Tensor:
    return rng.choice([param for param in params_of(opt) if type(param) is not TwoTensor])


def some_state(opt: Optimizer, rng: Random) -> tuple[dict, str]:
    state = opt.state.get(some_param(opt, rng), {})
    return state, rng.choice(sorted(state.keys() - NUMBERS))


# -- parameters --------------------------------------------------------------------------------------------------------


def moved_data(opt, rng):
    param = some_param(opt, rng)
    param.data = laid_out(rng, param.data + 1)


def other_dtype(opt, rng):
    param, state = plain_param(opt, rng), {}
    old, grad, dtype = param.data, param.grad, rng.choice(DTYPES)
    param.grad, param.data = None, old.to(dtype)
    param.grad = numbered(rng, param.shape, dtype, grad=True) if rng.random() < 0.8 else None
    if rng.random() < 0.7:  # the states, too
        state = opt.state.get(param, {})
        saved = dict(state)
        wide = dtype if dtype.itemsize > 2 else rng.choice([torch.float32, dtype])
        state.update({name: value.to(wide) for name, value in saved.items() if name not in NUMBERS})

    def undo():
        param.grad, param.data = None, old
        param.grad = grad
        if state:
            state.update(saved)

    return undo


def transposed_data(opt, rng):
    param = some_param(opt, rng)
    old, grad = param.data, param.grad
    param.grad, param.data = None, old.transpose(0, -1)
    param.grad = grad.transpose(0, -1)

    def undo():
        param.grad, param.data = None, old
        param.grad = grad

    return undo


def emptied_storage(opt, rng):
    param = some_param(opt, rng)
    tensor = rng.choice(
        [param, param.grad, *[opt.state[param][n] for n in sorted(opt.state.get(param, {}).keys() - {"identity"})]]
    )
    storage = tensor.untyped_storage()
    size, content = storage.nbytes(), memory(tensor).clone()
    storage.resize_(rng.choice([0, 0, max(size - 1, 0)]))

    def undo():
        storage.resize_(size)
        memory(tensor).copy_(content)

    if rng.random() < 0.5:
        return undo
    undo()  # at another address now
    return None


def one_flat_storage(opt, rng):
    dtype = some_param(opt, rng).dtype
    params = [p for p in params_of(opt) if p.dtype == dtype and type(p) is not TwoTensor]
    flat = torch.cat([p.detach().flatten() for p in params])
    for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.data = piece.view(param.shape)


def expanded_data(opt, rng):
    param = some_param(opt, rng)
    old, param.data = param.data, layouts.expanded(param.data)
    return lambda: setattr(param, "data", old)


def lazy_data(opt, rng):
    param = some_param(opt, rng)
    tensor = rng.choice(
        [param, param, *[opt.state[param][n] for n in sorted(opt.state.get(param, {}).keys() - {"identity"})]]
    )
    old, tensor.data = tensor.data, torch._neg_view(tensor.data)  # at the same address
    return lambda: setattr(tensor, "data", old)


def frozen(opt, rng):
    some_param(opt, rng).requires_grad_(rng.random() < 0.3)


def wrapper_param(opt, rng):
    group = rng.choice(opt.param_groups)
    place = rng.randrange(len(group["params"]))
    old = group["params"][place]
    wrapper = TwoTensor(old.detach().clone(), old.detach().clone()).requires_grad_()
    wrapper.grad = rng.choice([None, torch.ones_like(wrapper)])
    group["params"][place] = wrapper

    def undo():  # wherever it is by then
        for group in opt.param_groups:
            group["params"][:] = [old if param is wrapper else param for param in group["params"]]

    return undo


# -- gradients ---------------------------------------------------------------------------------------------------------


def _fake(grad):
    with FakeTensorMode() as mode:
        return mode.from_tensor(grad)


GRADS = [
    torch._neg_view,
    lambda g: torch._efficientzerotensor(g.shape, dtype=g.dtype),
    lambda g: torch.complex(torch.zeros_like(g), g).conj().imag,
    lambda g: g.as_subclass(Plain),
    lambda g: g.as_subclass(Quiet),
    lambda g: torch._neg_view(g).as_subclass(Plain),
    lambda g: TwoTensor(g, g.clone()),
    _fake,
    Tensor.to_sparse,
    layouts.expanded,
    lambda g: g.new_full(g.shape, math.nan),
    lambda g: torch.full_like(g, 6e4),
    lambda g: None,
]


def other_grad(opt, rng):
    param = some_param(opt, rng)
    old, param.grad = param.grad, rng.choice(GRADS)(param.grad)
    return lambda: setattr(param, "grad", old)


def no_grads(opt, rng):
    opt.zero_grad()


# -- states ------------------------------------------------------------------------------------------------------------

STATES = [
    lambda s: s.clone() + 1,
    lambda s: laid_out(Random(s.numel()), s),
    lambda s: torch._neg_view(s),
    lambda s: torch._efficientzerotensor(s.shape, dtype=s.dtype),
    lambda s: s.double(),
    lambda s: s.float(),
    lambda s: s.bfloat16(),
    lambda s: s.long(),
    lambda s: s.flatten(),
    lambda s: s[None],
    lambda s: s.to("meta"),
    lambda s: s.to_sparse(),
    lambda s: layouts.expanded(s),
    lambda s: TwoTensor(s.clone(), s.clone()),
    lambda s: s.as_subclass(Plain),
    lambda s: s.clone().requires_grad_(),
    lambda s: None,
    lambda s: 0.5,
]
STEPS = [
    *(
        lambda s, n=n: torch.full_like(s, n)
        for n in (-1, math.nan, 1.5, 2**53, 2**53 - 1, math.inf, 0, 7, 2**24, 2**33)
    ),
    lambda s: s.float(),
    lambda s: s[None].clone(),
    lambda s: s.expand(2),
    lambda s: s.to("meta"),
    lambda s: torch._neg_view(-s),
    lambda s: float(s),
    lambda s: s.as_subclass(Plain),
]

DAMAGED = {"step": STEPS, "identity": [lambda i, n=n: n for n in (-1, 2**32, 1.0, None, True, 0, 7)]}


def other_state(opt, rng):
    state, name = some_state(opt, rng)
    return put(state, name, rng.choice(STATES)(state[name]))


def other_step(opt, rng):
    state = opt.state[some_param(opt, rng)] or {}
    return put(state, "step", rng.choice(STEPS)(state["step"]))


def other_identity(opt, rng):
    state = opt.state[some_param(opt, rng)] or {}
    number = rng.choice([state["identity"] ^ 1, 0, 2**32 - 1, 0xDEADBEEF, -1, 2**32, 1.0, None, True, torch.tensor(3)])
    return put(state, "identity", number)


def step_in_place(opt, rng):
    step = opt.state.get(some_param(opt, rng), {})["step"]
    old = step.reshape(-1)[0].clone()
    step.fill_(rng.choice([-1.0, math.nan, 1.5, 2.0**53, 2.0**53 - 1, 0, 6, 1000]))
    return lambda: step.as_strided((), ()).copy_(old)  # of an expanded one, too


def deleted_entry(opt, rng):
    state, name = some_state(opt, rng)
    name = rng.choice([name, "step", "identity"])
    old = state.pop(name)
    return lambda: state.__setitem__(name, old)


def deleted_states(opt, rng):
    if rng.random() < 0.3:
        opt.state.clear()
    else:
        opt.state.pop(some_param(opt, rng), None)


def foreign_entry(opt, rng):
    opt.state.get(some_param(opt, rng), {})["note"] = 3


# -- groups ------------------------------------------------------------------------------------------------------------

FLAGS = [True, False, np.True_, np.False_, 0, 1]
LAZY = [torch._neg_view(torch.tensor(-0.25)), torch._efficientzerotensor((), dtype=torch.float32)]
GOOD = {
    "lr": [0.0, 0.01, 1, np.float32(0.02), np.array(0.05), torch.tensor(0.03), torch.tensor([0.02]).double(), *LAZY],
    "weight_decay": [0, 0.1, np.float32(0.3), np.int64(1)],
    "keep_prob": [0.0, 0.3, 1, np.float32(0.5), torch.tensor(0.5), torch.tensor(0.25).bfloat16(), *LAZY],
    "grad_weight": [0.0, 0.5, 2, np.float64(0.5), torch.tensor(0.5).double(), *LAZY],
    "seed": [0, 7, 2**64 - 1, np.int64(5), np.uint64(2**63), torch.tensor(3)],
    "betas": [(0.5, 0.9), [0.0, 0.0], (np.float32(0.5), 0.99), np.array([0.5, 0.9])],
    "eps": [0.0, 1e-3, np.float32(1e-4)],
    "alpha": [0.5, 1, 0, np.float32(0.25)],
    "momentum": [0, 0, 0.5, np.float32(0.9)],
    "dampening": [0, 0.5, np.float64(0.25)],
    "centralize": [True, False, np.True_],
    "momentum_window": [None, 1, 2, 5],
    **{name: FLAGS for name in ("maximize", "nesterov", "amsgrad", "centered", "decoupled_weight_decay")},
}  # fmt: skip
NO_NUMBER = [math.nan, -1.0, "0.1", None, 10**400, 1j, [], torch.tensor(-0.5), torch.ones(2),
             torch.ones((), device="meta"),
             TwoTensor(torch.ones(()), torch.ones(())), torch.tensor(1j)]  # fmt: skip
NO_FLAG = ["no", None, 2, [], math.nan, torch.ones((), device="meta")]
BAD = {
    **{name: NO_NUMBER for name in ("lr", "weight_decay", "keep_prob", "grad_weight", "eps", "alpha", "momentum")},
    **{name: NO_FLAG
       for name in ("maximize", "nesterov", "amsgrad", "centered", "centralize", "decoupled_weight_decay")},
    "seed": [-1, 2**64, 0.5, "0", None, torch.ones((), dtype=torch.int64, device="meta")],
    "betas": [(1.0, 0.5), (0.5,), 0.5, None, ("0.1", 0.2), (math.nan, 0.5), np.array(0.5)],
    "dampening": ["0", None, math.nan, 10**400],
    "momentum_window": [0, 1.5, "2", True],
    "differentiable": [True],
}  # fmt: skip


def _option(opt, rng, table):
    group = rng.choice(opt.param_groups)
    name = rng.choice(sorted(table.keys() & group.keys()))
    return put(group, name, rng.choice(table[name]))


def good_option(opt, rng):
    return _option(opt, rng, GOOD)


def bad_option(opt, rng):
    return _option(opt, rng, BAD)


def lost_option(opt, rng):
    group = rng.choice(opt.param_groups)
    name = rng.choice(["lr", "keep_prob", "maximize"])
    old = group.pop(name)
    return lambda: group.__setitem__(name, old)


def scaled_gradients(opt, rng):
    scale = rng.choice([4.0, 3.0, torch.tensor(2.0), torch.tensor([0.5]), torch.tensor(8.0).double(), LAZY[0]])
    opt.grad_scale = torch.as_tensor(scale)
    opt.found_inf = rng.choice([torch.tensor(0.0), torch.tensor(1.0), torch.tensor([0.0]), LAZY[1], LAZY[0]])


def clipped(opt, rng):
    bounds = [None, 0.0, 0.5, 3, math.inf, np.float32(2), torch.tensor(0.5), *LAZY]
    return put(
        vars(opt), "max_norm", rng.choice(bounds if rng.random() < 0.8 else [n for n in NO_NUMBER if n is not None])
    )


# -- structure ---------------------------------------------------------------------------------------------------------


def added_group(opt, rng):
    params = [leaf(rng, [torch.float32, torch.float64]) for _ in range(rng.randrange(3))]
    table = rng.choice([GOOD, GOOD, BAD])
    name = rng.choice(sorted(table.keys() & opt.defaults.keys()))
    opt.add_param_group({"params": params, name: rng.choice(table[name])})
    for param in params:
        param.grad = numbered(rng, param.shape, param.dtype, grad=True)


def removed_group(opt, rng):
    group = opt.param_groups.pop(rng.randrange(len(opt.param_groups)))
    for param in group["params"]:
        opt.state.pop(param, None)


def other_order(opt, rng):
    rng.shuffle(rng.choice(opt.param_groups)["params"])


def moved_param(opt, rng):
    source, target = rng.choice(opt.param_groups), rng.choice(opt.param_groups)
    target["params"].append(source["params"].pop(rng.randrange(len(source["params"]))))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def loaded(opt, rng):
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        for name in sorted(state.keys() - NUMBERS):
            state[name] = state[name] + 1 if isinstance(state[name], Tensor) else state[name]
    opt.load_state_dict(saved)


def loaded_damaged(opt, rng):
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    state = rng.choice([s for _, s in sorted(saved["state"].items())])
    name = rng.choice(sorted(state))
    if rng.random() < 0.2:
        del state[name]
    elif rng.random() < 0.2:
        group = rng.choice(saved["param_groups"])
        name = rng.choice(sorted(BAD.keys() & group.keys()))
        group[name] = rng.choice(BAD[name])
    else:
        state[name] = rng.choice(DAMAGED.get(name, STATES))(state[name])
    opt.load_state_dict(saved)


def deep_copied(opt, rng):
    return copy.deepcopy(opt)


def pickled(opt, rng):
    return pickle.loads(pickle.dumps(opt))


EVENTS = [
    moved_data, other_dtype, transposed_data, emptied_storage, one_flat_storage, expanded_data, lazy_data, frozen,
    wrapper_param, other_grad, other_grad, no_grads, other_state, other_step, other_identity, step_in_place,
    deleted_entry, deleted_states, foreign_entry, good_option, good_option, bad_option, lost_option,
    scaled_gradients, clipped, clipped, added_group, removed_group, other_order, moved_param, loaded,
    loaded_damaged, deep_copied, pickled,
]  # fmt: skip
