"""torch.compile of a step, without a break of the graph: the same bits as eagerly, from the first step on."""

import pytest
import torch
from helpers import assert_same_bits, everything, leaves, random_grads
from inventory import RICH


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")  # functools.cache, of what does not change
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_a_compiled_step_takes_the_same_bits(case):
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        params = leaves((6, 50), (700,), (0,))
        optimizer = case.make(params, keep_prob=0.5, backend="native")
        step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
        for number in range(3):
            random_grads(params, number)
            if number == 0:  # gets its first step in the second
                params[1].grad = None
            step()
        results.append(everything(optimizer))
    assert_same_bits(*results)
