"""Whatever a training script does between steps, all optimizers that it does it to stay equal.

Those of the native library, of the reference, and of one that remembers nothing from one step to the next, bit for bit:
of plain and of 16-bit parameters, with metrics, changed bits, clipping and mirrors. And torch.optim's own of the same
name, within the inventory's tolerance. Derandomised; with LRTRICKS_FULL=1 many more examples.
"""

import random

import pytest
import torch
from fuzz_training import OWN, SHAPES, TRAINING, new_gradients, params_of, values
from helpers import assert_same_bits, everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory import FULL, RICH, TOLERANCE

few = settings(
    max_examples=50 if FULL else 3, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip
salt = st.integers(0, 2**32 - 1)
WITH_TWIN = [case for case in RICH if case.twin is not None]
BF16 = torch.bfloat16
STORED = {
    "plain": (torch.float32, {}),
    "bfloat16 states": (torch.float32, dict(state_dtype=BF16, state_rounding="stochastic")),
    "split masters": (BF16, dict(master="split")),
    "stochastic": (BF16, dict(rounding="stochastic", state_dtype=BF16, state_rounding="stochastic")),
    "float16": (torch.float16, {}),
}


def script(events):
    return st.lists(st.tuples(st.sampled_from(events), salt), min_size=4, max_size=24)


def make(case, setup, dtype=torch.float32, twin=False, **options):
    """Of two groups, of named parameters or not; some have no gradient yet."""
    rng = random.Random(setup)
    named = rng.random() < 0.5
    groups = []
    for g in range(2):
        params = [values(rng, rng.choice(SHAPES), dtype).requires_grad_() for _ in range(rng.randint(1, 4))]
        for param in params:
            param.grad = values(rng, param.shape, dtype) if rng.random() < 0.7 else None
        groups.append({"params": [(f"{g}.{p}", param) for p, param in enumerate(params)] if named else params})
    return case.make_twin(groups) if twin else case.make(groups, **options)


def forget(opt):
    """All that an optimizer remembers of its steps, but for what their results are."""
    opt._tables.clear()
    opt._maps.clear()
    opt._checked_groups.clear()
    opt._kept = None


def applied(event, opt, seed):
    torch.manual_seed(seed)
    result = event(opt, random.Random(seed))
    return opt if result is None else result


def told(opt):
    """What its steps say of themselves."""
    numbers = [] if opt.grad_norm is None else [opt.grad_norm]
    if opt.track_metrics:
        numbers += opt.metrics().values()
    if opt.track_changes:
        for change in opt.pop_changes().values():
            numbers += [torch.tensor(change.count), change.bitmap, change.values]
    return numbers + [mirror for param in params_of(opt) if (mirror := opt._mirrors.get(param)) is not None]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("case", RICH if FULL else RICH[::4], ids=lambda c: c.name)
def test_what_is_remembered_changes_nothing(case, stored):
    dtype, options = STORED[stored]

    @given(setup=salt, events=script(TRAINING + OWN))
    @few
    def run(setup, events):
        made = [make(case, setup, dtype, keep_prob=0.5, seed=3, backend=backend, **options)
                for backend in ("native", "reference", "native")]  # fmt: skip
        for event, seed in [(new_gradients, setup), *events]:
            made = [applied(event, opt, seed) for opt in made]
            forget(made[2])
            for opt in made:
                opt.step()
                vars(opt).pop("grad_scale", None), vars(opt).pop("found_inf", None)
            first, *others = [everything(opt) + told(opt) for opt in made]
            for other in others:
                assert_same_bits(other, first)

    run()


@pytest.mark.parametrize("case", WITH_TWIN if FULL else WITH_TWIN[::2], ids=lambda c: c.name)
def test_events_do_what_they_do_to_torchs_own(case):
    tolerance = TOLERANCE[torch.float32]

    @given(setup=salt, events=script(TRAINING))
    @few
    def run(setup, events):
        made = [make(case, setup, twin=twin) for twin in (False, True)]
        for event, seed in [(new_gradients, setup), *events]:
            made = [applied(event, opt, seed) for opt in made]
            for opt in made:
                opt.step()
            mine, theirs = map(params_of, made)
            torch.testing.assert_close(mine, theirs, rtol=tolerance.rtol, atol=tolerance.atol)

    run()
