"""Mirrors, masters, stochastic rounding and changed bits as a user meets them, and the numbers behind them."""

import copy
import io
import pickle
import re
from dataclasses import replace

import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves
from inventory import RICH

import lrtricks_fused as lrt
from examples import offload
from lrtricks_fused.step.keep import keep_bits
from lrtricks_fused.step.rounding import (
    PARAM_MULTIPLIER,
    STATE_MULTIPLIERS,
    joined,
    rounding_bits,
    rounding_words,
    split,
    stochastically_rounded,
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
by_dtype = pytest.mark.parametrize("dtype", [BF16, F16])


def train(optimizer, steps, dtype=None):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator).to(dtype or param.dtype)
        optimizer.step()


# -- rounding ----------------------------------------------------------------------------------------------------------


def test_every_float32_is_what_its_halves_say():
    words = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
    edges = [sign << 31 | exponent << 23 | low for sign in (0, 1) for exponent in (0, 1, 127, 254, 255)
             for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x7F8000, 0x7FFFFF)]  # fmt: skip
    words = torch.cat([words, torch.tensor(edges)])
    words = ((words + 2**31) % 2**32 - 2**31).to(torch.int32)
    master = words.view(F32)
    high, low = split(master)
    back = joined(high, low)
    numbers = ~master.isnan()
    assert torch.equal(back[numbers].view(torch.int32), words[numbers])
    assert back[~numbers].isnan().all() and high[~numbers].isnan().all()
    finite = master.isfinite() & high.isfinite()
    nearest = master[finite].to(BF16)
    ties = words[finite].long() & 0xFFFF == 0x8000
    assert torch.equal(high[finite][~ties], nearest[~ties])
    assert (high[finite][ties].double().abs() > master[finite][ties].double().abs()).all()


@by_dtype
def test_the_mean_of_all_draws_is_the_number(dtype):
    """Exactly: every one of the 2**16 draws is tried."""
    draws = torch.arange(2**16)
    smallest = {BF16: 2.0**-133, F16: 2.0**-24}[dtype]
    numbers = [1.0, 1.001, -3.14159, 1.0 + 2.0**-11, 65503.9, 2.0**-14, 5.3 * smallest, -0.37 * smallest, 0.0]
    for number in torch.tensor(numbers):
        rounded = stochastically_rounded(number.expand(2**16).contiguous(), draws, dtype).double()
        if dtype == F16 and number.abs() < 2.0**-14:  # lost bits are cut to 2**-16 of an ulp
            assert (rounded.mean() - number.double()).abs() <= smallest * 2.0**-16
        else:
            assert rounded.mean() == number.double()
        assert len(rounded.unique()) == (1 if number.to(dtype).double() == number.double() else 2)


@by_dtype
def test_special_values_stay(dtype):
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e38])
    rounded = stochastically_rounded(values, torch.full((6,), 2**16 - 1), dtype)
    wanted = values.to(dtype)
    assert torch.equal(rounded[:2], wanted[:2]) and rounded[2].isnan()
    assert torch.equal(rounded[3:5].view(torch.int16), wanted[3:5].view(torch.int16))


def test_operands_elements_and_steps_are_independent():
    """Correlations of 2**18 pairs: their standard deviation is 2**-9; five of them are allowed."""
    like = torch.empty(2**18)

    def drawn(multiplier=PARAM_MULTIPLIER, step=1, param=0, seed=0):
        bits = rounding_bits(rounding_words(like, seed, step, param, None), multiplier).double()
        assert abs(float(bits.mean()) - 32767.5) < 5 * 18918 * 2.0**-9
        return (bits - bits.mean()) / bits.std()

    of_operands = [drawn(), *map(drawn, STATE_MULTIPLIERS)]
    kept = keep_bits(2**18, 0, 1, 0).double()
    others = [drawn(step=2), drawn(param=1), drawn(seed=1), (kept - kept.mean()) / kept.std()]
    others += [bits.roll(shift) for bits in of_operands for shift in (1, 64, 512)]
    for number, bits in enumerate(of_operands):
        for other in (*of_operands[:number], *others):
            assert (bits * other).mean().abs() < 5 * 2.0**-9


