"""Bad input: the right exception, which names argument and value, and nothing touched.

Every line of the issue's "Bad input gets"; at construction, in a parameter group later, and in gradients.
"""

import inspect
import math
import re

import numpy
import pytest
import torch
from helpers import Snapshot, clones, leaves, random_grads, train
from inventory import CLASSES, RICH

import lrtricks_fused as lrt
from lrtricks_fused.step import backends, native

by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])
nan = math.nan

# name, value, exception, what the message holds besides the name
BAD = [
    *(("keep_prob", value, ValueError, str(value)) for value in (1.5, -0.1, 1 + 1e-12, nan, math.inf, -math.inf)),
    ("keep_prob", torch.tensor(1.5), ValueError, "1.5"),
    ("keep_prob", torch.tensor(nan), ValueError, "nan"),
    ("keep_prob", torch.tensor([0.5, 0.5]), ValueError, "(2,)"),
    ("keep_prob", "0.5", TypeError, "'0.5'"),
    ("keep_prob", None, TypeError, "None"),
    *(("lr", value, ValueError, str(value)) for value in (-1e-3, nan)),
    ("lr", torch.tensor(-0.25), ValueError, "-0.25"),
    ("lr", torch.ones(3), ValueError, "(3,)"),
    ("lr", "1e-3", TypeError, "'1e-3'"),
    *(("weight_decay", value, ValueError, str(value)) for value in (-0.1, nan)),
    *(("eps", value, ValueError, str(value)) for value in (-1e-8, nan)),
    ("betas", (1.0, 0.999), ValueError, "1.0"),
    ("betas", (0.9, 1.0), ValueError, "1.0"),
    ("betas", (-0.1, 0.999), ValueError, "-0.1"),
    ("betas", (0.9, -0.5), ValueError, "-0.5"),
    ("betas", (0.9, nan), ValueError, "nan"),
    ("betas", (0.9,), ValueError, "(0.9,)"),
    ("betas", 0.9, ValueError, "0.9"),
    ("momentum", -0.5, ValueError, "-0.5"),
    ("alpha", -0.5, ValueError, "-0.5"),
    ("nesterov", True, ValueError, "momentum"),
    *(("grad_weight", value, ValueError, str(value)) for value in (-1.0, nan)),
    ("grad_weight", torch.tensor(-2.0), ValueError, "-2.0"),
    *(("seed", value, ValueError, str(value)) for value in (-1, 2**64, 0.5, "0")),
    ("differentiable", True, ValueError, "True"),
    ("differentiable", torch.ones(2), TypeError, "tensor([1., 1.])"),
    ("lr", torch.tensor(0.1).to_sparse(), ValueError, "layout torch.sparse_coo"),
    *(("centralize", value, TypeError, repr(value)) for value in (1, None, "yes")),
]
CALLS = [(cls, *row) for row in BAD for cls in CLASSES if row[0] in inspect.signature(cls).parameters]
bad = pytest.mark.parametrize(("cls", "name", "value", "error", "text"), CALLS)


def pattern(name, text):
    return f"(?s)(?=.*{re.escape(name)})(?=.*{re.escape(text)})"


@bad
def test_at_construction(cls, name, value, error, text):
    with pytest.raises(error, match=pattern(name, text)):
        cls(leaves((3,)), **{name: value})


@bad
def test_as_an_option_of_one_group(cls, name, value, error, text):
    params = leaves((3,), (4,))
    with pytest.raises(error, match=pattern(name, text)):
        cls([{"params": params[:1]}, {"params": params[1:], name: value}])
    optimizer = cls(params[:1])
    train(optimizer, range(1))
    before = Snapshot(optimizer)
    with pytest.raises(error, match=pattern(name, text)):
        optimizer.add_param_group({"params": params[1:], name: value})
    before.assert_unchanged()


@pytest.mark.parametrize("cls", CLASSES)
def test_as_a_default_that_every_group_overrides(cls):
    # As torch.optim, which checks its arguments whether or not a group uses them.
    accepted = []
    for _, name, value, error, text in (call for call in CALLS if call[0] is cls):
        good = inspect.signature(cls).parameters[name].default
        try:
            cls([{"params": leaves((3,)), name: good}], **{name: value})
        except error as raised:
            assert re.search(pattern(name, text), str(raised))
        else:
            accepted.append(f"{name}={value}")
    assert not accepted


