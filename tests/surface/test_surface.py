"""The Python surface of torch.optim: closures, groups, missing gradients, schedulers, hooks, copies.

Formulas are not judged here; only that the surface hands the right things to them.
"""

import copy
import inspect
import pickle

import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves, random_grads, same_bits, train
from inventory import CLASSES, RICH, TOLERANCE, TWINS

import lrtricks_fused as lrt

by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


def loss_of(params):
    return sum(((param - 1) ** 2).sum() for param in params)


@by_name
def test_closure_runs_once_with_gradients_and_its_loss_is_returned(case):
    params, twins = leaves((300,), (4, 3)), leaves((300,), (4, 3))
    optimizer, plain = case.make(params, keep_prob=0.5), case.make(twins, keep_prob=0.5)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    with torch.no_grad():
        returned = optimizer.step(closure)
    assert len(calls) == 1
    assert returned.item() == loss_of(leaves((300,), (4, 3))).item()
    assert returned.requires_grad
    loss_of(twins).backward()
    assert plain.step() is None
    assert_same_bits(everything(optimizer), everything(plain))


@by_name
def test_a_parameter_without_gradient_gets_no_state_and_keeps_its_index(case):
    params, full = leaves((300,), (50,), (600,)), leaves((300,), (50,), (600,))
    optimizer, whole = case.make(params, keep_prob=0.5), case.make(full, keep_prob=0.5)
    for step in range(2):
        random_grads(params, step)
        random_grads(full, step)
        params[1].grad = None
        optimizer.step()
        whole.step()
    assert params[1] not in optimizer.state
    assert same_bits(params[1], leaves((300,), (50,), (600,))[1])
    for i in (0, 2):  # the same masks as if the one between had a gradient
        assert same_bits(params[i], full[i])


@by_name
def test_a_late_gradient_starts_at_its_own_first_step(case):
    params = leaves((400,), (600,))
    optimizer = case.make(params, keep_prob=0.5)
    for step in range(3):
        random_grads(params, step)
        params[1].grad = None
        optimizer.step()
    random_grads(params, 3)
    before = params[1].detach().clone()
    optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in params] == [4, 1]
    assert torch.equal(params[1] != before, optimizer.keep_mask(params[1], 1))


def test_no_gradients_at_all():
    for cls in CLASSES:
        optimizer = cls(leaves((3,)))
        assert optimizer.step() is None
        assert not optimizer.state


@by_name
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_each_group_uses_its_own_settings(case, backend):
    # Separate optimizers cannot be the yardstick (their indices start at 0 again): a frozen first group makes room.
    settings = [dict(keep_prob=0.3, lr=0.05, seed=4), dict(keep_prob=0.8, lr=0.2, seed=5, grad_weight=0.5)]
    params = leaves((700,), (300,))
    optimizer = case.make([{"params": [p], **s} for p, s in zip(params, settings, strict=True)], backend=backend)
    train(optimizer, range(3))
    for i, own in enumerate(settings):
        alone = leaves((700,), (300,))
        single = case.make(alone, backend=backend, **own)
        for step in range(3):
            random_grads(alone, step)
            alone[1 - i].grad = None
            single.step()
        assert same_bits(params[i], alone[i])


@by_name
def test_add_param_group_does_not_change_other_masks(case):
    params, twins = leaves((700,), (300,)), leaves((700,), (300,))
    optimizer, plain = case.make(params, keep_prob=0.5), case.make(twins, keep_prob=0.5)
    train(optimizer, range(2))
    train(plain, range(2))
    masks = [optimizer.keep_mask(param, 3) for param in params]
    (late,) = leaves((900,), seed=3)
    optimizer.add_param_group({"params": [late], "keep_prob": 0.25})
    assert all(torch.equal(mask, optimizer.keep_mask(param, 3)) for mask, param in zip(masks, params, strict=True))
    assert 0.15 < optimizer.keep_mask(late, 1).float().mean() < 0.35
    train(optimizer, range(2, 4))
    train(plain, range(2, 4))
    assert_same_bits(everything(optimizer)[: len(everything(plain))], everything(plain))


@by_name
def test_maximize_is_minimize_of_the_negated_gradient(case):
    results = []
    for sign, maximize in ((1.0, True), (-1.0, False)):
        (param,) = leaves((700,))
        optimizer = case.make([param], maximize=maximize, keep_prob=0.5)
        for step in range(3):
            random_grads([param], step)
            param.grad *= sign
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@by_name
@pytest.mark.parametrize("as_tensor", [False, True])
def test_lr_schedulers(case, as_tensor):
    results = []
    for manual in (False, True):
        params = leaves((700,))
        optimizer = case.make(params, lr=torch.tensor(0.1) if as_tensor and not manual else 0.1, keep_prob=0.5)
        scheduler = None if manual else torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        for step in range(4):
            train(optimizer, range(step, step + 1))
            if manual:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (step + 1)
            else:
                scheduler.step()
        results.append(params[0].detach())
    # A float32 tensor lr is 0.1 rounded to float32, and rounded after each product; gamma is a power of two.
    assert same_bits(*results)


