"""What rounding to 16 bits costs on MNIST-1D, and what saves it: ``python -m examples.sixteen_bits``.

Adam with states in fp32 or bf16, and with bf16 parameters: rounded to nearest, stochastically, or halves of fp32
masters. Before, what becomes of a second moment with beta2 = 0.999 once gradients are small.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lrtricks_fused import Adam, PolynomialKDecayLR

from .common import TRAIN, Arm, Run, Runs, Trainer, run_all
from .figures import BLACK, BLUE, GREY, ORANGE, plt
from .reporting import Report, accuracy_difference, figure, loss_difference, parse, present, signed, spread
from .study import CLEAR, Difference, final_accuracies, outcome

LRS, LR = (1e-3, 3e-3, 1e-2, 3e-2), 1e-2  # chosen by hand, by the test accuracy of fp32 parameters and states
RATES = (LR, LR / 10)  # of small steps rounding loses more
END = 0.01  # final learning rate as a share of the first
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Stored:
    """How parameters and states are stored, and the bytes of a parameter and its states."""

    group: str
    name: str
    bytes: int
    options: dict[str, Any]
    color: str
    dtype: torch.dtype = torch.float32


NEAREST, STOCHASTIC = {"state_dtype": BF16}, {"state_dtype": BF16, "state_rounding": "stochastic"}
STATES = (
    Stored("fp32 parameters", "fp32 states", 12, {}, BLACK),
    Stored("fp32 parameters", "bf16 states, nearest", 8, NEAREST, ORANGE),
    Stored("fp32 parameters", "bf16 states, stochastic", 8, STOCHASTIC, BLUE),
)
PARAMETERS = (
    Stored("bf16 parameters", "split masters", 12, {"master": "split"}, BLACK, BF16),
    Stored("bf16 parameters", "nearest", 10, {}, ORANGE, BF16),
    Stored("bf16 parameters", "stochastic", 10, {"rounding": "stochastic"}, BLUE, BF16),
    Stored("bf16 parameters", "stochastic, bf16 states", 6, {"rounding": "stochastic", **STOCHASTIC}, GREY, BF16),
)
WAYS = [(stored, lr) for lr in RATES for stored in (*STATES, *PARAMETERS)]

# Of the second moment: elements, steps, and from which step on the gradient has another standard deviation.
ELEMENTS, STEPS, FALL, LOUD, QUIET = 4096, 4000, 1000, 1.0, 0.1


def second_moments() -> dict[str, list[float]]:
    """The mean of exp_avg_sq after every step of normal gradients that fall silent, by how it is stored."""
    curves = {}
    for stored in STATES:
        param = torch.zeros(ELEMENTS, requires_grad=True)
        optimizer = Adam([param], lr=0.0, betas=(0.9, 0.999), **stored.options)
        generator = torch.Generator().manual_seed(0)
        means = []
        for step in range(STEPS):
            param.grad = torch.randn(ELEMENTS, generator=generator) * (LOUD if step < FALL else QUIET)
            optimizer.step()
            means.append(float(optimizer.state[param]["exp_avg_sq"].double().mean()))
        curves[stored.name] = means
    return curves


def arm_name(stored: Stored, lr: float) -> str:
    """What the arm of a way to store is called at a learning rate."""
    return f"{stored.group}, lr {lr:g}: {stored.name}"


def arm(stored: Stored, lr: float) -> Arm:
    """Adam whose learning rate falls linearly."""

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> Trainer:
        optimizer = Adam(params, lr=lr, seed=seed, **stored.options)
        return Trainer(optimizer, PolynomialKDecayLR(optimizer, steps, k=1.0, min_lr=END * lr))

    return Arm(arm_name(stored, lr), make, dtype=stored.dtype)


def moment_verdict(curves: dict[str, list[float]]) -> str:
    """Where the second moments end."""
    ends = ", ".join(f"{name} {means[-1]:.4f}" for name, means in curves.items())
    before = curves[STATES[0].name][FALL - 1]
    return (
        f"Second moment, mean of {ELEMENTS:,} elements: {before:.2f} with fp32 states when the gradients' standard "
        f"deviation falls from {LOUD:g} to {QUIET:g}, and {STEPS - FALL:,} steps later {ends}."
    )


def compared(runs: Runs, better: str, worse: str) -> str:
    """What comes of the claims that one arm reaches a lower training loss, and a higher accuracy, than another."""
    loss, accuracy = (of(runs, better, worse) for of in (loss_difference, accuracy_difference))
    percent = Difference(100 * loss.mean, 100 * loss.standard_error)  # nearly, of the loss
    return (
        f"{better} against {worse.partition(': ')[2]}: a lower training loss {outcome([loss])} "
        f"({signed(percent, 'in 100 ln(loss)')}), a higher test accuracy {outcome([accuracy])} ({signed(accuracy)})."
    )


def verdicts(runs: Runs) -> list[str]:
    """All that matters against rounding to nearest, and the control, the first of a group, against the others."""
    sentences = [f"Mean ± standard error of paired differences; a claim shows beyond {CLEAR} of these."]
    for lr in RATES:
        for control, nearest, *others in (STATES, PARAMETERS):
            pairs = [(control, nearest), (others[0], nearest), *((control, other) for other in others)]
            sentences += [compared(runs, *(arm_name(one, lr) for one in pair)) for pair in pairs]
    return sentences


def tabulate(runs: Runs, curves: dict[str, list[float]], seeds: int, epochs: int) -> Report:
    """Every way to store, and what is claimed of it."""
    title = f"Storage of Adam, MNIST-1D, lr falling to {END:.0%}, {epochs} epochs, {seeds} seeds"
    header = ("storage", "bytes", "test accuracy (%), mean ± std", "final training loss, mean ± std")
    report = Report(title, header)
    for stored, lr in WAYS:
        own = runs[arm_name(stored, lr)]
        losses = spread([run.train_loss[-1] for run in own], 4)
        report.rows.append((arm_name(stored, lr), str(stored.bytes), spread(final_accuracies(own)), losses))
    report.verdicts = [moment_verdict(curves), *verdicts(runs)]
    return report


def width_of(color: str) -> float:
    """Of a line: the controls are seen below what coincides with them."""
    return 3.6 if color == BLACK else 1.5


def _losses(axis: plt.Axes, own: list[Run], label: str, color: str, line: str) -> None:
    """The geometric mean over seeds, and its standard error."""
    logs = [[math.log(max(run.train_loss[epoch], 1e-12)) for run in own] for epoch in range(len(own[0].train_loss))]
    centres, errors = [mean(values) for values in logs], [stdev(values) / len(values) ** 0.5 for values in logs]
    epochs = range(1, len(logs) + 1)
    low, high = ([math.exp(c + sign * e) for c, e in zip(centres, errors, strict=True)] for sign in (-1, 1))
    axis.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    axis.plot(epochs, [math.exp(c) for c in centres], color=color, linestyle=line, label=label,
              linewidth=width_of(color))  # fmt: skip


def draw(runs: Runs, curves: dict[str, list[float]], subtitle: str, path: Path) -> None:
    """The second moments, and the training losses of both groups."""
    with figure(path, "Adam stored in 16 bits", subtitle, 3, (9.6, 4.2)) as axes:
        for stored in STATES:
            axes[0].plot(range(1, STEPS + 1), curves[stored.name], color=stored.color, label=stored.name,
                         linewidth=width_of(stored.color))  # fmt: skip
        axes[0].set(yscale="log", xlabel="step", ylabel="mean of the second moment", title="gradients fall silent")
        axes[1].sharey(axes[2])
        for axis, group in zip(axes[1:], (STATES, PARAMETERS), strict=True):
            for stored in group:
                for lr, line in zip(RATES, ("-", ":"), strict=True):
                    label = stored.name if lr == LR else ""
                    _losses(axis, runs[arm_name(stored, lr)], label, stored.color, line)
            axis.set(yscale="log", xlabel="epoch", title=group[0].group)
        axes[1].set_ylabel(f"training loss (nats); dotted: lr {RATES[1]:g}")
        for axis in axes:
            axis.legend(frameon=False, fontsize=8)


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train all ways to store, draw and tabulate."""
    curves = second_moments()
    runs = run_all([arm(*way) for way in WAYS], range(seeds), epochs, on_run)
    subtitle = (
        f"left: beta2 = 0.999, {ELEMENTS:,} elements; others: MNIST-1D, {TRAIN:,} training signals, "
        f"geometric mean of {seeds} seeds ± standard error"
    )
    draw(runs, curves, subtitle, folder / "sixteen_bits.png")
    return tabulate(runs, curves, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.sixteen_bits", __doc__, seeds=32, epochs=60, quick=4, minutes="about 2 minutes")
    present(arguments, study, total=len(WAYS))


if __name__ == "__main__":
    main()
