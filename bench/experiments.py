"""The table of bars as data: which candidates run interleaved on which workload, and which ratios are asked of them."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import workloads
from .candidates import (
    RULES,
    Candidate,
    centralized_by_hand,
    clipped_by_hand,
    deepspeed,
    lossgrad,
    ours,
    recipe,
    torch_optim,
)
from .sixteen_bits import BITMAP_BYTES, between_casts, offloaded, split_masters
from .timing import forced_isa
from .workloads import Workload


@dataclass(frozen=True)
class Bar:
    """A bound on the ratio of two candidates' times, or on bytes; without a limit it is only reported."""

    work: str
    numerator: str
    denominator: str
    limit: float | None = None
    at_least: bool = False

    def passes(self, value: float) -> bool | None:
        """Whether ``value`` meets the bound; None without one."""
        if self.limit is None or math.isnan(value):
            return None
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Experiment:
    """Candidates that run interleaved on one workload, and the bars that compare them."""

    workload: Workload
    rule: str
    candidates: tuple[Candidate, ...]
    bars: tuple[Bar, ...]


def isa_available(isa: str) -> bool:
    """Whether this machine can run the native library's kernels for ``isa``."""
    try:
        with forced_isa(isa):
            return torch.ops.lrtricks_fused.cpu_isa() == isa
    except RuntimeError:
        return False


def _against_fused(rule: str, *, with_recipe: bool = False, compiled: bool = False) -> Experiment:
    """16M fp32 of one rule; Adam's experiment also holds the paper's recipe."""
    work = f"16M fp32, {rule} keep 0.5"
    candidates = [torch_optim(rule, "fused"), ours(rule)]
    bars = [Bar(f"{work} / torch fused without mask", "ours", "torch fused", 1.00)]
    if isa_available("avx2"):
        candidates.append(ours(rule, isa="avx2"))
        bars.append(Bar(f"{work}, forced to AVX2 / torch fused without mask", "ours avx2", "torch fused", 1.05))
    if with_recipe:
        candidates.append(recipe())
        bars.append(Bar("16M fp32, paper recipe (torch.bernoulli) / ours, Adam", "paper recipe", "ours", 40, True))
    if compiled:
        candidates.append(recipe(compiled=True))
        bars.append(Bar("16M fp32, torch.compile of the recipe / ours, Adam", "compiled recipe", "ours"))
    return Experiment(workloads.BIG, rule, tuple(candidates), tuple(bars))


def _bf16() -> Experiment:
    """16M bf16 in one run: states of both dtypes, and with fp32 states stochastic rounding and changed bits."""
    fp32 = torch.float32
    low, high = ours("Adam", state_dtype=torch.bfloat16), ours("Adam", state_dtype=fp32)
    stochastic = ours("Adam", state_dtype=fp32, rounding="stochastic")
    changes = ours("Adam", state_dtype=fp32, more=BITMAP_BYTES, track_changes=True)
    work = "16M bf16, Adam keep 0.5, {}"
    bars = (
        Bar(work.format("bf16 states / torch fused without mask (bf16 states)"), low.name, "torch fused", 0.90),
        Bar(work.format("fp32 states / torch fused without mask (bf16 states)"), high.name, "torch fused", 0.90),
        Bar(work.format("fp32 states, rounded stochastically / to nearest"), stochastic.name, high.name, 1.10),
        Bar(work.format("fp32 states, track_changes / without"), changes.name, high.name, 1.05),
    )
    return Experiment(workloads.BIG_BF16, "Adam", (torch_optim("Adam", "fused"), low, high, stochastic, changes), bars)


