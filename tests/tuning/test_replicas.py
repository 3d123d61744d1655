"""LossGrad in two processes: refused without all_reduce, one step size for all with it."""

import pytest
import torch
from torch import distributed

import lrtricks_fused as lrt

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")


def make(**options):
    x = torch.ones(3, requires_grad=True)
    return x, lrt.LossGrad(lrt.SGD([x], lr=0.3), c=2.0, **options)


def average(losses):
    distributed.all_reduce(losses)
    losses /= distributed.get_world_size()


def gathered(tensor):
    """Both ranks' values."""
    parts = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(parts, tensor.detach())
    return torch.stack(parts).tolist()


def replica(rank, path):
    """One of two; an assertion that fails here fails the test."""
    early = make()[1]  # before there is a group
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    try:
        with pytest.raises(ValueError, match="Invalid all_reduce=None: the step sizes of 2 processes"):
            make()
        x = early.param_groups[0]["params"][0]
        with pytest.raises(ValueError, match="Invalid all_reduce=None"):
            early.step(lambda: (x * x).sum())
        assert torch.equal(x, torch.ones(3)) and x.grad is None and early.param_groups[0]["lr"] == 0.3

        curvature = (0.1, 30.0)[rank]  # alone, one step size grows and the other shrinks
        rates, places = {}, {}
        for name, all_reduce in (("alone", False), ("together", average)):
            x, tuned = make(all_reduce=all_reduce)
            if all_reduce:
                x.register_hook(lambda grad: (average(grad), grad)[1])  # as DistributedDataParallel does
            for _ in range(3):
                tuned.step(lambda x=x: curvature * (x * x).sum())
            rates[name] = gathered(tuned.param_groups[0]["lr"])
            places[name] = gathered(x)
        assert rates["alone"][0] > 0.3 > rates["alone"][1]
        assert rates["together"][0] == rates["together"][1] < 0.3
        assert places["together"][0] == places["together"][1]
    finally:
        distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(replica, (str(tmp_path / "rendezvous"),), nprocs=2)


def test_a_group_of_one_needs_no_all_reduce(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'one'}", rank=0, world_size=1)
    try:
        x, tuned = make()
        tuned.step(lambda: (x * x).sum())
        assert tuned.param_groups[0]["lr"] == 0.6
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("all_reduce", [True, 0, "mean"])
def test_all_reduce_is_a_function_or_false(all_reduce):
    with pytest.raises(TypeError, match=f"Invalid all_reduce={all_reduce!r}"):
        make(all_reduce=all_reduce)
