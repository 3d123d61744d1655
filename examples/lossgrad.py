"""LOSSGRAD on MNIST-1D from step sizes five orders apart, against tuned SGD: ``python -m examples.lossgrad``.

The step size must forget where it started. Whether it is then any good is asked of a tuned constant learning rate (of
a small grid, by examples.tune: the smallest within a standard error of the best), which could refute it, and of WNGrad
and L4, the paper's baselines. A float32 loss does not change by a step of 1e-6, and would say that it was too long were
that not known of it; a run in float64, where it changes, stands beside.
"""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from lrtricks_fused import SGD, L4Mom, LossGrad, WNGrad

from .common import TRAIN, Arm, Runs, Trainer, run_all
from .figures import BLACK, BLUE, GREY, plt
from .reporting import Report, accuracy_and_loss, claim, figure, parse, present
from .study import ERRORS, Difference, final_accuracies

STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TUNABLE = STARTS[1:]  # of the sum over starts: in float32 the loss does not resolve a step of 1e-6
GRID, TUNED_LR = (0.03, 0.1, 0.3, 1.0, 3.0), 0.3
KEEP_PROB = 0.5
FORGOTTEN = 0.05  # share of log h0 that may be left at the end
SGD_NAME, WNGRAD, L4 = "tuned SGD", "WNGrad", "L4Mom"
MASKED = f"LOSSGRAD: keep {KEEP_PROB:g}, h0 = 1e-4"
DOUBLE = "LOSSGRAD: float64, h0 = 1e-6"


def arm_name(h0: float) -> str:
    """What LOSSGRAD from h0 is called."""
    return f"LOSSGRAD: h0 = 1e{math.log10(h0):.0f}"


def lossgrad(h0: float, keep_prob: float = 1.0, name: str | None = None, dtype: torch.dtype = torch.float32) -> Arm:
    """LOSSGRAD around plain SGD, which starts with h0; observes h."""

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> LossGrad:
        return LossGrad(SGD(params, lr=h0, keep_prob=keep_prob, seed=seed))

    return Arm(
        name or arm_name(h0),
        make,
        observe=lambda trainer: float(trainer.param_groups[0]["lr"]),
        dtype=dtype,
        together=False,
    )


def sgd(lr: float = TUNED_LR) -> Arm:
    """Plain SGD at a constant rate."""
    return Arm(SGD_NAME, lambda params, steps, seed: Trainer(SGD(params, lr=lr, seed=seed)))


def arms() -> list[Arm]:
    """All that are compared."""
    return [
        *(lossgrad(h0) for h0 in STARTS),
        lossgrad(STARTS[0], name=DOUBLE, dtype=torch.float64),
        lossgrad(1e-4, KEEP_PROB, MASKED),
        sgd(),
        Arm(WNGRAD, lambda params, steps, seed: Trainer(WNGrad(params, lr=1.0)), together=False),
        Arm(L4, lambda params, steps, seed: Trainer(L4Mom(params)), together=False),
    ]


