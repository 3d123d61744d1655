"""The bench's workloads and candidates under pytest-benchmark, for people's own CI: ``make bench-pytest``.

Absolute times, grouped by workload and rule; ``--benchmark-json`` and ``--benchmark-compare`` are pytest-benchmark's.
The ratios that README publishes are interleaved, which these are not: they come from ``python -m bench``.
"""

from dataclasses import replace

import pytest
import torch

from . import candidates, workloads
from .candidates import KEEP_PROB, Candidate
from .timing import cache_flusher, forced_isa
from .workloads import Workload, clone_parameters

ROUNDS, WARM_UP = 15, 6  # RAdam changes its branch at step 6
THREADS = 2
STEPS = [
    (workload, rule, candidate)
    for workload, rules in {
        workloads.BIG: ("Adam", "AMSGrad", "SGD+momentum", "RAdam", "AdaBelief"),
        workloads.BIG_BF16: ("Adam",),
        workloads.RESNET50: ("Adam",),
        workloads.RESNET50_CHANNELS_LAST: ("Adam",),
        **dict.fromkeys(workloads.SMALL, ("Adam",)),
    }.items()
    for rule in rules
    for candidate in (
        candidates.torch_optim(rule if rule != "AdaBelief" else "Adam", "foreach" if rule == "RAdam" else "fused"),
        candidates.ours(rule),
    )
]


def check(workload: Workload, rule: str, candidate: Candidate) -> None:
    """Raises AssertionError unless a few steps of the candidate agree with those of the reference.

    Ours bit for bit; torch's, which has no mask, within rounding of the reference without one.
    """
    small = replace(workload, shapes=((700,), (5, 3, 3, 3)))
    ours = candidate.name.startswith("ours")
    rule = rule if ours or rule != "AdaBelief" else "Adam"  # torch has none
    params, wanted = small.parameters(), small.parameters()
    step = candidate.build(params)
    reference = candidates.optimizer_of(
        rule, wanted, keep_prob=KEEP_PROB if ours else 1.0, backend="reference",
        state_dtype=None if ours or small.dtype.itemsize != 2 else small.dtype,
    )  # fmt: skip
    for _ in range(WARM_UP + 2):
        step()
        reference.step()
    exact = 0.0 if ours else None  # None: torch's own tolerance for the dtype
    for got, expected in zip(params, wanted, strict=True):
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=exact, atol=exact)


@pytest.mark.parametrize(("workload", "rule", "candidate"), STEPS, ids=lambda value: getattr(value, "name", value))
def test_step(benchmark, workload, rule, candidate):
    """Whole steps of one candidate, from memory: what lies in the caches is overwritten before each."""
    torch.set_num_threads(THREADS)
    check(workload, rule, candidate)
    benchmark.group = f"{workload.name}, {rule}"
    params = clone_parameters(workload.parameters())
    step, flush = candidate.build(params), cache_flusher(workload)

    def prepare() -> None:
        workload.before_step(params)
        flush()

    with forced_isa(candidate.isa):
        benchmark.pedantic(step, setup=prepare, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
