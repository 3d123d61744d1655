"""Repeated steps, and what others do to their tensors meanwhile, or where a record of objects would see nothing."""

import gc
import weakref

import pytest
import torch
from helpers import assert_same_bits
from repeat_events import contents, new_gradients, optimizer, parameters
from test_repeats import warm
from torch._subclasses.fake_tensor import FakeTensorMode

import lrtricks_fused as lrt
from lrtricks_fused.optim.repeatable import RepeatableCall


def one(**options):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(4, 4))
    param.grad = torch.randn(4, 4)
    return param, lrt.Adam([param], lr=0.1, keep_prob=0.5, **options)


def is_recorded(opt):
    return opt._repeats._record is not None


def test_gradients_that_are_dropped_while_kernels_read_them(monkeypatch):
    opt, other = warm(optimizer()), warm(optimizer())
    for each in (opt, other):
        new_gradients(each)
    assert is_recorded(opt)
    step = RepeatableCall.step

    def dropped(self):
        grads = [(param.grad.shape, param.grad.dtype) for param in parameters(opt) if param.grad is not None]
        for param in parameters(opt):
            param.grad = None
        gc.collect()
        poison = [torch.full(shape, 1e30, dtype=dtype) for shape, dtype in grads]  # where the freed ones were
        step(self)
        del poison

    monkeypatch.setattr(RepeatableCall, "step", dropped)
    opt.step()
    monkeypatch.undo()
    other.step()
    assert_same_bits(*([p.detach() for p in parameters(each)] for each in (opt, other)))


def test_gradients_are_let_go_after_the_step():
    param, opt = one()
    warm(opt)
    assert is_recorded(opt)
    storage = weakref.ref(param.grad)
    param.grad = None
    gc.collect()
    assert storage() is None


@pytest.mark.parametrize("as_array", [False, True])
def test_a_max_norm_that_changes_in_place(as_array):
    norms = [torch.tensor(5.0), torch.tensor(5.0)]
    (param, opt), (other, reference) = (
        one(max_norm=norm.numpy() if as_array else norm, backend=backend)
        for norm, backend in zip(norms, ("native", "reference"), strict=True)
    )
    for n in range(8):
        for norm, each in zip(norms, (opt, reference), strict=True):
            norm.fill_(5.0 / (n + 1))
            each.step()
    assert_same_bits([param.detach()], [other.detach()])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16, torch.float32])
def test_an_overflow_that_is_told_in_place(dtype):
    param, opt = one()
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.zeros((), dtype=dtype)
    warm(opt, 8)
    assert is_recorded(opt) == (dtype is torch.float32)  # others are read as copies
    before = param.detach().clone()
    opt.found_inf.fill_(1)
    opt.step()
    assert_same_bits([param.detach()], [before])


def test_groups_in_a_tuple():
    param, opt = one()
    opt.param_groups = tuple(opt.param_groups)
    warm(opt, 8)
    before = param.detach().clone()
    opt.param_groups[0]["lr"] = 0.0
    opt.step()
    assert_same_bits([param.detach()], [before])


@pytest.mark.parametrize("in_tensor", [False, True])
def test_a_refused_step_counts_no_version(in_tensor):
    param, opt = one()
    opt.param_groups[0]["lr"] = torch.tensor(0.1) if in_tensor else 0.1
    warm(opt, 8)
    assert is_recorded(opt)
    version = param._version
    if in_tensor:
        opt.param_groups[0]["lr"].fill_(-1.0)
    else:
        opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="Invalid lr="):
        opt.step()
    assert param._version == version
    opt.param_groups[0]["lr"] = 0.2
    opt.step()
    assert param._version == version + 1


@pytest.mark.parametrize("steps", [1, 8])
def test_a_graph_hears_of_a_mirror_that_is_written(steps):
    param, opt = one()
    mirror = torch.zeros(4, 4, dtype=torch.bfloat16)
    opt.mirror(param, mirror)
    warm(opt, steps)
    leaf = torch.ones(4, 4, dtype=torch.bfloat16, requires_grad=True)
    product = (leaf * mirror).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("change", [lambda t: t.t_(), lambda t: t.resize_(2), lambda t: t.as_strided_((4, 4), (0, 1))])
def test_a_state_that_lies_otherwise_in_its_place(change):
    outcomes = []
    for backend in ("native", "reference"):
        param, opt = one(backend=backend)
        warm(opt, 8)
        change(opt.state[param]["exp_avg"])
        try:
            opt.step()
            outcomes.append(contents(opt))
        except (ValueError, RuntimeError) as error:
            outcomes.append(type(error))
    if isinstance(outcomes[0], list):
        assert_same_bits(*outcomes)
    else:
        assert outcomes[0] is ValueError and outcomes[1] in (ValueError, RuntimeError)


def test_a_parameter_whose_storage_shrank_ends_the_record():
    param, opt = one()
    warm(opt, 8)
    record = opt._repeats._record
    assert record.compare(opt.__dict__)
    record.let_go()
    param.untyped_storage().resize_(60)  # of 64 bytes, which nearly always leaves it where it is
    assert not record.compare(opt.__dict__)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_step_within_fake_tensors_does_no_harm(steps):
    (param, opt), (other, plain) = one(), one()
    for each in (opt, plain):
        warm(each, steps)
    with FakeTensorMode(), pytest.raises((AssertionError, RuntimeError)):
        opt.step()
    before = int(opt.state[param]["step"])
    while int(plain.state[other]["step"]) < before:
        plain.step()
    for each in (opt, plain):
        warm(each, 4)
    assert_same_bits([param.detach()], [other.detach()])