@both_backends
@bad
def test_changed_in_a_group_later(cls, name, value, error, text, backend):
    # The second group is the bad one: the first must not have been stepped when it is found.
    params = leaves((700,), (5,))
    optimizer = cls([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    train(optimizer, range(2))
    good = optimizer.param_groups[1][name]
    optimizer.param_groups[1][name] = value
    random_grads(params, 2)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=pattern(name, text)):
        optimizer.step()
    optimizer.param_groups[1][name] = before.groups[1][name] = good
    before.assert_unchanged()
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_nesterov_with_dampening():
    for hyper in (dict(), dict(momentum=0.9, dampening=0.1)):
        with pytest.raises(ValueError, match=r"nesterov=True.*momentum=.*dampening="):
            lrt.SGD(leaves((3,)), nesterov=True, **hyper)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_of_other_dtypes(cls, dtype):
    param = torch.zeros(3, dtype=dtype).requires_grad_()
    with pytest.raises(TypeError, match=re.escape(str(dtype))):
        cls([param])
    optimizer = cls(leaves((3,)))
    with pytest.raises(TypeError, match=re.escape(str(dtype))):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


OTHER_DTYPES = [torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64]


@both_backends
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_frozen_parameters_may_be_of_any_dtype(cls, dtype, backend):
    # As in scripts that hand all of a quantised model's parameters over. The others are stepped as if alone.
    frozen, (param, alone) = torch.ones(3, dtype=dtype), leaves((5,), (5,))
    alone.data = param.data.clone()
    optimizer = cls([frozen, param], backend=backend)
    assert not cls([frozen]).state
    train(cls([alone], backend=backend), range(2))
    for step in range(2):
        random_grads([param], step)
        optimizer.step()
    assert torch.equal(param, alone)
    assert torch.equal(frozen.view(torch.uint8), torch.ones(3, dtype=dtype).view(torch.uint8))
    if dtype.is_floating_point or dtype.is_complex:  # thawed and given a gradient
        frozen.requires_grad_().grad = torch.ones(3, dtype=dtype)
        before = Snapshot(optimizer)
        with pytest.raises(TypeError, match=re.escape(str(dtype))):
            optimizer.step()
        before.assert_unchanged()


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float16, torch.int32])
def test_state_dtype_that_no_kernel_has(state_dtype):
    (param,) = clones([leaves((3,))[0].bfloat16()])
    with pytest.raises(ValueError, match=re.escape(f"state_dtype={state_dtype}")):
        lrt.Adam([param], state_dtype=state_dtype)


def sparse(param):
    return torch.eye(5).to_sparse(), "sparse"


def shape(param):
    param.data = torch.zeros(5, 5)  # the gradient stays (5, 4)
    return None, "[5, 4]"


def dtype(param):
    param.data = param.data.double()
    return None, "float32"


def complex_dtype(param):
    param.grad_dtype = None
    return torch.ones(5, 5, dtype=torch.complex64), "complex64"


@both_backends
@by_name
@pytest.mark.parametrize("spoil", [sparse, shape, dtype, complex_dtype], ids=lambda f: f.__name__)
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_that_do_not_fit(case, spoil, fresh, groups, backend):
    params = leaves((700,), (5, 4) if spoil is shape else (5, 5))
    parts = [{"params": params}] if groups == 1 else [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = case.make(parts, keep_prob=0.5, backend=backend)
    if not fresh:
        train(optimizer, range(2))
    random_grads(params, 2)
    grad, text = spoil(params[1])
    if grad is not None:
        params[1].grad = grad
    before = [tensor.clone() for tensor in [*params, *states_of(optimizer)]]
    with pytest.raises(ValueError, match=f"(?s)gradient.*{re.escape(text)}"):
        optimizer.step()
    after = [*params, *states_of(optimizer)]
    # A first step that fails may have created states, but only the zeros a state starts from.
    assert all(torch.equal(old, new) for old, new in zip(before, after[: len(before)], strict=True))
    assert not any(new.any() for new in after[len(before) :])


def states_of(optimizer):
    return [v for state in optimizer.state.values() for name, v in state.items() if name != "identity"]


@by_name
def test_gradient_on_another_device(case, monkeypatch):
    (param,) = leaves((5, 5))
    optimizer = case.make([param])

    class Moved(torch.Tensor):  # torch lets no one assign such a gradient
        grad = torch.zeros(5, 5, device="meta")

    param = optimizer.param_groups[0]["params"][0] = param.detach().as_subclass(Moved)
    with pytest.raises(ValueError, match=r"gradient of device meta.*cpu"):
        optimizer.step()
    assert torch.equal(param.as_subclass(torch.Tensor), leaves((5, 5))[0])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["fancy", "", "Native", None])