def test_the_bits_are_frozen():
    known = dict(zip([PARAM_MULTIPLIER, *STATE_MULTIPLIERS], [
        "1c6a c0aa 75ae fe7d 4acb 4b62 46f4 ae99", "ddfe 7c10 e886 dbe3 fd9f c906 7334 9d77",
        "2d1e fc00 ba46 abd3 febf baa6 5d34 8827", "087a 5c62 958e 8235 d7db b2b2 63f4 5ab1",
    ], strict=True))  # fmt: skip
    words = rounding_words(torch.empty(1008), 0x123456789ABCDEF0, 7, 3, None)
    for multiplier, digits in known.items():
        bits = rounding_bits(words, multiplier)
        assert " ".join(f"{int(x):04x}" for x in [*bits[:4], *bits[1000:1004]]) == digits


def test_a_second_moment_in_bfloat16_stands_still_unless_rounded_stochastically():
    ends = {}
    for rounding in ("nearest", "stochastic"):
        param = torch.zeros(4096, requires_grad=True)
        optimizer = lrt.Adam([param], lr=0.0, betas=(0.9, 0.999), state_dtype=BF16, state_rounding=rounding)
        for number in range(300):
            param.grad = torch.ones(4096) if number == 0 else torch.zeros(4096)
            optimizer.step()
        ends[rounding] = optimizer.state[param]["exp_avg_sq"].double().mean()
    exact = 0.001 * 0.999**299
    assert ends["nearest"] == torch.tensor(0.001, dtype=BF16)  # has not moved in 299 steps
    assert ends["stochastic"] == pytest.approx(exact, rel=0.02)  # 4,096 walks of 299 roundings, each of 2**-9 at most


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "dtype", "text"),
    [
        ({"master": "split"}, F32, "Invalid master='split'"),
        ({"master": "split"}, F16, "Invalid master='split'"),
        ({"master": "kahan"}, BF16, "Invalid master='kahan'"),
        ({"rounding": "stochastic"}, F32, "Invalid rounding='stochastic'"),
        ({"rounding": "stochastic", "master": "split"}, BF16, "Invalid rounding='stochastic'"),
        ({"rounding": "up"}, BF16, "Invalid rounding='up'"),
        ({"state_rounding": "stochastic"}, F32, "Invalid state_rounding='stochastic'"),
        ({"state_rounding": "stochastic"}, BF16, "Invalid state_rounding='stochastic'"),
        ({"track_changes": 1}, F32, "Invalid track_changes=1"),
    ],
)
def test_arguments_that_mean_nothing(arguments, dtype, text):
    with pytest.raises((ValueError, TypeError), match=re.escape(text)):
        lrt.Adam(leaves((3,), dtype=dtype), **arguments)


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (torch.zeros(4, dtype=BF16), "of shape (4,)"),
        (torch.zeros(3), "torch.float32"),
        (torch.zeros(3, dtype=BF16, device="meta"), "on meta"),
        (torch.zeros(1, dtype=BF16).expand(3), "share memory"),
        ([1.0, 2.0, 3.0], "of type list"),
        (lambda param: param.detach().view(BF16)[3:], "shares memory with its parameter"),
        (lambda param: param.detach().view(BF16)[:3], "shares memory with its parameter"),
    ],
)
def test_mirrors_that_cannot_be_written(out, text):
    (param,) = leaves((3,))
    out = out(param) if callable(out) else out
    optimizer = lrt.Adam([param])
    with pytest.raises((ValueError, TypeError), match=rf"Invalid mirror.*{re.escape(text)}"):
        optimizer.mirror(param, out)
    with pytest.raises((ValueError, TypeError), match="Invalid mirror"):
        lrt.Adam([{"params": [param], "mirrors": [out]}])
    train(optimizer, range(1))