def _offload() -> Experiment:
    """The step of offloaded masters in one pass, beside a cast, a step and another cast."""
    plain, changes = offloaded("AdamW"), offloaded("AdamW", track_changes=True)
    torchs = between_casts(torch_optim("AdamW", "fused"))
    work, peer = "16M offloaded (fp32 master, bf16 gradient and mirror), AdamW keep 0.5", "cast, {} without mask, cast"
    candidates = [torchs, plain, changes]
    bars = [Bar(f"{work} / {peer.format('torch fused')}", plain.name, torchs.name, 0.65)]
    if isa_available("avx2"):
        candidates.append(narrow := offloaded("AdamW", isa="avx2"))
        text = f"{work}, forced to AVX2 / {peer.format('torch fused')}"
        bars.append(Bar(text, narrow.name, torchs.name, AVX2 * 0.65))
    if inner := deepspeed(adamw=True):
        candidates.append(own := between_casts(inner))
        bars.append(Bar(f"{work} / {peer.format(inner.name)}", plain.name, own.name, 0.70))
    bars.append(Bar(f"{work}, track_changes / without", changes.name, plain.name, 1.05))
    return Experiment(workloads.OFFLOAD, "AdamW", tuple(candidates), tuple(bars))


def _offload_of_small() -> Experiment:
    """The same of many small tensors, of which the host's part of a step decides."""
    workload, one_pass = replace(workloads.MANY, grad_dtype=torch.bfloat16), offloaded("AdamW")
    torchs = between_casts(torch_optim("AdamW", "fused"))
    work = f"{workload.name} offloaded, AdamW keep 0.5, opt.step()"
    bar = Bar(f"{work} / cast, torch fused without mask, cast", one_pass.name, torchs.name, 0.65)
    return Experiment(workload, "AdamW", (torchs, one_pass), (bar,))


def _beside_fp32(threads: int) -> Experiment:
    """What is stored in 16 bits, and what is summed up, beside steps of 16M fp32."""
    options: dict[str, Any] = {"state_dtype": torch.bfloat16, "state_rounding": "stochastic"}
    plain, torchs = ours("Adam"), torch_optim("Adam", "fused")
    states, split, metrics = ours("Adam", **options), split_masters("Adam"), ours("Adam", track_metrics=True)
    limit = 1.15 if threads == 1 else 0.85  # one thread computes longer than its memory takes
    work, peer = "16M fp32, Adam keep 0.5, bf16 states rounded stochastically", "torch fused without mask (fp32 states)"
    candidates = [torchs, plain, states, split, metrics]
    bars = [Bar(f"{work} / {peer}", states.name, torchs.name, limit)]
    if isa_available("avx2"):
        candidates.append(narrow := ours("Adam", isa="avx2", **options))
        bars.append(Bar(f"{work}, forced to AVX2 / {peer}", narrow.name, torchs.name, AVX2 * limit))
    bars += [
        Bar("16M bf16 with split masters, Adam keep 0.5, fp32 states / ours, fp32", split.name, plain.name, 1.05),
        Bar("16M fp32, Adam keep 0.5, track_metrics / without", metrics.name, plain.name),
    ]
    return Experiment(workloads.BIG, "Adam", tuple(candidates), tuple(bars))


def _against(workload: Workload, rule: str, implementation: str, work: str, limit: float) -> Experiment:
    baseline = torch_optim(rule, implementation)
    bar = Bar(f"{work} / {baseline.name} without mask", "ours", baseline.name, limit)
    return Experiment(workload, rule, (baseline, ours(rule)), (bar,))


def _against_deepspeed() -> list[Experiment]:
    """Rows against DeepSpeed's CPUAdam without a mask, where it is installed."""
    peer = deepspeed()
    if peer is None:
        return []
    return [
        Experiment(
            workload,
            "Adam",
            (peer, ours("Adam")),
            (Bar(f"{workload.name}, Adam keep 0.5 / {peer.name} without mask", "ours", peer.name, 1.05),),
        )
        for workload in (workloads.BIG, workloads.RESNET50, workloads.MANY)
    ]


def _against_adam(rule: str) -> Experiment:
    """A rule that torch.optim has no fused step of, against the one that moves as many bytes."""
    adam = torch_optim("Adam", "fused")
    bar = Bar(f"16M fp32, {rule} keep 0.5 / torch fused Adam without mask", "ours", adam.name, 1.05)
    return Experiment(workloads.BIG, rule, (adam, ours(rule)), (bar,))


def _small(workload: Workload, limit: float) -> Experiment:
    return _against(workload, "Adam", "fused", f"{workload.name}, Adam keep 0.5, opt.step()", limit)