def test_unknown_backend(cls, name):
    with pytest.raises(ValueError, match=re.escape(f"backend={name!r}")):
        cls(leaves((3,)), backend=name)


@pytest.fixture
def native_is_missing(monkeypatch):
    monkeypatch.setattr(native, "load_error", "the dog ate it")
    backends.resolve.cache_clear()
    yield
    backends.resolve.cache_clear()


def test_unavailable_backend_tells_the_reason(native_is_missing):
    with pytest.raises(ValueError, match=r"backend='native'.*the dog ate it"):
        lrt.Adam(leaves((3,)), backend="native")
    reason = backends.why_not("triton", torch.device("cpu"))
    if reason is not None:
        with pytest.raises(ValueError, match=f"backend='triton'.*{re.escape(reason)}"):
            lrt.Adam(leaves((3,)), backend="triton")


def test_auto_falls_back_and_says_so_once(native_is_missing, caplog):
    with caplog.at_level("WARNING", logger="lrtricks_fused"):
        for _ in range(2):
            optimizer = lrt.Adam(leaves((700,)), keep_prob=0.5)
            train(optimizer, range(2))
    assert len(caplog.records) == 1
    assert "the dog ate it" in caplog.text
    wanted = lrt.Adam(leaves((700,)), keep_prob=0.5, backend="reference")
    train(wanted, range(2))
    assert torch.equal(optimizer.param_groups[0]["params"][0], wanted.param_groups[0]["params"][0])


def test_native_refuses_other_devices():
    param = torch.zeros(3, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match=r"backend='native'.*meta"):
        lrt.Adam([param], backend="native")


@pytest.mark.parametrize("name", ["keep_prob", "grad_weight", "lr"])
def test_a_number_as_a_tensor_of_any_dtype_works_or_is_refused_at_once(name):
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64):
        results = []
        for backend in ("native", "reference"):
            (param,) = leaves((700,))
            try:
                optimizer = lrt.SGD([param], backend=backend, **{name: torch.tensor(1, dtype=dtype)})
            except (TypeError, ValueError) as error:
                assert name in str(error)
                results.append("refused")
            else:
                train(optimizer, range(1))
                results.append(param.detach())
        assert isinstance(results[0], str) == isinstance(results[1], str)
        assert isinstance(results[0], str) or torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("backend", numpy.array(["native", "triton"]), ValueError),
        ("backend", torch.ones(2), ValueError),
        ("state_dtype", "float32", TypeError),
        ("state_dtype", numpy.array([1, 2]), TypeError),
        ("names", numpy.array(0.5), TypeError),
        ("momentum_window", 2**64, ValueError),
    ],
)
def test_arguments_of_other_types(name, value, error):
    with pytest.raises(error, match=f"Invalid {name}"):
        lrt.SGD(leaves((3,)), **{name: value})


@pytest.mark.parametrize(
    ("step", "error"),
    [(0, ValueError), (2**64, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError), (None, TypeError)],
)
def test_masks_of_no_step(step, error):
    (param,) = leaves((3,))
    optimizer = lrt.SGD([param], keep_prob=0.5)
    with pytest.raises(error, match=re.escape(f"Invalid step={step!r}")):
        optimizer.keep_mask(param, step)
    assert torch.equal(optimizer.keep_mask(param, numpy.int64(3)), optimizer.keep_mask(param, torch.tensor(3)))
    with pytest.raises(TypeError, match="Invalid param=3"):
        optimizer.keep_mask(3, 1)


def test_a_seed_that_no_generator_takes():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match=f"Invalid seed={2**64}"):
        lrt.StabilityProbe(model, torch.ones(1, 2), torch.nn.functional.mse_loss, torch.ones(1, 1), seed=2**64)


ATTRIBUTES = [
    ("rounding", "stochastc", ValueError, "Invalid rounding='stochastc'"),
    ("rounding", "stochastic", ValueError, "no parameter is rounded to 16 bits"),
    ("state_rounding", None, ValueError, "Invalid state_rounding=None"),
    ("state_dtype", "x", TypeError, "Invalid state_dtype='x'"),
    ("track_metrics", "no", TypeError, "Invalid track_metrics='no'"),
    ("track_changes", 1, TypeError, "Invalid track_changes=1"),
    ("backend", "cuda", ValueError, "Invalid backend='cuda'"),
    ("max_norm", -1.0, ValueError, "Invalid max_norm=-1.0"),
]