def test_mirrors_of_groups():
    params = leaves((3,), (5,))
    out = torch.empty(5, dtype=F16)
    optimizer = lrt.Adam([{"params": params, "mirrors": [None, out]}])
    assert "mirrors" not in optimizer.param_groups[0]
    train(optimizer, range(2))
    assert torch.equal(out, params[1].detach().half())
    optimizer.mirror(params[1], None)
    train(optimizer, range(2, 3))
    assert not torch.equal(out, params[1].detach().half())
    with pytest.raises(ValueError, match="Invalid mirrors: 1 for 2 parameters"):
        lrt.Adam([{"params": leaves((3,), (5,)), "mirrors": [out]}])
    with pytest.raises(ValueError, match="not in this optimizer"):
        optimizer.mirror(leaves((5,))[0], out)
    (low,) = leaves((5,), dtype=BF16)
    with pytest.raises(ValueError, match=r"Invalid mirror of a torch\.bfloat16 parameter"):
        lrt.Adam([low]).mirror(low, out)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_of_dtypes_that_no_parameter_takes(backend):
    params = leaves((3,)) + leaves((5,), dtype=BF16)
    optimizer = lrt.Adam(params, backend=backend)
    train(optimizer, range(1))
    before = Snapshot(optimizer)
    for param, dtype in ((params[0], torch.float64), (params[1], F16)):
        kept, param.grad = param.grad, None
        param.grad_dtype = dtype
        param.grad = torch.ones(param.shape, dtype=dtype)
        with pytest.raises(ValueError, match=f"Invalid gradient of dtype {dtype}"):
            optimizer.step()
        param.grad, param.grad_dtype = None, param.dtype
        param.grad = kept
        before.assert_unchanged()


def test_masters():
    half, whole = leaves((700,), dtype=BF16)[0], leaves((5,))[0]
    optimizer = lrt.Adam([half, whole], master="split")
    assert torch.equal(optimizer.master(half), half.detach().float())  # before its first step
    train(optimizer, range(3))
    assert torch.equal(optimizer.master(whole), whole.detach())
    assert optimizer.state[half]["param_low"].dtype == torch.int16 and "param_low" not in optimizer.state[whole]
    with pytest.raises(ValueError, match="it has no master"):
        lrt.Adam([half]).master(half)
    with pytest.raises(ValueError, match="not in this optimizer"):
        optimizer.master(leaves((3,))[0])


# -- checkpoints -------------------------------------------------------------------------------------------------------

KINDS = [
    (BF16, {"master": "split"}),
    (BF16, {"rounding": "stochastic", "state_dtype": BF16, "state_rounding": "stochastic"}),
    (F32, {"state_dtype": BF16, "state_rounding": "stochastic"}),
]


