"""What frameworks do with an optimizer: the bits of a plain loop, also after resuming one of their checkpoints."""

import pytest
import torch
from helpers import assert_same_bits
from torch import nn
from torch.utils.data import DataLoader

from lrtricks_fused import SGD, Adam, AdamW, CosineKDecayLR, KeepProb, linear

STEPS = 8


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def inputs_of():
    return torch.randn(4 * STEPS, 8, generator=torch.Generator().manual_seed(1))


def plain(optimizer_of, clip=None, scheduler_of=None):
    """The parameters after a loop by hand."""
    model = model_of()
    optimizer = optimizer_of(model)
    scheduler = scheduler_of(optimizer) if scheduler_of else None
    for batch in inputs_of().split(4):
        model(batch).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    return params_of(model)


def params_of(model):
    return [param.detach() for param in model.parameters()]


def adam(model):
    return AdamW(model.parameters(), lr=0.01, keep_prob=0.5)


# -- Lightning ---------------------------------------------------------------------------------------------------------


def lightning_run(inputs, epochs, checkpoint=None, **options):
    lightning = pytest.importorskip("lightning")

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model_of()

        def training_step(self, batch, number):
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            optimizer = adam(self.model)
            scheduler = CosineKDecayLR(optimizer, total_steps=STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    module = Regression()
    trainer.fit(module, DataLoader(inputs, batch_size=4), ckpt_path=checkpoint, weights_only=True)
    return trainer, params_of(module.model)


def test_lightning_takes_the_steps_of_a_plain_loop(tmp_path):
    _, params = lightning_run(inputs_of(), 1, gradient_clip_val=0.05, default_root_dir=tmp_path)
    assert_same_bits(params, plain(adam, 0.05, lambda optimizer: CosineKDecayLR(optimizer, total_steps=STEPS)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_resumes_with_clipping(precision, tmp_path):
    options = dict(gradient_clip_val=0.05, precision=precision, default_root_dir=tmp_path)
    inputs = inputs_of()[: 4 * STEPS // 2]  # Lightning resumes at the end of an epoch
    _, whole = lightning_run(inputs, 2, **options)
    trainer, half = lightning_run(inputs, 1, **options)
    assert not torch.equal(half[0], whole[0])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = lightning_run(inputs, 2, tmp_path / "half.ckpt", **options)
    assert_same_bits(resumed, whole)


# -- accelerate --------------------------------------------------------------------------------------------------------


def test_accelerate_takes_the_steps_of_a_plain_loop():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = model_of()
    optimizer = adam(model)
    schedule = CosineKDecayLR(optimizer, total_steps=STEPS)
    model, optimizer, data, scheduler = accelerator.prepare(
        model, optimizer, DataLoader(inputs_of(), batch_size=4), schedule
    )
    for batch in data:
        accelerator.backward(model(batch).square().mean())
        accelerator.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    expected = plain(adam, 0.05, lambda optimizer: CosineKDecayLR(optimizer, total_steps=STEPS))
    assert_same_bits(params_of(model), expected)


# -- transformers ------------------------------------------------------------------------------------------------------


class Regression(nn.Module):
    """What the Trainer calls: keyword arguments in, a dictionary with the loss out."""

    def __init__(self):
        super().__init__()
        self.model = model_of()

    def forward(self, inputs, labels=None):
        return {"loss": (self.model(inputs) - labels).square().mean()}


def trainer_run(folder, steps, resume=None):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True,
        save_steps=STEPS // 2, max_grad_norm=0.05, lr_scheduler_type="constant", seed=3,
    )  # fmt: skip
    model = Regression()
    data = [{"inputs": row, "labels": torch.zeros(1)} for row in inputs_of()]
    options = {"lr": 0.01, "keep_prob": 0.5}
    trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=(AdamW, options))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, params_of(model)


def test_transformers_trainer_makes_ours_and_resumes(tmp_path):
    trainer, whole = trainer_run(tmp_path, STEPS)
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(inner, AdamW) and [group["keep_prob"] for group in inner.param_groups] == [0.5, 0.5]
    assert not torch.equal(whole[0], model_of()[0].weight)
    _, resumed = trainer_run(tmp_path, STEPS, str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_same_bits(resumed, whole)


# -- timm, fastai ------------------------------------------------------------------------------------------------------


def test_timms_groups_and_scheduler(no_torchvision):
    optim, scheduler = pytest.importorskip("timm.optim"), pytest.importorskip("timm.scheduler")

    def run(optimizer_class, **options):
        model = model_of()
        groups = optim.param_groups_weight_decay(model, weight_decay=0.05)
        optimizer = optimizer_class(groups, lr=0.01, **options)
        schedule = scheduler.CosineLRScheduler(optimizer, t_initial=STEPS, warmup_t=2, warmup_lr_init=1e-4)
        rates = []
        for number, batch in enumerate(inputs_of().split(4)):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step(number + 1)
            rates.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        return params_of(model), rates

    ours, rates = run(AdamW)
    torchs, expected = run(torch.optim.AdamW)
    assert rates == expected and {decay for _, decay in rates[0]} == {0.0, 0.05}
    torch.testing.assert_close(ours, torchs)  # other statement order


def test_fastais_wrapper(no_torchvision):
    optimizers = pytest.importorskip("fastai.optimizer")
    model = model_of()
    optimizer = optimizers.OptimWrapper(model.parameters(), SGD, lr=0.1, momentum=0.9, keep_prob=0.5)
    for batch in inputs_of().split(4):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = plain(lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, keep_prob=0.5))
    assert_same_bits(params_of(model), expected)
    optimizer.set_hyper("lr", 0.05)
    assert optimizer.opt.param_groups[0]["lr"] == 0.05


# -- torch's own -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["get_ema_multi_avg_fn", "get_swa_multi_avg_fn"])
def test_averages_of_the_weights(name):
    average = getattr(torch.optim.swa_utils, name)
    model = model_of()
    optimizer = Adam(model.parameters(), lr=0.01, keep_prob=0.5)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average())
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.005, anneal_epochs=3)
    keep = KeepProb(optimizer, linear(0.5, 1.0), total_steps=STEPS)
    seen = []
    for batch in inputs_of().split(4):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
        schedule.step()
        keep.step()
    expected = seen[0]
    for number, weight in enumerate(seen[1:], 1):
        share = 0.001 if "ema" in name else 1 / (number + 1)
        expected = expected + share * (weight - expected)
    torch.testing.assert_close(averaged.module[0].weight.detach(), expected)  # other statement order
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005) and optimizer.param_groups[0]["keep_prob"] == 1.0