@pytest.mark.parametrize(("name", "value", "error", "text"), ATTRIBUTES)
@pytest.mark.parametrize("steps", [0, 2, 9])
def test_attributes_that_are_set_between_steps(name, value, error, text, steps):
    optimizer = lrt.Adam(leaves((700,), (5,)), backend="native")
    train(optimizer, range(steps))
    random_grads(optimizer.param_groups[0]["params"], steps)
    before, good = Snapshot(optimizer), getattr(optimizer, name)
    setattr(optimizer, name, value)
    for _ in range(2):
        with pytest.raises(error, match=re.escape(text)):
            optimizer.step()
        before.assert_unchanged()
    setattr(optimizer, name, good)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {steps + 1}


def test_a_state_dtype_that_parameters_cannot_have():
    optimizer = lrt.Adam(leaves((7,), dtype=torch.bfloat16))
    train(optimizer, range(1))
    optimizer.state_dtype = torch.float64
    with pytest.raises(ValueError, match=r"Invalid state_dtype=torch\.float64 for a torch\.bfloat16 parameter"):
        train(optimizer, range(1))


@pytest.mark.parametrize("value", [7.0, math.nan])
def test_masks_of_a_keep_prob_that_is_none(value):
    (param,) = leaves((3,))
    optimizer = lrt.SGD([param])
    optimizer.param_groups[0]["keep_prob"] = value
    with pytest.raises(ValueError, match=f"Invalid keep_prob={value}"):
        optimizer.keep_mask(param, 1)


@pytest.mark.parametrize("name", ["lr", "keep_prob", "grad_weight"])
@both_backends
def test_numbers_in_quantized_tensors(name, backend):
    params = leaves((3,), (4,))
    optimizer = lrt.Adam([{"params": params[:1]}, {"params": params[1:]}], backend=backend)
    random_grads(params, 0)
    before = Snapshot(optimizer)
    optimizer.param_groups[1][name] = torch.quantize_per_tensor(torch.tensor(0.1), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=rf"Invalid {name} of dtype torch\.qint8"):
        optimizer.step()
    optimizer.param_groups[1][name] = before.groups[1][name]
    before.assert_unchanged()


def test_a_refused_group_keeps_its_names():
    params = leaves((3,), (4,))
    optimizer = lrt.SGD(params[:1])
    model = torch.nn.Linear(3, 4)
    group = {"params": [model.weight], "names": model}
    with pytest.raises(ValueError, match="names"):  # of some parameters, where the others have none
        optimizer.add_param_group(group)
    assert group["names"] is model
    with pytest.raises(TypeError, match="Invalid names of type int"):
        optimizer.add_param_group({"params": params[1:], "names": 3})
    assert len(optimizer.param_groups) == 1


PER_OPTIMIZER = dict(
    max_norm=1.0, backend="reference", rounding="stochastic", state_rounding="stochastic", state_dtype=torch.bfloat16,
    master="split", track_metrics=True, track_changes=True,
)  # fmt: skip


@pytest.mark.parametrize("name", PER_OPTIMIZER)
def test_what_is_said_of_the_whole_optimizer_is_not_said_of_a_group(name):
    """It would do nothing there."""
    group = {"params": leaves((3,)), name: PER_OPTIMIZER[name]}
    with pytest.raises(ValueError, match=rf"Invalid {name}=.* in a group"):
        lrt.Adam([group])
    optimizer = lrt.Adam(leaves((3,)))
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=rf"Invalid {name}=.* in a group"):
        optimizer.add_param_group(group)
    before.assert_unchanged()
    own = optimizer._master if name == "master" else getattr(optimizer, name)
    optimizer.add_param_group({**group, name: own})
    train(optimizer, range(1))


@pytest.mark.parametrize("name", ["foreach", "fused", "capturable", "differentiable"])
def test_flags_of_torch_that_are_no_flags(name):
    with pytest.raises(TypeError, match=f"Invalid {name}='no': must be a bool"):
        lrt.Adam(leaves((3,)), **{name: "no"})
    lrt.Adam(leaves((3,)), **{name: None})


@pytest.mark.parametrize("mirrors", [3, torch.zeros(2, dtype=torch.bfloat16)])
def test_mirrors_that_are_no_list(mirrors):
    with pytest.raises(TypeError, match=r"Invalid mirrors of type .*: must be a list"):
        lrt.SGD([{"params": leaves((3,), (4,)), "mirrors": mirrors}])


def test_mirrors_of_a_group_that_is_there():
    optimizer = lrt.SGD(leaves((3,)), lr=0.1)
    optimizer.param_groups[0]["mirrors"] = [None]
    random_grads(optimizer.param_groups[0]["params"], 0)
    with pytest.raises(ValueError, match="Invalid mirrors in a group that is there"):
        optimizer.step()
