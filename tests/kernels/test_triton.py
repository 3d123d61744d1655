"""The Triton kernels against the reference, bit for bit.

Interpreted, a program (8192 elements) takes a tenth of a second: so one step of a case meets full chunks, tails,
tensors without elements and a first and a later step at once.
"""

import copy
from dataclasses import replace

import numpy
import pytest
import torch
from helpers import SCALAR_STATES, assert_same_bits, call_of, check_left_alone, everything, leaves, train
from inventory import CASES, DTYPES, FULL, RICH, SEED
from philox_numpy import keep_bits
from tensors import GUARD, LAYOUTS, TensorCase, guards_of, make_params, set_grads, unaligned
from test_keep_bits import KNOWN_BITS, SEEDS, THRESHOLDS, words
from test_native_equals_reference import _special as special_values
from triton_worker import FLAGS, POISON, THRESHOLD, interpreted, late_step, scratch, triton_mask, triton_step

import lrtricks_fused as lrt
from lrtricks_fused.step import table

BACKENDS = ("triton", "reference")
ADAM = next(case for case in RICH if case.ours is lrt.Adam)
# A full chunk and a tail of a tile, a row and an element; then one element, none, and a partial row.
SHAPES = [TensorCase((table.CHUNK + 512 + 64 + 1,)), TensorCase(()), TensorCase((0,)), TensorCase((37,))]
by_rich = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
by_some = pytest.mark.parametrize("case", RICH if FULL else RICH[::3], ids=lambda c: c.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


@pytest.mark.parametrize("case", CASES if FULL else CASES[::2], ids=lambda c: c.name)
@interpreted
def test_every_variant_equals_reference(case):
    assert_same_bits(*(late_step(case, DTYPES[0], 0.5, b, [SHAPES[0], *SHAPES[2:]]) for b in BACKENDS))


@by_dtype
@by_some
@interpreted
def test_every_dtype_equals_reference(case, dtype):
    assert_same_bits(*(late_step(case, dtype, 0.3, backend, SHAPES) for backend in BACKENDS))


@pytest.mark.parametrize("keep_prob", [0.0, 1.0, 1e-9, 1 - 1e-9])
@interpreted
def test_extreme_keep_probs(keep_prob):
    for case in (RICH[0], ADAM):
        assert_same_bits(*(late_step(case, DTYPES[0], keep_prob, b, [TensorCase((1500,))]) for b in BACKENDS))


@pytest.mark.parametrize(("case", "dtype"), [*((case, DTYPES[0]) for case in RICH), *((ADAM, d) for d in DTYPES[1:])],
                         ids=lambda x: x.name)  # fmt: skip
@interpreted
def test_special_values(case, dtype):
    assert_same_bits(*(special_values(case, dtype, 0.5, backend) for backend in BACKENDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@interpreted
def test_every_16_bit_pattern_is_read_and_rounded_to_nearest_even(dtype):
    # p - 1 * g over all p against torch's own conversions; ties, subnormals, and overflow to infinity.
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for value in (2**-9, -3.0, -torch.finfo(dtype).max / 2):
        param = patterns.clone().requires_grad_()
        param.grad = torch.full_like(param, value)
        lrt.SGD([param], lr=1.0, backend="triton").step()
        assert_same_bits([param], [(patterns.float() - param.grad.float()).to(dtype)])


@by_rich
@interpreted
def test_resumed_at_large_step_counts(case):
    results = []
    for backend in BACKENDS:
        params = leaves((65,), (1,), (33,))
        optimizer = case.make(params, keep_prob=0.5, seed=SEED, backend="reference")
        train(optimizer, range(1))
        for param, step in zip(params, (10**6, 2**24 + 3, 2**32 + 4), strict=True):
            optimizer.state[param]["step"].fill_(step)
        optimizer.backend = backend
        train(optimizer, range(1, 2))
        results.append(everything(optimizer))
    assert_same_bits(*results)


@interpreted
def test_scalars_in_tensors_are_read_when_the_kernel_runs():
    results = []
    for backend in BACKENDS:
        params = leaves((700,), (0,))
        scalars = [torch.tensor(0.0, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.float64)]
        names = dict(zip(("lr", "keep_prob", "grad_weight"), scalars, strict=True))
        optimizer = lrt.AdamW(params, seed=SEED, backend=backend, capturable=True, **names)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(3.0), torch.tensor(0.0)
        for n in range(4):
            for scalar, value in zip(scalars, (0.1, 0.3, 0.7), strict=True):
                scalar.fill_(value / (n + 1))
            optimizer.grad_scale.fill_(1.5 + n)
            optimizer.found_inf.fill_(n in (0, 2))
            train(optimizer, range(n, n + 1))
        assert [state["step"].item() for state in optimizer.state.values()] == [2.0, 2.0]
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32),
                                    (torch.bfloat16, torch.float16)], ids=str)  # fmt: skip
