"""KeepProb and GradientWeight where a framework wants a scheduler, LossGrad where it looks for an optimizer's parts."""

import copy
import inspect
import io
import pickle
from typing import Protocol, runtime_checkable

import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves
from torch.optim import lr_scheduler as torchs

import lrtricks_fused as lrt

both = pytest.mark.parametrize("cls", [lrt.KeepProb, lrt.GradientWeight])


@runtime_checkable
class Scheduler(Protocol):
    """What Lightning's protocol has, and what accelerate's wrapper uses."""

    optimizer: torch.optim.Optimizer
    base_lrs: list[float]
    last_epoch: int
    _step_count: int

    def step(self, epoch=None): ...
    def state_dict(self): ...
    def load_state_dict(self, state_dict): ...
    def get_last_lr(self): ...
    def get_lr(self): ...


@runtime_checkable
class Optimizable(Protocol):
    """What Lightning's protocol of an optimizer has."""

    param_groups: list
    defaults: dict
    state: dict

    def step(self, closure=None): ...
    def state_dict(self): ...
    def load_state_dict(self, state_dict): ...


def make(cls, lr=0.1, **options):
    optimizer = lrt.SGD(leaves((5,)), lr=lr, **options)
    return optimizer, cls(optimizer, lrt.linear(0.0, 1.0), 4)


# -- schedules of groups as schedulers ---------------------------------------------------------------------------------


@both
def test_it_is_a_scheduler(cls):
    optimizer, schedule = make(cls)
    assert isinstance(schedule, torchs.LRScheduler) and isinstance(schedule, Scheduler)
    for name, signature in ((n, inspect.signature(getattr(torchs.LRScheduler, n))) for n in ("step", "state_dict")):
        assert list(inspect.signature(getattr(cls, name)).parameters) == list(signature.parameters)
    assert schedule.optimizer is optimizer and (schedule.last_epoch, schedule._step_count) == (0, 1)
    schedule.step()
    assert (schedule.last_epoch, schedule._step_count) == (1, 2)


@both
@pytest.mark.parametrize("tensor", [False, True])
def test_learning_rates_are_reported_and_never_written(cls, tensor):
    lr = torch.tensor(0.1) if tensor else 0.1
    optimizer, schedule = make(cls, lr)
    plain = lrt.SGD(leaves((5,)), lr=0.1)
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()
    assert schedule.get_last_lr() == schedule.get_lr() == schedule.base_lrs == [lr]
    for value in (0.2, 0.3):
        if tensor:
            lr.fill_(value)
        else:
            optimizer.param_groups[0]["lr"] = value
        before = copy.deepcopy(optimizer.param_groups[0]["lr"])
        schedule.step()
        schedule.load_state_dict(schedule.state_dict())
        assert optimizer.param_groups[0]["lr"] == before and schedule.get_last_lr() == [before]
        assert not tensor or optimizer.param_groups[0]["lr"] is lr
    if tensor:
        schedule.get_last_lr()[0].fill_(9.0)  # a copy, as torch's
        assert lr == before


@both
def test_step_to_an_epoch(cls):
    optimizer, schedule = make(cls)
    for epoch, value in ((3, 0.75), (1, 0.25), (9, 1.0), (0, 0.0)):
        schedule.step(epoch)
        assert schedule.last_step == epoch and optimizer.param_groups[0][cls.name] == value
    schedule.step(epoch=2)
    schedule.step()
    assert optimizer.param_groups[0][cls.name] == 0.75
    before = Snapshot(optimizer)
    for epoch, error in ((-1, ValueError), (1.5, TypeError), (torch.tensor(0.3), TypeError), (True, TypeError)):
        with pytest.raises(error, match="Invalid epoch="):  # a metric is no epoch
            schedule.step(epoch)
        assert schedule.state_dict() == {"last_step": 3, "total_steps": 4}
    before.assert_unchanged()


@both
def test_in_a_chain_with_a_learning_rate_scheduler(cls):
    def chained():
        optimizer, schedule = make(cls)
        decay = lrt.PolynomialKDecayLR(optimizer, 4, k=1.0)
        return optimizer, torchs.ChainedScheduler([decay, schedule], optimizer=optimizer)

    optimizer, chain = chained()
    for t in range(1, 4):
        optimizer.step()
        chain.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - t / 4))
        assert optimizer.param_groups[0][cls.name] == t / 4
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), chain.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = chained()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for o, c in ((optimizer, chain), (other, again)):
        o.step()
        c.step()
    assert other.param_groups[0][cls.name] == 1.0
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.0


@both
def test_in_a_sequence(cls):
    optimizer = lrt.SGD([{"params": leaves((5,)), "initial_lr": 0.1}], lr=0.1)
    schedulers = [cls(optimizer, lrt.constant(0.5), 1), cls(optimizer, lrt.linear(0.0, 1.0), 4)]
    sequence = torchs.SequentialLR(optimizer, schedulers, milestones=[2])
    seen = [optimizer.param_groups[0][cls.name]]
    for _ in range(4):
        optimizer.step()
        sequence.step()
        seen.append(optimizer.param_groups[0][cls.name])
    assert seen == [0.5, 0.5, 0.0, 0.25, 0.5] and optimizer.param_groups[0]["lr"] == 0.1


