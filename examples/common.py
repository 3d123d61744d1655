"""What the studies share: MNIST-1D, a small network, one training loop, and paired runs of several arms.

An arm is one way to train. Data split, initialisation and batch order depend on the seed alone, so that arms are
compared in pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .digits import Curves, Split

SAMPLES, TRAIN, BATCH, WIDTH = 3000, 1000, 50, 64

Closure = Callable[[], Tensor]


class Trainer:
    """A torch optimizer and schedulers that advance after every batch."""

    def __init__(self, optimizer: torch.optim.Optimizer, *schedulers: Any) -> None:
        self.optimizer = optimizer
        self.schedulers = schedulers

    def step(self, closure: Closure) -> Any:
        """One step; the closure computes the loss of a batch, forward only (as LossGrad's)."""

        def evaluate() -> Any:
            self.optimizer.zero_grad()
            loss = closure()
            loss.backward()
            return loss.detach()

        loss = self.optimizer.step(evaluate)
        for scheduler in self.schedulers:
            scheduler.step()
        return loss


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: what tables and figures call it.
        make: (parameters, number of steps, seed) -> a Trainer, or anything with its ``step``.
        dropout: probability that a hidden unit is dropped.
        label_noise: share of training labels that are replaced by another class.
        observe: a number read from the trainer after every step; not for seeds that train together.
        dtype: of parameters and signals.
        together: all seeds train in one pass; not for a rule that couples parameters, as by a common step size.
    """

    name: str
    make: Callable[[list[nn.Parameter], int, int], Any]
    dropout: float = 0.0
    label_noise: float = 0.0
    observe: Callable[[Any], float] | None = None
    dtype: torch.dtype = torch.float32
    together: bool = True


@dataclass(frozen=True)
class Run(Curves):
    """Curves per epoch, and what the arm observed per step."""

    trace: list[float] = field(default_factory=list)


Runs = dict[str, list[Run]]  # arm -> one run per seed


@lru_cache(maxsize=1)
def _mnist1d(samples: int) -> tuple[Tensor, Tensor]:
    """Signals of 40 numbers and their labels, from the generator of Greydanus and Kobak (arXiv 2011.14439)."""
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples, arguments.train_split = samples, 1.0
    data = make_dataset(arguments)
    return torch.tensor(data["x"], dtype=torch.float32), torch.tensor(data["y"])


def load_split(seed: int, dtype: torch.dtype = torch.float32) -> Split:
    """A random third of the signals to train on, the others to test."""
    signals, labels = _mnist1d(SAMPLES)
    signals = signals.to(dtype)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    return Split(signals[train], labels[train], signals[test], labels[test])


def noisy(labels: Tensor, share: float, seed: int, classes: int = 10) -> Tensor:
    """Each label replaced, with probability ``share``, by one drawn uniformly from the other classes."""
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.rand(labels.shape, generator=generator) < share
    others = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    return torch.where(replaced, others, labels)


class Perceptrons(nn.Module):
    """A perceptron with two hidden layers for each seed, side by side: all train in one pass.

    Inputs are (seeds, batch, 40), outputs (seeds, batch, 10); initialised as torch.nn.Linear.
    """

    def __init__(self, seeds: Sequence[int], dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dropout = dropout
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for inputs, outputs in pairwise((40, WIDTH, WIDTH, 10)):
            for parameters, shape in ((self.weights, (inputs, outputs)), (self.biases, (1, outputs))):
                draws = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
                parameters.append(nn.Parameter(((2 * draws - 1) / inputs**0.5).to(dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                x = nn.functional.dropout(x.relu(), self.dropout, self.training)
            x = torch.baddbmm(bias, x, weight)
        return x


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch, for each seed."""
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(dim=1)


def train(arm: Arm, seeds: Sequence[int], epochs: int) -> list[Run]:
    """Train from scratch; measure after every epoch, on clean labels and without dropout."""
    splits = [load_split(seed, arm.dtype) for seed in seeds]
    data = Split(*(torch.stack([getattr(split, f.name) for split in splits]) for f in fields(Split)))
    pairs = zip(data.train_labels, seeds, strict=True)
    labels = torch.stack([noisy(of_seed, arm.label_noise, seed) for of_seed, seed in pairs])
    model, runs, row = Perceptrons(seeds, arm.dropout, arm.dtype), [Run([], []) for _ in seeds], _rows(len(seeds))
    trainer = arm.make(list(model.parameters()), epochs * -(-TRAIN // BATCH), seeds[0])
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])  # of dropout
        for _ in range(epochs):
            model.train()
            order = torch.stack([torch.randperm(TRAIN, generator=generator) for generator in orders])
            for batch in order.split(BATCH, dim=1):
                x, y = data.train_images[row, batch], labels[row, batch]
                trainer.step(lambda x=x, y=y: cross_entropies(model(x), y).sum())
                if arm.observe is not None:
                    runs[0].trace.append(arm.observe(trainer))
            _measure(model.eval(), data, runs)
    return runs


def _rows(count: int) -> Tensor:
    return torch.arange(count)[:, None]


@torch.no_grad()
def _measure(model: nn.Module, data: Split, runs: list[Run]) -> None:
    losses = cross_entropies(model(data.train_images), data.train_labels)
    accuracies = (model(data.test_images).argmax(dim=2) == data.test_labels).double().mean(dim=1)
    for run, loss, accuracy in zip(runs, losses.tolist(), accuracies.tolist(), strict=True):
        run.train_loss.append(loss)
        run.test_accuracy.append(accuracy)


def run_all(arms: Sequence[Arm], seeds: Sequence[int], epochs: int, on_run: Callable[[], object]) -> Runs:
    """Train every arm from every seed; ``on_run`` is called after each arm."""
    runs: Runs = {}
    for arm in arms:
        parts = [train(arm, part, epochs) for part in ([seeds] if arm.together else [[seed] for seed in seeds])]
        runs[arm.name] = [run for part in parts for run in part]
        on_run()
    return runs