def _lossgrad(rule: str, work: str) -> Experiment:
    bar = Bar(f"{work}, LOSSGRAD beyond its second forward pass / ours", "ours in LossGrad", "ours", 1.08)
    return Experiment(workloads.BIG, rule, (ours(rule), lossgrad(rule)), (bar,))


def _beside(workload: Workload, rule: str, work: str, hand: str, inside: Candidate, by_hand: Candidate) -> Experiment:
    """What a step does inside beside the same by ``hand`` before it, and beside a step without."""
    bars = (
        Bar(f"{work} / {hand} before the step", inside.name, by_hand.name, 1.00),
        Bar(f"{work} / ours without", inside.name, "ours", 1.20),
    )
    return Experiment(workload, rule, (ours(rule), inside, by_hand), bars)


def _centralize(rule: str) -> Experiment:
    work, hand = f"ResNet-50, {rule} keep 0.5, gradient centralization", "the same in tensor operations"
    return _beside(workloads.RESNET50, rule, work, hand, ours(rule, centralize=True), centralized_by_hand(rule))


def _clipping(rule: str) -> Experiment:
    work = f"16M fp32, {rule} keep 0.5, clipping to a global norm"
    return _beside(workloads.BIG, rule, work, "clip_grad_norm_", ours(rule, max_norm=1), clipped_by_hand(rule))


AVX2 = 1.25  # of a bar for AVX-512
LIMITS_OF_SMALL = (0.40, 0.40, 0.40, 0.40, 0.70, 0.70)


def all_experiments(compiled: bool = False, threads: int = 2) -> list[Experiment]:
    """Every timed row, in the order of the report; ``compiled`` adds torch.compile of the recipe.

    ``threads``: those that steps will have; some bars differ for one.
    """
    return [
        _against_fused("Adam", with_recipe=True, compiled=compiled),
        _against_fused("AdamW"),
        _against_fused("AMSGrad"),
        _against_fused("SGD+momentum"),
        _bf16(),
        _offload(),
        _offload_of_small(),
        _beside_fp32(threads),
        _against(workloads.BIG, "RMSprop", "foreach", "16M fp32, RMSprop keep 0.5", 0.35),
        _against(workloads.BIG, "RAdam", "foreach", "16M fp32, RAdam keep 0.5", 0.35),
        _against_adam("RAdam"),
        _against_adam("AdaBelief"),
        _against(workloads.RESNET50, "Adam", "fused", "ResNet-50, 161 tensors, Adam keep 0.5, opt.step()", 1.00),
        _against(
            workloads.RESNET50_CHANNELS_LAST,
            "Adam",
            "fused",
            "ResNet-50 in channels_last, Adam keep 0.5, opt.step()",
            1.15,
        ),
        _lossgrad("Adam", "16M fp32, Adam keep 0.5"),
        _lossgrad("SGD+momentum", "16M fp32, SGD+momentum keep 0.5"),
        _centralize("Adam"),
        _clipping("Adam"),
        *_against_deepspeed(),
        *(_small(workload, limit) for workload, limit in zip(workloads.SMALL, LIMITS_OF_SMALL, strict=True)),
    ]


MEMORY_BAR = Bar("Adam 16M fp32, memory of a step beyond parameters, gradients, states", "ours", "", 2**20)


def select(experiments: list[Experiment], rows: str) -> list[Experiment]:
    """The experiments cut down to the bars whose work matches the regular expression, and what these compare."""
    selected = []
    for experiment in experiments:
        bars = tuple(bar for bar in experiment.bars if re.search(rows, bar.work, re.IGNORECASE))
        names = {name for bar in bars for name in (bar.numerator, bar.denominator)}
        candidates = tuple(candidate for candidate in experiment.candidates if candidate.name in names)
        if bars:
            selected.append(replace(experiment, candidates=candidates, bars=bars))
    return selected


def traffic_bytes(workload: Workload, rule: str, candidate: Candidate) -> float:
    """Least bytes per parameter of a candidate's step."""
    state_dtype = candidate.state_dtype or workload.dtype
    return RULES[rule].traffic_bytes(workload.dtype, state_dtype, workload.grad_dtype) + candidate.more
