"""What may happen between two steps that are alike, and what makes them others."""

import copy

import torch

import lrtricks_fused as lrt
from lrtricks_fused.optim import repeats

WARM = repeats.FIRST_PATIENCE + 2  # the first makes states, the last is repeated
SHAPES = [(700,), (), (3, 5), (0,), (2, 3, 4, 4), (2, 1, 3, 1, 2, 2)]


def optimizer(backend="native", cls=lrt.Adam, **options):
    """Two groups; the last parameter of the second has no gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in [*SHAPES, (40,), (7,)]]
    for param in params[:-1]:
        param.grad = torch.randn(param.shape, generator=generator)
    groups = [{"params": params[: len(SHAPES)]}, {"params": params[len(SHAPES) :], "lr": 0.05}]
    return cls(groups, backend=backend, **{**dict(lr=0.1, weight_decay=0.1, keep_prob=0.5), **options})


def parameters(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def contents(opt):
    own = [opt.state.get(param, {}) for param in parameters(opt)]
    return parameters(opt) + [value for state in own for value in state.values() if torch.is_tensor(value)]


def in_sixteen_bits(backend, mirrored=True, **options):
    """As optimizer(); gradients are bf16."""
    opt = optimizer(backend, **options)
    for param in parameters(opt):
        grad, param.grad = param.grad, None
        param.grad_dtype = torch.bfloat16
        param.grad = None if grad is None else grad.bfloat16()
        if mirrored:
            opt.mirror(param, torch.empty(param.shape, dtype=torch.bfloat16))
    return opt


def beside(opt):
    """What lies beside the parameters."""
    return [*opt._mirrors.values(), *opt._changes.values()]


def new_gradients(opt):
    for param in parameters(opt)[:-1]:
        param.grad = param.grad * 2


def in_a_buffer(opt):
    """The gradients are views of one."""
    gradients = [param.grad for param in parameters(opt)[:-1]]
    buffer = torch.cat([torch.ones(3), *(grad.flatten() for grad in gradients)])
    pieces = buffer[3:].split([grad.numel() for grad in gradients])
    for param, piece in zip(parameters(opt), pieces, strict=False):
        param.grad = piece.view(param.shape)


def scheduled(opt):
    for group in opt.param_groups:
        group.update(lr=group["lr"] * 0.5, keep_prob=0.25, grad_weight=1.5, weight_decay=0.2, betas=(0.7, 0.8))


def counts_set(opt):
    for param in parameters(opt)[:-1]:
        opt.state[param]["step"].fill_(40)


def values_written(opt):
    with torch.no_grad():
        for tensor in contents(opt)[:3]:
            tensor.mul_(0.5)


def storage_resized(opt):
    (param,) = parameters(opt)[:1]
    moved = torch.ones(700)
    moved.untyped_storage().resize_(0)
    moved.untyped_storage().resize_(2800)
    param.grad = moved.fill_(2)


REPEATED = [lambda opt: None, new_gradients, in_a_buffer, scheduled, counts_set, values_written, storage_resized]


def state_of(opt, place=2):
    return opt.state[parameters(opt)[place]]


def set_data(tensor, data):
    tensor.data = data


def set_grad(opt, make, place=2):
    param = parameters(opt)[place]
    param.grad = make(param.grad)


def swapped(opt):
    torch.utils.swap_tensors(parameters(opt)[0], torch.ones(700, requires_grad=True))
    parameters(opt)[0].grad = torch.ones(700)


def added(opt):
    param = torch.ones(9, requires_grad=True)
    param.grad = torch.ones(9)
    opt.add_param_group({"params": [param]})


def transposed_in_place(opt):
    param = parameters(opt)[2]
    for tensor in (param, param.grad, *(v for v in opt.state[param].values() if torch.is_tensor(v) and v.dim())):
        tensor.data = tensor.data.t()


NOTICED = {
    "an option": lambda opt: opt.param_groups[1].update(maximize=True),
    "a rule's option": lambda opt: opt.param_groups[1].update(eps=0.1),
    "the seed": lambda opt: opt.param_groups[0].update(seed=5),
    "centralize": lambda opt: opt.param_groups[0].update(centralize=True),
    "amsgrad": lambda opt: opt.param_groups[0].update(amsgrad=True),
    "lr as a tensor": lambda opt: opt.param_groups[0].update(lr=torch.tensor(0.3)),
    "an option more": lambda opt: opt.param_groups[0].update(other=1),
    "max_norm": lambda opt: setattr(opt, "max_norm", 0.1),
    "metrics": lambda opt: setattr(opt, "track_metrics", True),
    "changes": lambda opt: setattr(opt, "track_changes", True),
    "backend": lambda opt: setattr(opt, "backend", "reference"),
    "a mirror": lambda opt: opt.mirror(parameters(opt)[0], torch.zeros(700).bfloat16()),
    "a scale": lambda opt: setattr(opt, "grad_scale", torch.tensor(4.0)),
    "an overflow": lambda opt: setattr(opt, "found_inf", torch.tensor(1.0)),
    "a group": added,
    "a group less": lambda opt: opt.param_groups.pop(),
    "another dict of a group": lambda opt: opt.param_groups.__setitem__(0, dict(opt.param_groups[0])),
    "order": lambda opt: opt.param_groups[0]["params"].reverse(),
    "another list": lambda opt: opt.param_groups[0].update(params=list(opt.param_groups[0]["params"])),
    "a parameter less": lambda opt: opt.param_groups[0]["params"].pop(),
    "a gradient less": lambda opt: set_grad(opt, lambda grad: None),
    "a gradient more": lambda opt: set_grad(opt, lambda grad: torch.ones(7), -1),
    "another state": lambda opt: state_of(opt).update(exp_avg=torch.ones(3, 5)),
    "another count": lambda opt: state_of(opt).update(step=torch.tensor(7.0, dtype=torch.float64)),
    "another identity": lambda opt: state_of(opt).update(identity=77),
    "no states": lambda opt: opt.state.clear(),
    "no state": lambda opt: state_of(opt).clear(),
    "a state more": lambda opt: state_of(opt).update(other=1),
    "a parameter has moved": lambda opt: set_data(parameters(opt)[0], torch.ones(700)),
    "a state has moved": lambda opt: set_data(state_of(opt)["exp_avg"], torch.ones(3, 5)),
    "a parameter swapped": swapped,
    "all transposed": transposed_in_place,
    "a state transposed": lambda opt: set_data(state_of(opt)["exp_avg"], torch.ones(5, 3).t()),
    "a state negated": lambda opt: set_data(state_of(opt)["exp_avg"], torch._neg_view(state_of(opt)["exp_avg"])),
    "a gradient negated": lambda opt: set_grad(opt, torch._neg_view),
    "a gradient negated in place": lambda opt: set_data(parameters(opt)[2].grad, torch._neg_view(torch.ones(3, 5))),
    "a zero gradient": lambda opt: set_grad(opt, lambda grad: torch._efficientzerotensor((3, 5))),
    "a gradient transposed": lambda opt: set_grad(opt, lambda grad: torch.arange(15.0).view(5, 3).t()),
    "a gradient expanded": lambda opt: set_grad(opt, lambda grad: torch.ones(5).expand(3, 5)),
    "a loaded state_dict": lambda opt: opt.load_state_dict(copy.deepcopy(opt.state_dict())),
}


def warm(opt, steps=WARM):
    for _ in range(steps):
        opt.step()
    return opt


MOVES_ON = (lambda opt: None, new_gradients, scheduled, new_gradients)


def check_repeated(native, reference, whole_steps):
    """Steps of both with gradients elsewhere and other numbers, each of which the native backend repeats."""
    whole_steps.clear()
    for event in MOVES_ON:
        for opt in (native, reference):
            event(opt)
            opt.step()
    assert native not in whole_steps