@interpreted
def test_scalars_of_any_dtype(dtypes):
    # Those that the kernels do not read are converted: to copies that must live until they have run.
    scalars = [torch.tensor(value, dtype=dtypes[i % 2]) for i, value in enumerate((0.25, 1.0, 3.0))]
    params = leaves((5,))
    optimizer = lrt.SGD(params, **dict(zip(("lr", "keep_prob", "grad_weight"), scalars, strict=True)), backend="triton")
    wanted = params[0].detach().clone()
    train(optimizer, range(1))
    assert_same_bits(params, [wanted - 0.25 * (3 * params[0].grad)])


@by_rich
@interpreted
def test_found_inf_touches_nothing(case):
    params = leaves((700,), (5,))
    optimizer = case.make(params, keep_prob=0.5, backend="triton")
    train(optimizer, range(1))
    before = [tensor.clone() for tensor in everything(optimizer)]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    train(optimizer, range(1, 2))
    assert_same_bits(everything(optimizer), before)
    words = scratch(optimizer).view(torch.uint8)
    assert (words[table.PREPARED_BYTES :] == POISON).all()  # of the tensors, nothing has been prepared
    assert not (words[: table.PREPARED_BYTES] == POISON).all()


@interpreted
def test_indices_of_groups_and_of_parameters_without_gradients():
    shapes = [(65,), (3, 5), (130,), (7,), (64,), (1,)]
    results = []
    for backend in BACKENDS:
        params = leaves(*shapes)
        groups = [dict(params=params[:3]), dict(params=params[3:], lr=0.3, keep_prob=0.3, seed=7, weight_decay=0.0)]
        optimizer = ADAM.make(groups, keep_prob=0.5, seed=SEED, backend=backend)
        for n in range(3):
            set_grads(params, [TensorCase(shape) for shape in shapes], n)
            params[n].grad = params[5 - n].grad = None
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@interpreted
def test_many_tensors():
    # More than one program of prepare_kernel takes; nearly all without elements, which cost no program of step_kernel.
    shapes = [TensorCase((37 if i in (0, 128, 299) else 0,)) for i in range(300)]
    assert_same_bits(*(late_step(ADAM, DTYPES[0], 0.5, backend, shapes, earlier=1) for backend in BACKENDS))


@interpreted
def test_gradients_that_move_and_parameters_that_are_replaced():
    results = []
    for backend in BACKENDS:
        (param,) = params = leaves((700,))
        optimizer = ADAM.make(params, keep_prob=0.5, backend=backend)
        old = []
        for n in range(4):
            if n == 2:
                param.data = param.detach().clone()
            train(optimizer, range(n, n + 1))
            old += [param.grad, param.data]  # alive, so that no address is used again
        assert len({grad.data_ptr() for grad in old[::2]}) == 4
        results.append(everything(optimizer))
    assert_same_bits(*results)


@interpreted
def test_load_state_dict():
    optimizer = ADAM.make(leaves((700,)), keep_prob=0.5, backend="triton")
    twin = ADAM.make(leaves((700,)), keep_prob=0.5, backend="reference")
    train(optimizer, range(1))
    saved = copy.deepcopy(optimizer.state_dict())
    values = optimizer.param_groups[0]["params"][0].detach().clone()
    train(optimizer, range(1, 2))
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0].copy_(values)
    optimizer.load_state_dict(saved)  # the table of the step before points to other states
    train(optimizer, range(1, 2))
    train(twin, range(2))
    assert_same_bits(everything(optimizer), everything(twin))


@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[2]], ids=lambda d: d.name)
@interpreted
def test_strided_operands(dtype):
    shapes = [*LAYOUTS[1:], TensorCase((9, 5))]
    assert_same_bits(*(late_step(ADAM, dtype, 0.5, backend, shapes, earlier=1) for backend in BACKENDS))