@pytest.mark.parametrize(("dtype", "arguments"), KINDS)
@pytest.mark.parametrize("case", RICH[:2], ids=lambda c: c.name)
def test_a_saved_run_goes_on(case, dtype, arguments):
    params = leaves((700,), (33, 65), dtype=dtype)
    optimizer = case.make(params, keep_prob=0.5, **arguments)
    train(optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [param.detach().clone().requires_grad_() for param in params]
    resumed = case.make(twins, keep_prob=0.5, **arguments)
    resumed.load_state_dict(torch.load(file))
    copied = pickle.loads(pickle.dumps(optimizer))
    deep = copy.deepcopy(optimizer)
    for one in (optimizer, resumed, copied, deep):
        train(one, range(2, 4))
    for one in (resumed, copied, deep):
        assert_same_bits(everything(one), everything(optimizer))


def test_a_checkpoint_without_the_other_halves_begins_with_what_is_stored():
    plain = lrt.Adam(leaves((700,), dtype=BF16))
    train(plain, range(2))
    optimizer = lrt.Adam([plain.param_groups[0]["params"][0]], master="split")
    optimizer.load_state_dict(plain.state_dict())
    (param,) = optimizer.param_groups[0]["params"]
    assert torch.equal(optimizer.master(param), param.detach().float())
    train(optimizer, range(2, 3))
    assert optimizer.state[param]["step"] == 3 and "param_low" in optimizer.state[param]
    plain.load_state_dict(optimizer.state_dict())  # and the other way round it is not needed
    assert "param_low" not in plain.state[plain.param_groups[0]["params"][0]]


@pytest.mark.parametrize("low", [torch.zeros(700), torch.zeros(3, dtype=torch.int16), 5])
def test_a_bad_other_half_is_refused(low):
    optimizer = lrt.Adam(leaves((700,), dtype=BF16), master="split")
    train(optimizer, range(1))
    saved, before = copy.deepcopy(optimizer.state_dict()), Snapshot(optimizer)
    saved["state"][0]["param_low"] = low
    with pytest.raises(ValueError, match="param_low"):
        optimizer.load_state_dict(saved)
    before.assert_unchanged()


# -- changed bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["names", "order"])
@pytest.mark.parametrize("arguments", [{}, {"rounding": "stochastic"}, {"master": "split"}])
def test_a_receiver_stays_equal(arguments, kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.Conv2d(3, 5, 3)).bfloat16()
    model[1].to(memory_format=torch.channels_last)
    receiver = copy.deepcopy(model)
    params = model.named_parameters() if kind == "names" else model.parameters()
    optimizer = lrt.Adam(params, lr=1e-3, keep_prob=0.5, track_changes=True, **arguments)
    for step in range(4):
        before = [param.detach().clone() for param in model.parameters()]
        train(optimizer, range(3 * step, 3 * step + 3))
        changes = optimizer.pop_changes()
        net = [int((p != b).sum()) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(c.count == len(c.values) >= n for c, n in zip(changes.values(), net, strict=True))
        lrt.apply_changes(torch.nn.DataParallel(receiver) if kind == "names" else receiver.parameters(), changes)
        assert_same_bits([*receiver.parameters()], [param.detach() for param in model.parameters()])
    assert all(change.count == 0 and not change.bitmap.any() for change in optimizer.pop_changes().values())


def test_after_a_checkpoint_everything_counts_as_changed():
    params = leaves((70,), (5,))
    optimizer = lrt.Adam(params, track_changes=True)
    train(optimizer, range(2))
    optimizer.pop_changes()
    optimizer.load_state_dict(optimizer.state_dict())
    assert [change.count for change in optimizer.pop_changes().values()] == [70, 5]
    assert [change.count for change in optimizer.pop_changes().values()] == [0, 0]
    assert [change.count for change in copy.deepcopy(optimizer).pop_changes().values()] == [70, 5]


def test_changes_that_do_not_fit_are_refused():
    model = torch.nn.Linear(3, 5)
    optimizer = lrt.SGD(model.named_parameters(), track_changes=True)
    train(optimizer, range(1))
    changes = optimizer.pop_changes()
    for other, text in ((torch.nn.Linear(4, 5), "of 15 elements"), (torch.nn.ReLU(), "no such parameter"),
                        (torch.nn.Linear(3, 5).double(), "torch.float64")):  # fmt: skip
        before = [param.detach().clone() for param in other.parameters()]
        with pytest.raises(ValueError, match=rf"Invalid changes of 'weight': .*{text}"):
            lrt.apply_changes(other, changes)
        assert_same_bits([param.detach() for param in other.parameters()], before)
    with pytest.raises(ValueError, match="track_changes=False"):
        lrt.SGD(leaves((3,))).pop_changes()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda own: replace(own, bitmap=own.bitmap[:-1]), "bitmap is none of 15 elements"),
        (lambda own: replace(own, bitmap=own.bitmap | 128), "bitmap is none of 15 elements"),
        (lambda own: replace(own, bitmap=own.bitmap.int()), "bitmap is none of 15 elements"),
        (lambda own: replace(own, bitmap=None), "bitmap is none of 15 elements"),
        (lambda own: replace(own, values=own.values[1:]), "bitmap tells 15 elements, their count 15, and they have 14"),
        (lambda own: replace(own, count=14), "bitmap tells 15 elements, their count 14"),
        (lambda own: own.values, "they are a Tensor"),
    ],
)
def test_changes_that_do_not_agree_with_themselves_are_refused(wrong, text):
    model = torch.nn.Linear(3, 5)
    optimizer = lrt.SGD([(name, param) for name, param in model.named_parameters()][::-1], track_changes=True)
    train(optimizer, range(1))
    changes = optimizer.pop_changes()
    assert list(changes) == ["bias", "weight"]
    receiver = torch.nn.Linear(3, 5)
    before = [param.detach().clone() for param in receiver.parameters()]
    with pytest.raises(ValueError, match=f"Invalid changes of 'weight': .*{text}"):
        lrt.apply_changes(receiver, {**changes, "weight": wrong(changes["weight"])})
    assert_same_bits([param.detach() for param in receiver.parameters()], before)


