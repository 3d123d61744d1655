"""Steps that repeat the one before, with numbers in tensors, slopes, metrics, clipping and scalers."""

import contextlib
import gc
import weakref

import pytest
import torch
from helpers import assert_same_bits
from repeat_events import (
    MOVES_ON,
    REPEATED,
    WARM,
    contents,
    new_gradients,
    optimizer,
    parameters,
    warm,
)


def with_tensors(backend, dtype=torch.float64, **options):
    """Numbers in tensors, of which each group has its own."""
    opt = optimizer(backend, **options)
    for group in opt.param_groups:
        for name in ("lr", "keep_prob", "grad_weight"):
            group[name] = torch.tensor(group[name], dtype=dtype)
    return opt


def written(opt):
    for group in opt.param_groups:
        group["lr"].mul_(0.75)
        group["keep_prob"].mul_(0.9)
        group["grad_weight"].add_(0.25)


def moved_number(opt):
    opt.param_groups[1]["lr"].data = torch.tensor(0.025, dtype=torch.float64)


def other_number(opt):
    opt.param_groups[0]["keep_prob"] = torch.tensor(0.25)


NUMBERS = [(torch.float64, False), (torch.float32, False), (torch.float16, False), (torch.float64, True),
           (torch.float32, True)]  # fmt: skip


@pytest.mark.parametrize(("dtype", "on_device"), NUMBERS)  # of others a step reads a copy
def test_numbers_in_tensors(dtype, on_device, request, whole_steps):
    if on_device:
        request.getfixturevalue("on_host")
    opts = [warm(with_tensors(backend, dtype)) for backend in ("native", "reference")]
    for event, is_repeated in (written, True), (new_gradients, True), (other_number, False), (written, True):
        whole_steps.clear()
        for opt in opts:
            event(opt)
            opt.step()
        assert (opts[0] not in whole_steps) == (is_repeated and dtype != torch.float16)
        assert_same_bits(*map(contents, opts))
        for opt in opts:
            warm(opt, 8)
    for opt in opts if dtype == torch.float64 else ():
        whole_steps.clear()
        moved_number(opt)
        opt.step()
        assert whole_steps == [opt]
    assert_same_bits(*map(contents, opts))


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("keep_prob", 1.5), ("grad_weight", float("nan"))])
@pytest.mark.parametrize("group", [0, 1])
def test_an_invalid_number_in_a_tensor_is_refused(name, value, group, whole_steps):
    opt, other = warm(with_tensors("native")), warm(with_tensors("native"))
    assert opt._repeats._record is not None
    before = [tensor.clone() for tensor in contents(opt)]
    number, valid = opt.param_groups[group][name], float(opt.param_groups[group][name])
    new_gradients(opt)
    new_gradients(other)
    number.fill_(value)
    with pytest.raises(ValueError, match=f"Invalid {name}="):
        opt.step()
    assert_same_bits(contents(opt), before)
    number.fill_(valid)
    for one in (opt, other):
        one.step()
    assert_same_bits(contents(opt), contents(other))


def test_groups_with_tensors_are_not_held_once_they_are_gone():
    opt = warm(with_tensors("native"))
    assert opt._repeats._record is not None
    gone = [weakref.ref(param) for param in opt.param_groups[1]["params"]]
    for param in opt.param_groups.pop()["params"]:
        opt.state.pop(param, None)
    opt.step()
    del param
    gc.collect()
    assert not any(ref() is not None for ref in gone)


@pytest.mark.parametrize("on_device", [False, True])
def test_steps_with_a_slope_are_repeated(on_device, request, whole_steps):
    if on_device:
        request.getfixturevalue("on_host")
    opts = [with_tensors(backend) for backend in ("native", "reference")]
    slopes = [{}, {}]

    def step_all(times=1):
        for opt, own in zip(opts, slopes, strict=True):
            for _ in range(times):
                with opt.add_slopes_to(own):
                    opt.step()

    step_all(WARM)
    for event, is_repeated in (lambda own: None, True), (lambda own: own.clear(), False):
        whole_steps.clear()
        for own in slopes:
            event(own)
        for opt in opts:
            written(opt)
            new_gradients(opt)
        step_all()
        assert (opts[0] not in whole_steps) == is_repeated
        assert_same_bits(*map(contents, opts))
        assert_same_bits(*(list(own.values()) for own in slopes))
        step_all(8)
    whole_steps.clear()
    for opt in opts:
        opt.step()  # without
    assert opts[0] in whole_steps
    assert_same_bits(*map(contents, opts))
    assert_same_bits(*(list(own.values()) for own in slopes))
    step_all(8)
    slopes[0][torch.device("cpu")].data = torch.zeros((), dtype=torch.float32)
    with pytest.raises(ValueError, match="must be one float64"):
        step_all()


