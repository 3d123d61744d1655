"""Steps that repeat the one before, of what is stored in sixteen bits."""

import math

import pytest
import torch
from helpers import assert_same_bits
from repeat_events import (
    MOVES_ON,
    beside,
    check_repeated,
    contents,
    in_sixteen_bits,
    parameters,
    warm,
)

import lrtricks_fused as lrt


@pytest.mark.parametrize("mirrored", [True, False])
def test_what_is_stored_otherwise_is_repeated(mirrored, cpu_or_device, whole_steps):
    options = dict(track_changes=True, state_dtype=torch.bfloat16, state_rounding="stochastic", max_norm=0.5)
    opts = [warm(in_sixteen_bits(backend, mirrored, **options)) for backend in ("native", "reference")]
    for opt in opts:
        opt.pop_changes()  # makes the bitmap of the parameter that is not stepped, too
        warm(opt)
    whole_steps.clear()
    told = [[], []]
    for event in MOVES_ON:
        for opt, own in zip(opts, told, strict=True):
            event(opt)
            opt.step()
            own += [t.clone() for change in opt.pop_changes().values() for t in (change.bitmap, change.values)]
    assert opts[0] not in whole_steps
    for opt in opts if mirrored else ():
        opt.mirror(parameters(opt)[0], torch.zeros(parameters(opt)[0].shape, dtype=torch.bfloat16))
        opt.step()
    assert (opts[0] in whole_steps) == mirrored  # another place to write to
    assert_same_bits([*told[0], *contents(opts[0]), *beside(opts[0])], [*told[1], *contents(opts[1]), *beside(opts[1])])


SIXTEEN_BITS = [
    dict(master="split"),
    dict(rounding="stochastic"),
    dict(master="split", track_changes=True, max_norm=0.5),
    dict(rounding="stochastic", state_rounding="stochastic", state_dtype=torch.bfloat16),
]


def of_sixteen_bits(backend, options):
    shapes = [(3, 40), (1500,), ()]
    params = [torch.nn.Parameter(torch.linspace(-2, 3, math.prod(s)).view(s).bfloat16()) for s in shapes]
    for param in params:
        param.grad = torch.full_like(param, 0.3)
    return lrt.AdamW(params, lr=0.02, keep_prob=0.5, backend=backend, **options)


@pytest.mark.parametrize("options", SIXTEEN_BITS, ids=str)
def test_sixteen_bits_are_repeated_on_the_cpu(options, whole_steps):
    native, reference = (warm(of_sixteen_bits(backend, options)) for backend in ("native", "reference"))
    check_repeated(native, reference, whole_steps)
    assert_same_bits([*contents(native), *beside(native)], [*contents(reference), *beside(reference)])


def mirror_elsewhere(opt):
    opt.mirror(parameters(opt)[0], torch.zeros(parameters(opt)[0].shape, dtype=torch.float16))


def no_mirror(opt):
    opt.mirror(parameters(opt)[0], None)


def mirror_swapped(opt):
    mirror = opt._mirrors[parameters(opt)[0]]
    mirror.data = mirror.clone()


def gradients_of_another_dtype(opt):
    for param in parameters(opt)[:-1]:
        grad, param.grad = param.grad, None
        param.grad_dtype = torch.float32
        param.grad = grad.float()


def changes_tracked(opt):
    opt.track_changes = True


BESIDE = [mirror_elsewhere, no_mirror, mirror_swapped, gradients_of_another_dtype, changes_tracked]


@pytest.mark.parametrize("event", BESIDE, ids=lambda event: event.__name__)
def test_what_is_noticed_beside_parameters(event, cpu_or_device, whole_steps):
    native, reference = (warm(in_sixteen_bits(backend)) for backend in ("native", "reference"))
    assert native._repeats._record is not None
    whole_steps.clear()
    for opt in (native, reference):
        event(opt)
        opt.step()
    assert native in whole_steps
    for opt in (native, reference):
        warm(opt, 6)
    assert_same_bits([*contents(native), *beside(native)], [*contents(reference), *beside(reference)])


def test_a_mirror_without_memory_is_refused():
    opt = warm(in_sixteen_bits("native"))
    before = [tensor.clone() for tensor in contents(opt)]
    opt._mirrors[parameters(opt)[0]].untyped_storage().resize_(10)
    with pytest.raises(ValueError, match="its storage of 10 bytes does not hold it"):
        opt.step()
    assert_same_bits(contents(opt), before)
