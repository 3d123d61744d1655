"""Steps that repeat the one before: whatever else changes is noticed, and the step is that of the reference."""

import copy
import ctypes
import gc
import itertools
import pickle
import sys
import weakref

import pytest
import torch
from helpers import assert_same_bits
from inventory import FULL
from repeat_events import (
    NOTICED,
    REPEATED,
    WARM,
    check_repeated,
    contents,
    new_gradients,
    optimizer,
    parameters,
    set_data,
    state_of,
    warm,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

import lrtricks_fused as lrt
from lrtricks_fused.optim import repeats
from lrtricks_fused.step import host, published, record
from lrtricks_fused.step.table import AddressTable


def all_tables(opt):
    return [table for table in opt._tables.values() if isinstance(table, AddressTable)]


def counted_uploads(opt, monkeypatch):
    """What is uploaded to the tables that an optimizer has: filled as it goes."""
    uploads = []
    for table in all_tables(opt):
        monkeypatch.setattr(table, "_upload", lambda target, words: uploads.append(words))
    return uploads


def test_the_library_can_look_here(monkeypatch):
    assert record.can_look()
    monkeypatch.setattr(record, "_FIXED_WORDS", 13)  # as of other sources than the library's
    assert not record.can_look()
    warm(optimizer(), 9)


def ask_torch(monkeypatch):
    """Tensors are looked at by torch's functions, as where their fields are not found."""
    layout = published.HostLayout.from_buffer_copy(published.layout())
    for field in published._FIELDS:
        setattr(layout, field, -1)
    monkeypatch.setattr(record, "layout", lambda: layout)


@pytest.fixture(params=["fields", "calls"])
def by(request, monkeypatch):
    """How the library looks at tensors."""
    if request.param == "calls":
        ask_torch(monkeypatch)


@pytest.mark.parametrize("way", ["fields", "calls", "Python"])
@pytest.mark.parametrize("event", REPEATED, ids=["nothing", *(event.__name__ for event in REPEATED[1:])])
def test_what_is_repeated(event, way, whole_steps, monkeypatch):
    if way == "calls":
        ask_torch(monkeypatch)
    library = way != "Python"
    if not library:
        monkeypatch.setattr(host, "functions", lambda: None)
    native, reference = warm(optimizer()), warm(optimizer("reference"))
    whole_steps.clear()
    for _ in range(3):
        for opt in (native, reference):
            event(opt)
            opt.step()
    assert whole_steps.count(native) == (0 if library else 3) and whole_steps.count(reference) == 3
    assert_same_bits(contents(native), contents(reference))


@pytest.mark.parametrize("told", [True, False], ids=["library", "Python"])
def test_graphs_know_of_a_repeated_step(told, cpu_or_device, whole_steps, monkeypatch):
    layout = published.HostLayout.from_buffer_copy(published.layout())
    assert layout.bump_version
    if not told:
        layout.bump_version = None
    monkeypatch.setattr(record, "layout", lambda: layout)
    opt = warm(optimizer())
    whole_steps.clear()
    loss = sum(param.square().sum() for param in parameters(opt))
    versions = [param._version for param in parameters(opt)]
    opt.step()
    assert not whole_steps
    *stepped, without_gradient = [now._version > then for now, then in zip(parameters(opt), versions, strict=True)]
    assert all(stepped) and not without_gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


MANY = 900  # rows enough for several threads


def other_memory(param, opt):
    param.data = param.data.clone()


def other_gradient(param, opt):
    param.grad = param.grad + 1


def other_size(param, opt):
    param.data, param.grad = param.data[:2], param.grad[:2]
    opt.state.pop(param)


def other_moments(param, opt):
    opt.state[param]["exp_avg"] = opt.state[param]["exp_avg"] + 1


def without_gradient(param, opt):
    param.grad = None


PLACES = (0, 1, MANY // 2 - 1, MANY // 2, MANY - 1)
EVENTS = (other_memory, other_gradient, other_size, other_moments, without_gradient)


@pytest.mark.parametrize(
    ("event", "place"),
    itertools.product(EVENTS, PLACES) if FULL else zip(EVENTS, PLACES, strict=True),
    ids=lambda it: getattr(it, "__name__", it),
)
def test_several_threads_look_at_many_tensors(event, place, whole_steps):
    opts = []
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for backend in ("native", "reference"):
            params = [torch.full((3,), float(i)).requires_grad_() for i in range(MANY)]
            for param in params:
                param.grad = param.detach() * 0.1
            opts.append(warm(lrt.Adam(params, lr=0.1, keep_prob=0.5, backend=backend)))
        whole_steps.clear()
        for opt in opts:
            opt.step()
            event(parameters(opt)[place], opt)
            opt.step()
        assert whole_steps.count(opts[0]) == (event is not other_gradient)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(*map(contents, opts))


def test_the_fields_of_tensors_are_found_here():
    """Else a step asks torch, and takes longer."""
    layout = published.layout()
    memory = torch.arange(60.0)
    for tensor in (memory, memory[7:].double()[2:], memory.view(3, 4, 5).transpose(0, 2)[1:], torch.ones(4, 3).half()):
        storage = tensor.untyped_storage()
        sizes, offset, data, size = (
            ctypes.c_int64.from_address(at).value
            for at in (tensor._cdata + layout.sizes, tensor._cdata + layout.offset, storage._cdata + layout.data,
                       storage._cdata + layout.bytes)
        )  # fmt: skip
        assert (sizes, offset, data, size) == (
            tensor.size(0), tensor.storage_offset(), storage.data_ptr(), storage.nbytes()
        )  # fmt: skip


SHARED = {
    "a parameter": lambda opt: parameters(opt)[0].detach(),
    "a state": lambda opt: state_of(opt)["exp_avg"],
    "a count": lambda opt: state_of(opt)["step"],
}


@pytest.mark.parametrize("what", SHARED)
def test_what_shares_its_memory_until_it_is_written_to(what, by):
    native, reference = warm(optimizer()), warm(optimizer("reference"))
    before = SHARED[what](native).clone()
    sharer = torch._lazy_clone(SHARED[what](native))
    for opt in (native, reference):
        opt.step()
    assert_same_bits([sharer], [before])
    assert_same_bits(contents(native), contents(reference))


@pytest.mark.parametrize("what", NOTICED)
def test_what_is_noticed(what, by, whole_steps):
    native, reference = warm(optimizer()), warm(optimizer("reference"))
    assert native._repeats._record is not None
    whole_steps.clear()
    for opt in (native, reference):
        NOTICED[what](opt)
        opt.step()
    assert whole_steps == [native, reference]
    for opt in (native, reference):
        warm(opt, 8)
    assert_same_bits([t.resolve_neg() for t in contents(native)], [t.resolve_neg() for t in contents(reference)])


# In the same memory.
REFUSED = {
    "a state of integers": lambda opt: set_data(state_of(opt)["exp_avg"], state_of(opt)["exp_avg"].view(torch.int32)),
    "a state of a dimension more": lambda opt: set_data(state_of(opt)["exp_avg"], state_of(opt)["exp_avg"][..., None]),
    "a gradient of integers": lambda opt: set_data(parameters(opt)[2].grad, parameters(opt)[2].grad.view(torch.int32)),
    "a gradient of a dimension more": lambda opt: set_data(parameters(opt)[2].grad, parameters(opt)[2].grad[..., None]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, by):
    opt = warm(optimizer())
    REFUSED[what](opt)
    before = [tensor.clone() for tensor in contents(opt)]
    with pytest.raises(ValueError, match="Invalid"):
        opt.step()
    assert_same_bits(contents(opt), before)


def test_a_storage_is_looked_at():
    opt = warm(optimizer())
    before = [tensor.clone() for tensor in contents(opt)]
    parameters(opt)[0].grad.untyped_storage().resize_(100)
    with pytest.raises(ValueError, match="its storage of 100 bytes does not hold it"):
        opt.step()
    assert_same_bits(contents(opt), before)


@pytest.mark.parametrize("value", [-1.0, 0.5, 2.0**53, float("nan")])
def test_an_invalid_count_is_refused_before_any_group_is_stepped(value):
    opt = warm(optimizer())
    state_of(opt, 5)["step"].fill_(value)
    before = [tensor.clone() for tensor in contents(opt)]
    with pytest.raises(ValueError, match="Invalid state step="):
        opt.step()
    assert_same_bits(contents(opt), before)


@pytest.mark.parametrize("group", [0, 1])
def test_an_invalid_number_is_refused_and_forgotten(group, whole_steps):
    opt, other = warm(optimizer()), warm(optimizer())
    before = [tensor.clone() for tensor in contents(opt)]
    valid = [dict(own) for own in opt.param_groups]
    opt.param_groups[1 - group]["lr"] = 0.7  # must not be taken either
    opt.param_groups[group]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"Invalid lr=-1\.0"):
        opt.step()
    assert_same_bits(contents(opt), before)
    for own, numbers in zip(opt.param_groups, valid, strict=True):
        own["lr"] = numbers["lr"]
    whole_steps.clear()
    for one in (opt, other):
        one.step()
    assert whole_steps == []
    assert_same_bits(contents(opt), contents(other))


def test_numbers_of_a_group_that_is_not_stepped_are_checked():
    opt = optimizer()
    parameters(opt)[-2].grad = None
    warm(opt)
    assert opt._repeats._record is not None
    opt.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"Invalid lr=-1\.0"):
        opt.step()


def test_a_schedule_repeats_steps(whole_steps):
    opts = [optimizer(), optimizer("reference")]
    for opt in opts:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=20)
        for _ in range(12):
            opt.step()
            scheduler.step()
    assert whole_steps.count(opts[0]) <= WARM
    assert_same_bits(*map(contents, opts))