def typical(trace: list[float]) -> float:
    """Geometric mean of h over the last quarter of the steps."""
    last = trace[-max(len(trace) // 4, 1) :]
    return math.exp(mean(math.log(h) for h in last))


def remembered(finals: dict[float, list[float]]) -> Difference:
    """Slope of the final log h over log h0, for each seed: 1 where nothing is forgotten, 0 where all is.

    Args:
        finals: h0 -> final h of each seed.
    """
    x = [math.log(h0) for h0 in finals]
    center = mean(x)
    weights = [(value - center) / sum((other - center) ** 2 for other in x) for value in x]
    slopes = [
        sum(weight * math.log(h) for weight, h in zip(weights, of_seed, strict=True))
        for of_seed in zip(*finals.values(), strict=True)
    ]
    return Difference.of(slopes, [0.0] * len(slopes))


def merged_after(trace: list[float], reference: list[float]) -> int:
    """Steps after which h stays within a factor of 2 of the reference's for good."""
    apart = [i + 1 for i, (a, b) in enumerate(zip(trace, reference, strict=True)) if not 0.5 < a / b < 2]
    return max(apart, default=0)


def forgets(runs: Runs, names: dict[float, str]) -> str:
    """Whether the final step size of the arms (h0 -> name) forgets h0."""
    slope = remembered({h0: [typical(run.trace) for run in runs[name]] for h0, name in names.items()})
    shows = abs(slope.mean) + ERRORS * slope.standard_error < FORGOTTEN
    return (
        f"{slope.mean:+.3f} ± {slope.standard_error:.3f} (mean ± standard error: it "
        f"{'shows' if shows else 'does not show'})"
    )


def verdicts(runs: Runs) -> list[str]:
    """Whether h forgets h0, whether LOSSGRAD beats the tuned constant, and what a mask does to h."""
    single = {h0: arm_name(h0) for h0 in STARTS}
    within = {h0: arm_name(h0) for h0 in TUNABLE}
    double = {STARTS[0]: DOUBLE, **within}
    forgotten = (
        '"The step size forgets h0", d log h / d log h0 over the last quarter of the steps (0: forgotten, 1: kept; it '
        f"shows if {ERRORS} standard errors around it lie within {FORGOTTEN}): from 1e-6 on {forgets(runs, single)}; "
        f"from 1e-5 on {forgets(runs, within)}; from 1e-6 on, with that one in float64, {forgets(runs, double)}."
    )
    # For each seed the mean over these h0, so that no h0 is picked.
    ours = [mean(values) for values in zip(*(final_accuracies(runs[name]) for name in within.values()), strict=True)]
    claims = [
        claim(
            f"LOSSGRAD, averaged over h0 from 1e-5 to 1e-1, reaches a higher test accuracy than {name}",
            {name: Difference.of(ours, final_accuracies(runs[name]))},
        )
        for name in (SGD_NAME, WNGRAD, L4)
    ]
    pairs = zip(runs[MASKED], runs[arm_name(1e-4)], strict=True)
    factor = math.exp(mean(math.log(typical(a.trace) / typical(b.trace)) for a, b in pairs))
    masked = f"With keep {KEEP_PROB:g} the step size that LOSSGRAD finds is {factor:.2f} times the one without a mask."
    return [forgotten, *claims, masked]


def tabulate(runs: Runs, seeds: int, epochs: int) -> Report:
    """Accuracy, loss, and for LOSSGRAD the step size it comes to and when it has caught up with h0 = 0.1."""
    columns = ("method", "test accuracy (%), mean ± std", "final training loss", "final h",
               "steps until within 2x of h0 = 1e-1")  # fmt: skip
    title = f"LOSSGRAD (c = 1.05), MNIST-1D, tuned SGD lr {TUNED_LR:g}, {epochs} epochs, {seeds} seeds"
    report = Report(title, columns)
    reference = runs[arm_name(STARTS[-1])]
    for name, of_arm in runs.items():
        final = after = ""
        if of_arm[0].trace:
            final = f"{_geometric([[typical(run.trace)] for run in of_arm])[0]:.3g}"
            merged = [merged_after(run.trace, other.trace) for run, other in zip(of_arm, reference, strict=True)]
            after = "never" if max(merged) == len(of_arm[0].trace) else f"{mean(merged):.0f}"
        report.rows.append((name, *accuracy_and_loss(runs, name), final, "" if name == MASKED else after))
    report.verdicts = verdicts(runs)
    return report


def _geometric(curves: list[list[float]]) -> list[float]:
    return [math.exp(mean(math.log(max(value, 1e-30)) for value in values)) for values in zip(*curves, strict=True)]


def draw(runs: Runs, subtitle: str, path: Path) -> None:
    """H over steps, and the training loss over epochs."""
    with figure(path, "LOSSGRAD from six initial step sizes", subtitle, 2, (9.6, 4.2)) as (left, right):
        colors = [plt.get_cmap("plasma")(i / len(STARTS)) for i in range(len(STARTS))]
        lines: list[tuple[str, dict[str, Any]]] = [
            (arm_name(h0), {"color": color}) for h0, color in zip(STARTS, colors, strict=True)
        ]
        lines += [(DOUBLE, {"color": colors[0], "linestyle": "--"}), (MASKED, {"color": BLUE, "linestyle": ":"})]
        for name, style in lines:
            left.plot(_geometric([run.trace for run in runs[name]]), label=name.removeprefix("LOSSGRAD: "), **style)
        left.axhline(TUNED_LR, color=BLACK, linestyle="--", label=SGD_NAME)
        left.set(yscale="log", xlabel="step", ylabel="step size h (geometric mean)")
        left.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.42))
        others = ((SGD_NAME, BLACK, "--"), (WNGRAD, GREY, "-."), (L4, GREY, ":"))
        lines += [(name, {"color": color, "linestyle": style}) for name, color, style in others]
        for name, style in lines:
            losses = _geometric([run.train_loss for run in runs[name]])
            label = name if name in (SGD_NAME, WNGRAD, L4) else None
            right.plot(range(1, len(losses) + 1), losses, label=label, **style)
        right.set(yscale="log", xlabel="epoch", ylabel="training loss (geometric mean)")
        right.legend(frameon=False, fontsize=9, title="LOSSGRAD: as on the left", title_fontsize=9)


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train all arms, draw and tabulate."""
    runs = run_all(arms(), range(seeds), epochs, on_run)
    subtitle = (
        f"MNIST-1D, {TRAIN:,} training signals, plain SGD, {epochs} epochs, {seeds} seeds; tuned SGD: {TUNED_LR:g}"
    )
    draw(runs, subtitle, folder / "lossgrad.png")
    return tabulate(runs, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.lossgrad", __doc__, seeds=8, epochs=40, quick=2, minutes="about a minute")
    present(arguments, study, total=len(arms()))


if __name__ == "__main__":
    main()
