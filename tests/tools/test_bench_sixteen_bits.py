"""The bench's rows of 16 bits: what is timed does what its row says, over the same memory, and counts its bytes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import assert_same_bits

from bench import candidates, experiments, sixteen_bits, workloads
from bench.sixteen_bits import mirror_of
from bench.timing import StatePool
from lrtricks_fused import AdamW

F32, BF16 = torch.float32, torch.bfloat16
SHAPES = ((700,), (5, 3, 3, 3))
OFFLOAD = replace(workloads.OFFLOAD, shapes=SHAPES)
WORDS = "offload|stochastic|split|track_"


def rows():
    return experiments.select(experiments.all_experiments(), WORDS)


def stepped(candidate, workload, steps=3):
    """The parameters that a candidate has stepped, its optimizer's and its states, and mirrors where it writes them."""
    params = workload.parameters()
    for param in params:
        mirror_of(param).fill_(torch.nan)
    step = candidate.build(params)
    for _ in range(steps):
        step()
    own = [param for group in step.optimizer.param_groups for param in group["params"]]
    states = [torch.as_tensor(state) for param in own for _, state in sorted(step.optimizer.state[param].items())]
    return [*(tensor.detach() for tensor in (*params, *own)), *states, *map(mirror_of, params)]


def test_ours_of_each_row_has_the_references_bits(monkeypatch):
    tried = 0
    for experiment in rows():
        workload = replace(experiment.workload, shapes=SHAPES)
        for candidate in experiment.candidates:
            if candidate.name.startswith("ours") and not candidate.isa:
                native = stepped(candidate, workload)
                with monkeypatch.context() as patch:
                    for module in (candidates, sixteen_bits):
                        patch.setattr(module, "optimizer_of", partial(candidates.optimizer_of, backend="reference"))
                    assert_same_bits(native, stepped(candidate, workload))
                tried += 1
    assert tried == 10


def test_who_casts_takes_the_step_of_who_does_not(monkeypatch):
    monkeypatch.setattr(candidates, "KEEP_PROB", 1.0)
    for candidate in (sixteen_bits.offloaded("AdamW"),
                      sixteen_bits.between_casts(candidates.torch_optim("AdamW", "fused"))):  # fmt: skip
        params = OFFLOAD.parameters()
        wanted = [param.detach().clone().requires_grad_() for param in params]
        for param, twin in zip(params, wanted, strict=True):
            assert param.grad.dtype == BF16
            twin.grad = param.grad.float()
        step, reference = candidate.build(params), AdamW(wanted, lr=1e-3, backend="reference")
        for _ in range(3):
            step()
            reference.step()
        for param, twin in zip(params, wanted, strict=True):
            torch.testing.assert_close(param, twin)  # torch.optim's has another order of statements
            assert torch.equal(mirror_of(param), param.detach().to(BF16))


def test_candidates_use_the_same_memory():
    for experiment in rows():
        workload = replace(experiment.workload, shapes=SHAPES)
        params, pool, seen = workload.parameters(), StatePool(), {}
        for candidate in experiment.candidates:
            step = candidate.build(params)
            step()
            pool.share(step)
            own = [param for group in step.optimizer.param_groups for param in group["params"]]
            if own[0].dtype == params[0].dtype:  # a bf16 twin has memory of its own
                assert [param.data_ptr() for param in own] == [param.data_ptr() for param in params]
            for place, param in enumerate(own):
                for name in ("exp_avg", "exp_avg_sq"):
                    state = step.optimizer.state[param][name]
                    assert seen.setdefault((place, name, state.dtype), state) is state
        assert len(seen) == len({dtype for _, _, dtype in seen}) * 2 * len(SHAPES)


def test_mirrors_are_the_parameters_own():
    params = OFFLOAD.parameters()
    mirror = mirror_of(params[0])
    assert mirror is mirror_of(params[0]) is not mirror_of(params[1])
    assert mirror is not mirror_of(workloads.clone_parameters(params)[0])
    assert [mirror_of(param).shape for param in params] == [*map(torch.Size, SHAPES)]


@pytest.mark.parametrize(
    ("name", "bytes_moved"),
    [
        ("ours, mirror", 28), ("ours, mirror, track_changes=True", 28.25), ("ours", 28), ("ours, split masters", 26),
        ("ours, bfloat16 states, state_rounding=stochastic", 20), ("ours, float32 states", 22),
        ("ours, float32 states, rounding=stochastic", 22), ("ours, float32 states, track_changes=True", 22.25),
    ],
)  # fmt: skip
def test_bytes_of_a_candidate(name, bytes_moved):
    found = [
        experiments.traffic_bytes(experiment.workload, experiment.rule, candidate)
        for experiment in rows()
        for candidate in experiment.candidates
        if candidate.name == name
    ]
    assert found == [bytes_moved] * (2 if name == "ours, mirror" else 1)  # of one large tensor, and of many small ones


@pytest.mark.parametrize(("threads", "limit"), [(1, 1.15), (2, 0.85)])
def test_one_thread_has_a_bar_of_its_own(threads, limit):
    bars = [bar for row in experiments.all_experiments(threads=threads) for bar in row.bars]
    (found,) = [bar.limit for bar in bars if "states rounded stochastically / torch" in bar.work]
    assert found == limit


def test_the_bars(monkeypatch):
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: object())  # as if DeepSpeed were installed
    monkeypatch.setattr(experiments, "isa_available", lambda isa: True)
    limits = {bar.work: bar.limit for row in rows() for bar in row.bars}
    assert sorted(limit for limit in limits.values() if limit) == [
        0.65, 0.65, 0.70, 0.8125, 0.85, 1.05, 1.05, 1.05, 1.0625, 1.10,
    ]  # fmt: skip
    assert [work for work, limit in limits.items() if limit is None] == [
        "16M fp32, Adam keep 0.5, track_metrics / without"
    ]