def test_gradients_come_back_to_where_they_were():
    # Between a repeated step and one that is not, a table must not take the addresses it last looked at for present.
    opts = [optimizer(), optimizer("reference")]
    for opt in opts:
        first = [param.grad for param in parameters(opt)]
        warm(opt)
        new_gradients(opt)
        opt.step()
        second = [param.grad for param in parameters(opt)]  # both lie in memory meanwhile
        for grads, seed in ((first, 1), (second, 2), (first, 3)):
            for param, grad in zip(parameters(opt), grads, strict=True):
                param.grad = grad
            opt.param_groups[0]["seed"] = seed
            opt.step()
        del second
    assert_same_bits(*map(contents, opts))


def test_closures_and_hooks_run(whole_steps):
    opt, seen = warm(optimizer()), []
    whole_steps.clear()
    assert opt.step(lambda: seen.append("closure") or 3.0) == 3.0
    handle = register_optimizer_step_pre_hook(lambda *args: seen.append("hook"))
    try:
        opt.step()
    finally:
        handle.remove()
    assert seen == ["closure", "hook"] and whole_steps == []
    opt.register_step_post_hook(lambda *args: seen.append("own hook"))
    opt.step()
    assert seen[2:] == ["own hook"]


def test_a_step_of_a_subclass_runs_every_time():
    class Counted(lrt.Adam):
        taken = 0

        def step(self, closure=None):
            self.taken += 1
            return super().step(closure)

    assert warm(optimizer(cls=Counted), 9).taken == 9


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_a_copy_knows_nothing(copied):
    opt = warm(optimizer())
    other = copied(opt)
    assert other._repeats is not opt._repeats and other._repeats._record is None
    for mine, param in zip(parameters(other), parameters(opt), strict=True):
        mine.grad = param.grad
    assert_same_bits(contents(warm(other)), contents(warm(opt)))