def test_the_example_is_training_of_fp32_masters():
    assert_same_bits(offload.train(True, steps=4), offload.train(False, steps=4))


def test_changes_since_before_they_were_tracked_are_all():
    param = torch.nn.Parameter(torch.randn(30, 30))
    receiver = param.detach().clone()
    optimizer = lrt.SGD([param], lr=0.1, keep_prob=0.3)

    def step():
        param.grad = torch.randn(30, 30)
        optimizer.step()

    def is_equal_after_changes():
        lrt.apply_changes([receiver], optimizer.pop_changes())
        return torch.equal(receiver, param)

    step()
    optimizer.track_changes = True
    assert is_equal_after_changes()
    step()
    assert optimizer._changes[param].ne(0).sum() > 0 and is_equal_after_changes()
    optimizer.track_changes = False
    step()
    optimizer.track_changes = True
    step()
    assert is_equal_after_changes()
    optimizer.track_changes = False
    step()
    optimizer.track_changes = True
    assert is_equal_after_changes()


def test_changes_that_are_tracked_from_the_first_step_are_few():
    param = torch.nn.Parameter(torch.randn(30, 30))
    optimizer = lrt.SGD([param], lr=0.1, keep_prob=0.3, track_changes=True)
    param.grad = torch.ones(30, 30)
    optimizer.step()
    assert 150 < optimizer.pop_changes()[0].count < 400


def test_a_group_that_is_refused_keeps_its_mirrors():
    first, second = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = lrt.SGD([first], lr=0.1)
    group = {"params": [second], "keep_prob": 2.0, "mirrors": [torch.zeros(4, dtype=torch.bfloat16)]}
    with pytest.raises(ValueError, match="keep_prob"):
        optimizer.add_param_group(group)
    group["keep_prob"] = 0.5
    optimizer.add_param_group(group)
    assert optimizer._mirrors.keys() == {second} and "mirrors" not in optimizer.param_groups[1]


@pytest.mark.parametrize("low", ["no memory", "meta", "sparse"])
def test_a_low_that_cannot_be_read_is_refused(low):
    param = torch.nn.Parameter(torch.ones(40, 40, dtype=torch.bfloat16))
    optimizer = lrt.SGD([param], lr=0.1, master="split", momentum=0.9)
    param.grad = torch.ones_like(param)
    optimizer.step()
    state_dict = optimizer.state_dict()
    own = state_dict["state"][0]["param_low"].clone()
    if low == "no memory":
        own.untyped_storage().resize_(0)
    else:
        own = own.to("meta") if low == "meta" else own.to_sparse()
    state_dict["state"][0] = {**state_dict["state"][0], "param_low": own}
    with pytest.raises(ValueError, match="Invalid state_dict: param_low"):
        optimizer.load_state_dict(state_dict)