@pytest.mark.parametrize("cls", [lrt.SGD, lrt.Adam, lrt.AdamW, lrt.RMSprop])
def test_one_cycle_and_cosine_schedules_are_torchs(cls):
    results = []
    for module in (lrt, torch.optim):
        (param,) = leaves((300,), dtype=torch.float64)
        kwargs = dict(momentum=0.9) if "momentum" in inspect.signature(cls).parameters else {}
        optimizer = getattr(module, cls.__name__)([param], lr=0.01, **kwargs)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)  # cycles betas too
        for step in range(11):
            train(optimizer, range(step, step + 1))
            scheduler.step()
        results.append(param.detach())
    tolerance = TOLERANCE[torch.float64]
    torch.testing.assert_close(*results, rtol=tolerance.rtol, atol=tolerance.atol)


def test_step_hooks_and_zero_grad():
    (param,) = leaves((3,))
    optimizer, seen = lrt.Adam([param]), []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", len(opt.state))))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", len(opt.state))))
    train(optimizer, range(1))
    assert seen == [("pre", 0), ("post", 1)]
    optimizer.zero_grad()
    assert param.grad is None
    random_grads([param], 1)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(param.grad, torch.zeros(3))


def test_profiler_shows_the_step():
    (param,) = leaves((3,))
    optimizer = lrt.SGD([param])
    random_grads([param], 0)
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


@by_name
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_continues_alike_and_shares_nothing(case, copier):
    optimizer = case.make(leaves((700,), (5,)), keep_prob=0.5, seed=2**64 - 1, backend="reference")
    train(optimizer, range(2))
    twin = copier(optimizer)
    assert (twin.backend, twin.state_dtype) == (optimizer.backend, optimizer.state_dtype)
    before = Snapshot(optimizer)
    train(twin, range(2, 4))
    before.assert_unchanged()
    train(optimizer, range(2, 4))
    assert_same_bits(everything(twin), everything(optimizer))


@by_name
def test_signature_is_torchs_and_more(case):
    if case.twin is None:
        pytest.skip("torch.optim has no such class")
    ours, torchs = (inspect.signature(cls).parameters for cls in (case.ours, case.twin))
    assert [name for name in ours if name in torchs] == list(torchs)
    for name, parameter in torchs.items():
        assert ours[name].kind == parameter.kind
        assert ours[name].default == parameter.default
    extra = dict(keep_prob=1.0, grad_weight=1.0, centralize=False, seed=0, backend="auto", state_dtype=None)
    extra |= dict(max_norm=None, track_metrics=False, master=None, rounding="nearest", state_rounding="nearest")
    extra |= dict(track_changes=False, names=None)
    if case.ours is lrt.SGD:
        extra["momentum_window"] = None
    if "fused" not in torchs:  # which torch's RMSprop and RAdam lack: the scaler leaves its work to the step
        extra["fused"] = None
    assert {name: ours[name].default for name in ours if name not in torchs} == extra
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extra)


@pytest.mark.parametrize("case", TWINS[::4], ids=lambda c: c.name)
def test_foreach_and_fused_are_accepted_and_choose_nothing(case):
    parameters = inspect.signature(case.ours).parameters
    results = []
    for flags in ({}, {"foreach": True}, {"fused": True}, {"capturable": True}):
        if flags.keys() <= parameters.keys():
            params = leaves((700,))
            train(case.make(params, keep_prob=0.5, **flags), range(2))
            results.append(params[0].detach())
    assert len(results) >= 2
    assert all(same_bits(result, results[0]) for result in results)


def test_named_parameters_and_generators():
    model = torch.nn.Linear(5, 3)
    plain = torch.nn.Linear(5, 3)
    plain.load_state_dict(model.state_dict())
    named = lrt.AdamW(model.named_parameters(), keep_prob=0.5)
    unnamed = lrt.AdamW(plain.parameters(), keep_prob=0.5, names=plain)
    assert all(each.param_groups[0]["param_names"] == ["weight", "bias"] for each in (named, unnamed))
    train(named, range(2))
    train(unnamed, range(2))
    assert_same_bits(everything(named), everything(unnamed))


def test_a_model_learns():
    torch.manual_seed(0)
    features = torch.randn(200, 8)
    labels = (features[:, 0] > features[:, 1]).long()
    for case in RICH:
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        # The class's defaults but for lr: the rich cases ascend or decay on purpose.
        optimizer = case.ours(model.parameters(), lr=0.1 if case.ours is lrt.SGD else 0.03, keep_prob=0.5)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0], case.name


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backward_through_a_stale_graph_is_refused(backend):
    # An update must bump the version counter of what it writes; else autograd silently uses the new values.
    weight = torch.ones(300, requires_grad=True)
    loss = (weight**2).sum()
    loss.backward(retain_graph=True)
    lrt.Adam([weight], backend=backend).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@by_name
def test_tensors_that_were_made_in_inference_mode_are_stepped(case):
    stepped = []
    for backend in ("native", "reference"):
        with torch.inference_mode():
            params = [torch.nn.Parameter(torch.ones(700)), torch.nn.Parameter(torch.ones(5).bfloat16())]
            optimizer = case.make(params, backend=backend)
        train(optimizer, range(3))
        stepped.append(everything(optimizer))
    assert_same_bits(*stepped)