@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[2]], ids=lambda d: d.name)
@interpreted
def test_any_alignment_and_nothing_outside(dtype):
    shapes = [TensorCase((table.CHUNK + 65,)), TensorCase((511,))]
    results = []
    for backend in BACKENDS:
        params = [unaligned(p.detach()).requires_grad_() for p in make_params(shapes, dtype.dtype)]
        optimizer = ADAM.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend=backend)
        for n in range(2):
            set_grads(params, shapes, n)
            optimizer.step()
            for state in optimizer.state.values():
                state.update({name: unaligned(t) for name, t in state.items() if name not in SCALAR_STATES and n == 0})
        states = [t for state in optimizer.state.values() for name, t in state.items() if name not in SCALAR_STATES]
        assert all((guards_of(tensor) == GUARD).all() for tensor in [*params, *states])
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("moved", ["nothing", "param", "grad", "exp_avg", "max_exp_avg_sq"])
@interpreted
def test_wide_accesses_are_of_whole_chunks_and_of_aligned_operands(moved):
    from lrtricks_fused.triton_kernels import step

    param = torch.ones(2 * table.CHUNK - 1)
    param = (unaligned(param) if moved == "param" else param).requires_grad_()
    param.grad = unaligned(torch.ones_like(param)) if moved == "grad" else torch.ones_like(param)
    optimizer = ADAM.make([param], backend="reference")
    optimizer.step()
    state = optimizer.state[param]
    state.update({name: unaligned(tensor) for name, tensor in state.items() if name == moved})
    optimizer.backend = "triton"
    wide, pointer_to = [], step.pointer_to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "pointer_to", lambda *given: wide.append(bool(given[2])) or pointer_to(*given))
        optimizer.step()
    full = [moved in ("nothing", "grad")] * 5  # parameter, gradient and three states of a chunk
    full[1] = moved == "nothing"  # it alone is unaligned, or one that is written is
    assert wide == full + [False] * 5


@pytest.mark.parametrize(("seed", "step", "param", "first", "wanted"), KNOWN_BITS)
@interpreted
def test_known_bits(seed, step, param, first, wanted):
    bits = torch.tensor(words(wanted))
    for threshold in sorted(words(wanted))[::3]:
        for limit in (threshold, threshold + 1):
            kept = triton_mask(first + 8, limit / 65536, seed, step, param)
            assert torch.equal(kept[first:], bits < limit)


@pytest.mark.parametrize("seed", SEEDS)
@interpreted
def test_bits_of_64_bit_seeds_and_large_steps_and_indices(seed):
    for step, param in ((1, 2**31), (2**24 + 1, 0), (2**32 - 1, 2**32 - 1), (2**32 + 5, 1)):
        bits = torch.from_numpy(keep_bits(range(1500), seed, step, param).astype(numpy.int64))
        assert torch.equal(triton_mask(1500, 0.5, seed, step, param), bits < 32768)


@interpreted
def test_thresholds():
    param = torch.zeros(0, requires_grad=True)
    param.grad = torch.zeros(0)
    for as_tensor in (False, True):
        optimizer = lrt.SGD([param], backend="triton")
        for keep_prob, threshold in [*THRESHOLDS, (-1.0, 0), (2.0, 65536), (float("nan"), 0)]:
            call = call_of(optimizer)
            given = torch.tensor(keep_prob, dtype=torch.float64) if as_tensor else keep_prob
            triton_step(replace(call, keep_prob=given))
            draws = threshold not in (0, 65536)
            limit = threshold if draws else threshold // 65536  # of draws that are all 0
            assert scratch(optimizer)[[THRESHOLD, FLAGS]].tolist() == [limit, draws], keep_prob


@pytest.mark.parametrize("first", [2**33, 2**36 + 5 * table.CHUNK])  # beyond 32 bits: the element; the Philox counter
@pytest.mark.parametrize("aligned", [True, False])
@interpreted
def test_elements_beyond_2_to_the_31(aligned, first):
    # Of a parameter of ``first`` + 8692 elements only the last two chunks are in memory, and stepped.
    from lrtricks_fused.triton_kernels import launch

    count = table.CHUNK + 500
    values, grad = torch.zeros(count + 2), torch.ones(count)
    param = values[:count] if aligned else values[1 : count + 1]
    step_count = torch.tensor(6.0, dtype=torch.float64)
    fake = table.AddressTable.__new__(table.AddressTable)
    fake.rows = torch.zeros(1, table.COLUMNS, dtype=torch.int64)
    row = fake.rows[0]
    row[table.PARAM], row[table.GRAD] = param.data_ptr() - 4 * first, grad.data_ptr() - 4 * first
    row[table.STEP], row[table.NUMEL], row[table.PARAM_INDEX] = step_count.data_ptr(), first + count, 3
    row[table.FIRST_CHUNK] = -(first // table.CHUNK)
    fake.chunk_tensors = torch.zeros(2, dtype=torch.int32)
    fake.prepared = torch.empty(2 * table.PREPARED_BYTES, dtype=torch.uint8)
    optimizer = lrt.SGD([param.requires_grad_()], lr=1.0, keep_prob=0.5, seed=SEED, backend="triton")
    param.grad = grad
    call = call_of(optimizer)
    with torch.no_grad():
        launch._run(call, fake)
    kept = keep_bits(numpy.arange(first, first + count), SEED, 7, 3) < 32768
    assert torch.equal(param != 0, torch.from_numpy(kept))
    assert values.count_nonzero() == param.count_nonzero()
    assert step_count == 7


@pytest.mark.parametrize("count", [-5.0, 0.5, float("nan"), 2.0**53])
@by_some
@interpreted
def test_a_tensor_without_a_count_of_steps_is_left_alone(case, count):
    check_left_alone(case, count, triton_step)