@both
def test_a_groups_tensor_that_could_not_hold_the_value_is_refused_first(cls):
    values = [torch.tensor(1.0), torch.tensor(1)]
    groups = [{"params": leaves((5,)), cls.name: value} for value in values]
    optimizer = lrt.SGD(groups, lr=0.1)
    with pytest.raises(TypeError, match=rf"Invalid {cls.name} of dtype torch\.int64"):
        cls(optimizer, lrt.constant(0.5), 4)
    assert values == [1, 1] and optimizer.defaults[cls.name] == 1.0
    optimizer.param_groups[1][cls.name] = 1.0
    schedule = cls(optimizer, lrt.linear(0.0, 1.0), 4)
    optimizer.param_groups[1][cls.name] = torch.tensor(0)
    with pytest.raises(TypeError, match=rf"Invalid {cls.name} of dtype torch\.int64"):
        schedule.step()
    assert (values[0], schedule.last_step, schedule.get_last_value()) == (0, 0, 0.0)


@both
def test_on_a_lossgrad(cls):
    x = torch.ones(3, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.125), c=2.0)
    schedule = cls(tuned, lrt.linear(1.0, 0.5), 4)
    schedule.step()
    tuned.step(lambda: (x * x).sum())
    assert tuned.param_groups[0][cls.name] == 0.875 and tuned.param_groups[0]["lr"] == 0.25


@both
def test_lightning_trains_with_it(cls, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, index):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            optimizer = lrt.SGD(self.parameters(), lr=0.1)
            self.schedule = cls(optimizer, lrt.linear(0.0, 1.0), 4)
            return [optimizer], [{"scheduler": self.schedule, "interval": "step"}]

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(6, 4)), batch_size=2)
    quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for epochs, path in ((1, None), (2, tmp_path / "a.ckpt")):
        model = Model()
        trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        trainer.fit(model, data, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        assert model.schedule.last_step == 3 * epochs
        assert model.optimizers().param_groups[0][cls.name] == min(0.75 * epochs, 1.0)


@both
def test_accelerate_steps_it(cls):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer, schedule = make(cls)
    wrapped, scheduler = accelerator.prepare(optimizer, schedule)
    assert type(scheduler).__name__ == "AcceleratedScheduler"
    wrapped.step()
    scheduler.step()
    assert optimizer.param_groups[0][cls.name] == 0.25 and scheduler.get_last_lr() == [0.1]


# -- LossGrad ----------------------------------------------------------------------------------------------------------


def tuned_on(x, **options):
    return lrt.LossGrad(lrt.SGD([x], lr=0.0625, momentum=0.5), c=1.5, **options)


def loss_of(x):
    return lambda: (x * x * x * x).sum()


def test_lossgrad_has_an_optimizers_parts():
    x = torch.ones(3, requires_grad=True)
    tuned = tuned_on(x)
    tuned.step(loss_of(x))
    assert isinstance(tuned, Optimizable) and not isinstance(tuned, torch.optim.Optimizer)
    assert tuned.state is tuned.optimizer.state and "momentum_buffer" in tuned.state[x]
    assert tuned.defaults is tuned.optimizer.defaults
    assert repr(tuned).startswith("LossGrad(c=1.5, optimizer=SGD (\n")


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("stepped", [0, 2])
def test_a_copy_of_a_lossgrad_goes_its_own_way(copier, stepped):
    x = torch.ones(3, requires_grad=True)
    tuned = tuned_on(x, reject_nonfinite=True, model=torch.nn.BatchNorm1d(3))
    for _ in range(stepped):
        tuned.step(loss_of(x))
    twin = copier(tuned)
    assert not twin._backup and not twin._slopes
    y = twin.param_groups[0]["params"][0]
    before = Snapshot(tuned.optimizer)
    for _ in range(3):
        twin.step(loss_of(y))
    before.assert_unchanged()
    for _ in range(3):
        tuned.step(loss_of(x))
    assert_same_bits(everything(tuned.optimizer), everything(twin.optimizer))
    assert_same_bits([tuned.ratio, tuned.param_groups[0]["lr"]], [twin.ratio, twin.param_groups[0]["lr"]])


def test_a_lossgrad_through_a_file():
    x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
    tuned, other = tuned_on(x), lrt.LossGrad(lrt.SGD([y], lr=9.0))
    tuned.step(loss_of(x))
    file = io.BytesIO()
    torch.save([x, tuned.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        y.copy_(saved[0])
    other.load_state_dict(saved[1])
    for z, opt in ((x, tuned), (y, other)):
        opt.step(loss_of(z))
    assert_same_bits([*everything(tuned.optimizer), tuned.ratio], [*everything(other.optimizer), other.ratio])
    assert other.c == 1.5 and other.param_groups[0]["lr"] == tuned.param_groups[0]["lr"]


RATIO = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize(("changed", "error", "text"), [
    ({"c": 1.0}, ValueError, r"Invalid c=1\.0"),
    ({"c": "2"}, TypeError, "Invalid c='2'"),
    ({"ratio": None}, TypeError, "Invalid ratio=None"),
    ({"ratio": RATIO.float()}, TypeError, "Invalid ratio="),
    ({"ratio": RATIO.expand(2)}, TypeError, "Invalid ratio="),
    ({"optimizer": {"state": {}, "param_groups": []}}, ValueError, "different number of parameter groups"),
])  # fmt: skip
def test_a_lossgrads_bad_checkpoint_changes_nothing(changed, error, text):
    x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
    tuned, other = tuned_on(x), lrt.LossGrad(lrt.SGD([y], lr=9.0), c=4.0)
    tuned.step(loss_of(x))
    before, ratio = Snapshot(other.optimizer), other.ratio
    with pytest.raises(error, match=text):
        other.load_state_dict({**tuned.state_dict(), **changed})
    for name in ("c", "ratio", "optimizer"):
        with pytest.raises(KeyError, match=name):
            other.load_state_dict({k: v for k, v in tuned.state_dict().items() if k != name})
    before.assert_unchanged()
    assert other.c == 4.0 and other.ratio is ratio
