"""LossGrad and the stability probe in several processes: one step size for all replicas, and sharded models."""

import pytest
import ranks
import torch
from helpers import assert_same_bits
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


def _losses_of_rejections(rank, size, sharded):
    """The losses before each step where every other trial is refused, and whether these put the parameters back."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2))
    if sharded:
        fully_shard(model[0])
        fully_shard(model)
    optimizer = lrt.SGD(model.parameters(), lr=1e-3, momentum=0.5)
    params = optimizer.param_groups[0]["params"]
    if sharded:
        with pytest.raises(ValueError, match=r"Invalid model=None with reject_nonfinite=True: .* DTensors"):
            lrt.LossGrad(optimizer, reject_nonfinite=True, all_reduce=average)
    tuned = lrt.LossGrad(optimizer, reject_nonfinite=True, all_reduce=average, model=model)
    losses, calls = [], iter(range(100))
    for step in range(6):
        before = [param.detach().clone() for param in params]

        def closure(step=step):
            loss = model(torch.ones(3, 4)).square().sum()
            return loss * torch.inf if next(calls) % 2 and step % 2 == 0 else loss

        losses.append(float(tuned.step(closure)))
        back = all(torch.equal(new, old) for new, old in zip(params, before, strict=True))
        assert back == (step % 2 == 0)
    return losses


@pytest.mark.parametrize("sharded", [False, True])
def test_a_rejected_step_is_not_seen_by_the_next(sharded):
    # What fully_shard has gathered for the trial are the rejected weights.
    (losses, _) = ranks.run(_losses_of_rejections, 2, sharded)
    assert losses[0] == losses[1] and losses[2] == losses[3] and losses[4] == losses[5]
    assert losses[1] > losses[2] > losses[4]


def _tuned_by_a_dtensor(rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    ends = []
    for is_sharded in (False, True):
        x = torch.arange(1.0, 7.0)
        x = (distribute_tensor(x, mesh, [Shard(0)]) if is_sharded else x).requires_grad_()
        tuned = lrt.LossGrad(lrt.SGD([x], lr=0.1), all_reduce=False)
        for _ in range(3):
            loss = tuned.step(lambda x=x: (x * x).sum())
            assert type(loss) is torch.Tensor
        whole = x.detach().redistribute(placements=[Replicate()]).to_local() if is_sharded else x.detach()
        ends.append([whole, torch.as_tensor(tuned.param_groups[0]["lr"])])
    assert_same_bits(ends[0], ends[1])


def test_a_loss_may_be_a_dtensor():
    ranks.run(_tuned_by_a_dtensor, 2)


def _probed(rank, size):
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Linear(4, 2)
    given = torch.ones(3, 4), torch.nn.functional.mse_loss, torch.ones(3, 2)
    probe = lrt.StabilityProbe(model, *given)
    probe.snapshot()
    fully_shard(model)
    model(given[0]).sum().backward()
    for refused in (probe.snapshot, lambda: lrt.StabilityProbe(model, *given)):
        with pytest.raises(ValueError, match="Invalid model: FSDP shards its FSDPLinear"):
            refused()
    model(given[0]).sum().backward()  # as before


def test_the_probe_refuses_sharded_models():
    ranks.run(_probed, 2)


def _clipped_on_meshes(rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "ep"))

    def stepped(*meshes):
        params = [distribute_tensor(torch.ones(4, 2), one, [Shard(0)] * one.ndim) for one in meshes]
        optimizer = lrt.SGD([param.requires_grad_() for param in params], lr=1.0, max_norm=0.5)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        return [param.to_local().tolist() for param in params], float(optimizer.grad_norm)

    with pytest.raises(ValueError, match=r"Invalid max_norm with parameters on meshes of ranks \(0, 1, 2, 3\) and"):
        stepped(mesh, mesh["dp"])
    flat = init_device_mesh("cpu", (4,))
    _, norm = stepped(mesh, flat)
    assert norm == 4.0


def test_meshes_of_different_ranks_have_no_norm():
    ranks.run(_clipped_on_meshes, 4)