@pytest.mark.parametrize("with_slope", [False, True])
def test_steps_with_metrics_are_repeated(with_slope, cpu_or_device, whole_steps):
    opts = [warm(optimizer(backend, track_metrics=True, max_norm=0.5)) for backend in ("native", "reference")]
    slopes, told = [{}, {}], [[], []]

    def step(opt, own):
        with opt.add_slopes_to(own) if with_slope else contextlib.nullcontext():
            opt.step()

    for event in MOVES_ON:
        for opt, own, metrics in zip(opts, slopes, told, strict=True):
            event(opt)
            for _ in range(WARM):
                step(opt, own)
                metrics.append(opt.metrics())  # which the next step must leave as they are
        assert_same_bits(*(list(own.values()) for own in slopes))
    for mine, others in zip(*told, strict=True):
        assert_same_bits(list(mine.values()), list(others.values()))
    assert len({float(metrics["update_norm"]) for metrics in told[0]}) == len(told[0])
    repeated = 0 if cpu_or_device else 3 * WARM  # of GPUs no kernel sums them
    assert whole_steps.count(opts[1]) == 5 * WARM and whole_steps.count(opts[0]) <= 5 * WARM - repeated
    whole_steps.clear()
    opts[0].track_metrics = False
    step(opts[0], slopes[0])
    assert opts[0] in whole_steps
    with pytest.raises(ValueError, match="track_metrics"):
        opts[0].metrics()


@pytest.mark.parametrize("event", REPEATED, ids=["nothing", *(event.__name__ for event in REPEATED[1:])])
def test_clipped_steps_are_repeated(event, whole_steps):
    opts = [optimizer(max_norm=0.5), optimizer("reference", max_norm=0.5)]
    told = [[], []]
    for opt in opts:
        warm(opt)
    whole_steps.clear()
    for _ in range(3):
        for opt, norms in zip(opts, told, strict=True):
            event(opt)
            opt.step()
            norms.append(opt.grad_norm)  # which the next step must leave as it is
    assert whole_steps.count(opts[0]) == 0 and len({norm.data_ptr() for norm in told[0]}) == 3
    assert_same_bits(told[0], told[1])
    assert_same_bits(*map(contents, opts))


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"track_metrics": True}], ids=str)
def test_steps_of_a_scaler_are_repeated(options, cpu_or_device, whole_steps):
    if cpu_or_device and "track_metrics" in options:
        pytest.skip("of metrics on a device all steps are whole")
    opts = [optimizer(backend, **options) for backend in ("native", "reference")]
    told = []
    for number in range(WARM + 6):
        if number == WARM:
            whole_steps.clear()
        for opt in opts:
            new_gradients(opt)
            scale = None if number == WARM + 4 else torch.tensor(2.0**number)  # None: gradients are unscaled already
            vars(opt).update(grad_scale=scale, found_inf=torch.tensor(float(number == WARM + 2)))
            opt.step()
            del opt.grad_scale, opt.found_inf
            told.append(opt.grad_norm if "max_norm" in options else None)
    assert opts[0] not in whole_steps
    for opt in opts:
        opt.step()  # without the scaler, which is noticed
    assert opts[0] in whole_steps
    assert_same_bits(*map(contents, opts))
    assert all(torch.equal(a, b) for a, b in zip(told[::2], told[1::2], strict=True) if a is not None)


def test_a_scaler_makes_no_cycle():
    opt = optimizer()
    for _ in range(WARM + 3):
        vars(opt).update(grad_scale=torch.tensor(2.0), found_inf=torch.tensor(0.0))
        opt.step()
    assert opt._repeats._repeated
    gone = weakref.ref(opt), weakref.ref(parameters(opt)[0])
    gc.collect()
    gc.disable()
    try:
        del opt
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_another_norm_to_clip_to_is_noticed(whole_steps):
    opts = [optimizer(max_norm=0.5), optimizer("reference", max_norm=0.5)]
    for opt in opts:
        warm(opt)
        for opt.max_norm in (0.25, None, float("inf")):
            whole_steps.clear()
            opt.step()
            assert whole_steps == [opt] and (opt.grad_norm is None) == (opt.max_norm is None)
    assert_same_bits(*map(contents, opts))
