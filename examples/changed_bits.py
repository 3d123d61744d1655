"""How much of a bf16 model a step changes, and what sending that takes: ``python -m examples.changed_bits``.

A small perceptron for handwritten digits is trained in bfloat16 with split masters, first for some epochs, and then
further at several learning rates, with and without a mask. After every step a receiver is brought up to date by
``pop_changes`` and ``apply_changes``. Sent are a bit for each element and two bytes for each that has changed, against
two bytes for each.
"""

import argparse
import copy
from dataclasses import dataclass

import torch
from torch import nn

from lrtricks_fused import Adam, apply_changes

from .command import at_least
from .digits import BATCH, TRAIN_IMAGES, load_split, make_model

LRS, KEEP_PROBS = (1e-3, 1e-4, 1e-5, 1e-6), (1.0, 0.5, 0.1)
WARM_UP_EPOCHS, EPOCHS = 10, 2


@dataclass(frozen=True)
class Sent:
    """Of the elements those that a step changes, and of the model's bytes those that are sent, on average."""

    changed: float
    sent: float
    equal: bool  # whether the receiver had the model's bits after every step


def run(model: nn.Module, lr: float, keep_prob: float, epochs: int) -> Sent:
    """Train the model in place; a receiver follows it."""
    split, receiver = load_split(0), copy.deepcopy(model)
    optimizer = Adam(model.named_parameters(), lr=lr, keep_prob=keep_prob, master="split", track_changes=True)
    order, images = torch.Generator().manual_seed(0), split.train_images.bfloat16()
    numel, steps, changed, sent, equal = sum(param.numel() for param in model.parameters()), 0, 0, 0, True
    for _ in range(epochs):
        for batch in torch.randperm(TRAIN_IMAGES, generator=order).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), split.train_labels[batch]).backward()
            optimizer.step()
            changes = optimizer.pop_changes()
            apply_changes(receiver, changes)
            equal &= all(map(torch.equal, model.parameters(), receiver.parameters()))
            steps += 1
            changed += sum(change.count for change in changes.values())
            sent += sum(change.bitmap.nbytes + change.values.nbytes for change in changes.values())
    return Sent(changed / numel / steps, sent / (2 * numel) / steps, equal)


def main() -> None:
    """Prints a line for each learning rate and keep probability."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--warm-up", type=at_least(0), default=WARM_UP_EPOCHS, metavar="EPOCHS", help="at the first rate"
    )
    parser.add_argument("--epochs", type=at_least(1), default=EPOCHS, help="at each rate")
    given = parser.parse_args()
    torch.set_num_threads(1)  # these layers are too small to share
    trained = make_model(0).bfloat16()
    if given.warm_up:
        run(trained, LRS[0], 1.0, given.warm_up)
    print("     lr   keep   changed      sent   receiver")
    for lr in LRS:
        for keep_prob in KEEP_PROBS:
            of = run(copy.deepcopy(trained), lr, keep_prob, given.epochs)
            same = "equal" if of.equal else "DIFFERENT"
            print(f"{lr:7g}   {keep_prob:4g}   {of.changed:7.2%}   {of.sent:7.2%}   {same}")


if __name__ == "__main__":
    main()