def test_an_earlier_pickle_is_taken_over():
    opt = optimizer()
    state = opt.__getstate__()
    del state["_repeats"]
    other = lrt.Adam.__new__(lrt.Adam)
    other.__setstate__(state)
    warm(other)


def test_no_gradient_is_held_and_no_cycle_is_made():
    opt = warm(optimizer())
    gone = [weakref.ref(param.grad) for param in parameters(opt)[:-1]]
    opt.zero_grad()
    assert not any(ref() is not None for ref in gone)
    gone = [weakref.ref(opt), weakref.ref(parameters(opt)[0])]
    gc.collect()
    gc.disable()
    try:
        del opt
        assert not any(ref() is not None for ref in gone)
    finally:
        gc.enable()


def test_records_that_are_made_in_vain_are_made_ever_less_often(monkeypatch):
    made, plain = [], repeats.Record
    monkeypatch.setattr(repeats, "Record", lambda *args: made.append(None) or plain(*args))
    opt = optimizer()
    for number in range(60):
        parameters(opt)[-1].grad = torch.ones(7) if number % 3 else None
        opt.step()
    assert 1 <= len(made) <= 5


def test_a_repeated_step_is_a_few_calls():
    opt, calls = warm(optimizer()), []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code) if event == "call" else None)
    try:
        opt.step()
    finally:
        sys.setprofile(None)
    assert len(calls) <= 20  # of whole steps 150


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_steps_on_a_device_are_repeated(max_norm, on_host, whole_steps, monkeypatch):
    native, reference = warm(optimizer(max_norm=max_norm)), warm(optimizer("reference", max_norm=max_norm))
    check_repeated(native, reference, whole_steps)
    assert_same_bits(contents(native), contents(reference))
    assert max_norm is None or torch.equal(native.grad_norm, reference.grad_norm)


def test_a_captured_step_is_not_repeated(on_host, whole_steps, monkeypatch):
    opt, reference = warm(optimizer()), warm(optimizer("reference"))
    for own in (opt, reference):
        new_gradients(own)
        own.step()
    uploads = counted_uploads(opt, monkeypatch)
    whole_steps.clear()
    monkeypatch.setattr(repeats, "is_captured", lambda device: True)
    opt.step()
    reference.step()
    assert opt in whole_steps
    assert uploads == []  # which a graph would repeat at every replay: no gradient has moved
    assert_same_bits(contents(opt), contents(reference))


def test_an_upload_that_was_broken_off_is_made_up_for(on_host, monkeypatch):
    opt, reference = warm(optimizer()), warm(optimizer("reference"))

    def fail(*_):
        raise KeyboardInterrupt

    tables = all_tables(opt)
    for own in (opt, reference):
        new_gradients(own)
    kept = [table._upload for table in tables]
    for table in tables:
        monkeypatch.setattr(table, "_upload", fail)
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    for table, upload in zip(tables, kept, strict=True):
        monkeypatch.setattr(table, "_upload", upload)
    for own in (opt, reference):
        own.step()
    assert_same_bits(contents(opt), contents(reference))
