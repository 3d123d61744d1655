"""Whoever looks at a step sees what torch.optim shows; a step that nobody looks at does without."""

import pytest
from helpers import leaves, random_grads
from torch.autograd import profiler
from torch.optim import optimizer as torch_optimizer

import lrtricks_fused as lrt


def optimizer():
    params = leaves((5,))
    random_grads(params, 0)
    return lrt.Adam(params)


@pytest.fixture
def records(monkeypatch):
    """Names of the records that are made."""
    names, plain = [], profiler.record_function.__init__

    def noted(self, name, args=None):
        names.append(name)
        plain(self, name, args)

    monkeypatch.setattr(profiler.record_function, "__init__", noted)
    return names


def test_an_unobserved_step_makes_no_record(records):
    opt = optimizer()
    assert opt.step(lambda: 3.0) == 3.0 and opt.state[opt.param_groups[0]["params"][0]]["step"] == 1
    assert records == []


@pytest.mark.parametrize("where", ["optimizer", "everywhere"])
@pytest.mark.parametrize("when", ["pre", "post"])
def test_hooks_see_the_step(when, where, records):
    opt, seen = optimizer(), []
    (param,) = opt.param_groups[0]["params"]
    register = {
        ("pre", "optimizer"): opt.register_step_pre_hook,
        ("post", "optimizer"): opt.register_step_post_hook,
        ("pre", "everywhere"): torch_optimizer.register_optimizer_step_pre_hook,
        ("post", "everywhere"): torch_optimizer.register_optimizer_step_post_hook,
    }[when, where]
    handle = register(lambda own, args, kwargs: seen.append((own, args, kwargs, len(own.state[param]))))
    try:
        opt.step(closure=None)
    finally:
        handle.remove()
    opt.step()
    ((own, args, kwargs, states),) = seen
    assert own is opt and args == (opt,) and kwargs == {"closure": None} and (states == 0) is (when == "pre")
    assert records == ["Optimizer.step#Adam.step"] and opt.state[param]["step"] == 2


def test_a_subclass_that_has_a_step_of_its_own():
    class Twice(lrt.Adam):
        def step(self, closure=None):
            super().step()
            return super().step(closure)

    params = leaves((5,))
    random_grads(params, 0)
    opt = Twice(params)
    opt.step()
    assert opt.state[params[0]]["step"] == 2 and Twice.step.hooked
