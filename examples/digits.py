"""Handwritten digits (scikit-learn's 8x8 copy of UCI optdigits) and one training run on a part of them.

A run is a function of (seed, optimizer): data split, initialisation and batch order depend on the seed alone, so
that variants are compared in pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAIN_IMAGES = 500
BATCH = 32
WIDTH = 128

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Split:
    """Images as rows of 64 numbers in [0, 1], and their labels."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Curves:
    """After every epoch: cross-entropy on the training images, accuracy on the test images in [0, 1]."""

    train_loss: list[float]
    test_accuracy: list[float]


def load_split(seed: int) -> Split:
    """A random part of 500 images to train on, the other 1,297 to test."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    return Split(images[train], labels[train], images[test], labels[test])


def make_model(seed: int) -> nn.Module:
    """A perceptron with two hidden layers; the same weights for the same seed, the global generator untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
        )  # fmt: skip


def train(
    split: Split, seed: int, make_optimizer: MakeOptimizer, epochs: int, on_epoch: Callable[[], object]
) -> Curves:
    """Train from scratch and measure after every epoch."""
    model, criterion = make_model(seed), nn.CrossEntropyLoss()
    optimizer = make_optimizer(list(model.parameters()))
    batch_order = torch.Generator().manual_seed(seed)
    curves = Curves([], [])
    for _ in range(epochs):
        for batch in torch.randperm(TRAIN_IMAGES, generator=batch_order).split(BATCH):
            optimizer.zero_grad()
            criterion(model(split.train_images[batch]), split.train_labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            correct = model(split.test_images).argmax(dim=1) == split.test_labels
            curves.train_loss.append(criterion(model(split.train_images), split.train_labels).item())
            curves.test_accuracy.append(correct.float().mean().item())
        on_epoch()
    return curves
