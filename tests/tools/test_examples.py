"""The studies in examples/: each runs in a tiny setting, draws its figure, and judges made-up numbers both ways."""

import io
import math

import pytest
import torch
from rich.console import Console

from examples import (
    common,
    gradient_weight,
    k_decay,
    lossgrad,
    reporting,
    robustness,
    sixteen_bits,
    stability,
    study,
    toy,
    tune,
)
from examples.study import Difference
from lrtricks_fused import SGD
from lrtricks_fused.schedules import late

STUDIES = {
    "k_decay": (k_decay, 2),
    "gradient_weight": (gradient_weight, 2),
    "lossgrad": (lossgrad, 2),
    "toy": (toy, 3),
    "stability": (stability, 1),
    "robustness": (robustness, 2),
    "sixteen_bits": (sixteen_bits, 2),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A tenth of the data, one thread."""
    monkeypatch.setattr(common, "SAMPLES", 200)
    monkeypatch.setattr(common, "TRAIN", 100)
    monkeypatch.setattr(stability, "WINDOW", 1)
    monkeypatch.setattr(sixteen_bits, "STEPS", 200)
    monkeypatch.setattr(sixteen_bits, "FALL", 100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(seeds: list[float]) -> list[common.Run]:
    """Runs with these test accuracies, in percent."""
    return [common.Run([1.0], [accuracy / 100]) for accuracy in seeds]


def rendered(report: reporting.Report, width: int) -> str:
    """The report's table on a terminal of that width."""
    console = Console(width=width, file=io.StringIO())
    console.print(report.table(width))
    return console.file.getvalue()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_reports_and_draws(name, tmp_path):
    module, length = STUDIES[name]
    calls = []
    report = module.study(2, length, tmp_path, lambda: calls.append(None))
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert report.rows and report.verdicts and calls
    assert all(len(row) == len(report.columns) for row in report.rows)
    lines = report.markdown().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(report.rows) + 2
    for width in (80, 100):
        shown = rendered(report, width)
        assert max(map(len, shown.splitlines())) <= width
        figures = [cell for row in report.rows for cell in row[1:]]
        assert all(cell in shown for cell in figures), shown
        assert all(row[0].rpartition(": ")[2] in shown for row in report.rows), shown


def test_tuning_tabulates_every_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "GRIDS", {"lossgrad, SGD": tune.GRIDS["lossgrad, SGD"]})
    calls = []
    report = tune.study(2, 1, tmp_path, lambda: calls.append(None))
    assert len(report.rows) == len(calls) == len(lossgrad.GRID)
    assert all(row[0] == f"lossgrad, SGD: {lr:g}" for row, lr in zip(report.rows, lossgrad.GRID, strict=True))


def test_tuning_takes_the_smallest_rate_within_one_standard_error():
    assert tune.choose({0.1: [40, 41, 42], 0.3: [41.6, 41.7, 41.5], 1.0: [41, 42, 43], 3.0: [10, 11, 12]}) == 0.3


def test_studies_take_rates_of_their_grids():
    assert (
        sixteen_bits.LR in sixteen_bits.LRS
        and robustness.LR in robustness.LRS
        and k_decay.PEAK in k_decay.PEAKS
        and lossgrad.TUNED_LR in lossgrad.GRID
    )
    assert all(lr in gradient_weight.GRIDS[name] for name, (_, lr, _) in gradient_weight.OPTIMIZERS.items())


def parsed(*argv: str):
    return reporting.parse(
        "examples.x", "Title: ``python -m x``.\n\nMore\nof it.\n", seeds=9, epochs=40, quick=3, minutes="2 minutes",
        argv=argv,
    )  # fmt: skip


def test_quick_replaces_defaults_only():
    assert (parsed().seeds, parsed().epochs) == (9, 40)
    assert (parsed("--quick").seeds, parsed("--quick").epochs) == (2, 3)
    assert (parsed("--quick", "--seeds", "4").seeds, parsed("--epochs", "7").epochs) == (4, 7)


def test_help_tells_defaults_and_times(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parsed("-h")
    text = " ".join(capsys.readouterr().out.split())
    for told in ("(default: 9)", "(default: 40)", "2 minutes on one core", "--quick", "More of it."):
        assert told in text


@pytest.mark.parametrize("arguments", [("--seeds", "1"), ("--epochs", "0")])
def test_too_few_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert f"Invalid {arguments[0]}={arguments[1]}: must be at least" in capsys.readouterr().err


BETTER, WORSE, UNCLEAR = Difference(1.0, 0.2), Difference(-1.0, 0.2), Difference(1.0, 0.6)


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ((BETTER,), "shows"),
        ((BETTER, BETTER), "shows"),
        ((WORSE, WORSE), "is reversed"),
        ((BETTER, WORSE), "does not show"),
        ((BETTER, UNCLEAR), "does not show"),
        ((UNCLEAR,), "does not show"),
        ((Difference(0.0, 0.0),), "does not show"),
        ((Difference(1.0, 0.3),), "is too close to call"),
        ((Difference(1.0, 0.3), BETTER), "is too close to call"),
        ((Difference(-1.0, 0.3), WORSE), "is too close to call"),
        ((Difference(1.0, 0.0),), "shows"),
    ],
)
def test_claim(differences, outcome):
    sentence = reporting.claim("It helps", {f"control {i}": d for i, d in enumerate(differences)})
    assert f'"It helps" {outcome} in this run' in sentence
    assert f"{differences[0].mean:+.2f} ± {differences[0].standard_error:.2f} points against control 0" in sentence


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((1, 1.1, 0.9), "beats both controls"),
        ((-1, -1.1, -0.9), "loses to both controls"),
        ((1, 0.2, 0.6), "is too close to both controls to call"),
        ((1, -1, 0), "does not beat both controls"),
    ],
)
def test_demo_says_what_the_mask_does(gains, words):
    controls = {control.name: run([50.0, 51.0, 49.0]) for control in (study.FULL, study.HALF)}
    masked = run([value + gain for value, gain in zip((50.0, 51.0, 49.0), gains, strict=True)])
    assert words in study.verdict("Adam", controls | {study.MASKED.name: masked})


def k_decay_runs(gain: float, control_gain: float) -> dict:
    base = [50.0, 51.0, 49.0]
    noise = [0.1, -0.1, 0.0]
    runs = {}
    for family in k_decay.FAMILIES:
        for k in k_decay.KS:
            up = gain if k > 1 else 0.0
            runs[k_decay.arm_name(family, k)] = run([b + up + n for b, n in zip(base, noise, strict=True)])
            runs[k_decay.control_name(family, k)] = run([b + control_gain for b in base])
    return runs


@pytest.mark.parametrize(("gain", "control_gain", "outcome"), [(1, 0, "shows"), (1, 1, "does not show"),
                                                               (-1, 0, "is reversed")])  # fmt: skip
def test_k_decay_has_to_beat_the_same_mean_rate(gain, control_gain, outcome):
    sentences = k_decay.verdicts(k_decay_runs(gain, control_gain))
    assert len(sentences) == len(k_decay.FAMILIES) * len(k_decay.ADVISED)
    assert all(f'" {outcome} in this run' in sentence for sentence in sentences)


@pytest.mark.parametrize("family", k_decay.FAMILIES)
def test_k_decay_control_has_the_same_mean_rate(family):
    for k in k_decay.KS[1:]:
        means = []
        for arm in k_decay.arms(0.1):
            if arm.name in (k_decay.arm_name(family, k), k_decay.control_name(family, k)):
                param = torch.nn.Parameter(torch.ones(1))
                trainer = arm.make([param], 100, 0)
                rates = []
                for _ in range(100):
                    rates.append(trainer.optimizer.param_groups[0]["lr"])
                    trainer.step(lambda param=param: param.sum())
                means.append(sum(rates) / 100)
        assert means[0] == pytest.approx(means[1], rel=5e-3)


@pytest.mark.parametrize("left", [0.0, 0.3, 1.0])
def test_slope_of_what_is_remembered(left):
    finals = {h0: [0.3 * h0**left * (1 + 0.01 * seed) for seed in range(3)] for h0 in lossgrad.STARTS}
    assert lossgrad.remembered(finals).mean == pytest.approx(left, abs=1e-12)


@pytest.mark.parametrize(("left", "outcome"), [(0.0, "it shows"), (0.3, "it does not show")])
def test_lossgrad_forgets_or_not(left, outcome):
    names = {h0: lossgrad.arm_name(h0) for h0 in lossgrad.STARTS}
    runs = {
        name: [common.Run([1.0], [0.5], [0.3 * h0**left * (1 + 0.01 * seed)] * 8) for seed in range(3)]
        for h0, name in names.items()
    }
    assert outcome in lossgrad.forgets(runs, names)


def test_merged_after_counts_the_last_step_apart():
    assert lossgrad.merged_after([1, 1, 1, 1], [1, 3, 1, 1]) == 2
    assert lossgrad.merged_after([1, 1], [1, 1]) == 0


@pytest.mark.parametrize(("closer", "words"), [("lr", "more like the same on the learning rate"),
                                               ("none", "more like no schedule")])  # fmt: skip
def test_gradient_weight_names_what_it_is_like(closer, words):
    schedule = next(iter(gradient_weight.SCHEDULES))
    names = {
        "gradient": gradient_weight.arm_name("SGD", 0.0, schedule),
        "lr": gradient_weight.arm_name("SGD", 0.0, schedule, gradient_weight.RATE),
        "none": gradient_weight.arm_name("SGD", 0.0),
    }
    runs = {name: [common.Run([1.0 if key in ("gradient", closer) else 2.0], [0.5])] for key, name in names.items()}
    assert words in gradient_weight.acts_like_rate("SGD", runs)


def test_a_schedule_on_the_rate_takes_the_weights_of_the_gradient():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([param], lr=0.1)
    for schedule in gradient_weight.SCHEDULES.values():
        weight = gradient_weight.GradientWeight(optimizer, schedule, 10)
        factor = gradient_weight.as_factor(schedule, 10)
        for step in range(12):
            assert factor(step) == weight.get_last_value()
            weight.step()
    assert late() in gradient_weight.SCHEDULES.values()


@pytest.mark.parametrize(("ratio", "outcome"), [(0.5, "shows"), (2.0, "is reversed"), (1.0, "does not show")])
def test_stability_judges_ratios(ratio, outcome):
    found = {"first": Difference(math.log(ratio), 0.1), "last": Difference(math.log(ratio), 0.1)}
    assert f'" {outcome} in this run' in stability.shows("It is steadier", found)
    assert f"first {ratio:.2f}" in stability.shows("It is steadier", found)


def test_toy_gradient_and_minima():
    points = toy.starts(0)[::37].double().requires_grad_()
    gradient = torch.autograd.grad(toy.toy(*points.T).sum(), points)[0]
    torch.testing.assert_close(torch.stack(toy.slopes(*points.detach().T), dim=1), gradient)
    low, high = (torch.tensor(bounds) for bounds in zip(*toy.BOX, strict=True))
    assert ((toy.starts(0) >= low) & (toy.starts(0) <= high)).all()
    values = [toy.toy(*torch.tensor(place)).item() for place in toy.MINIMA.values()]
    assert values == pytest.approx([0.05372, 0.27534], abs=1e-4)
    for place in toy.MINIMA.values():
        assert max(abs(s) for s in toy.slopes(*torch.tensor(place))) < 0.05


def test_noisy_labels_are_other_classes():
    labels = torch.arange(10_000) % 10
    changed = common.noisy(labels, 0.1, 0) != labels
    assert changed.double().mean().item() == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / 10_000) ** 0.5)
    assert torch.equal(common.noisy(labels, 0.0, 0), labels)
    assert (common.noisy(labels, 1.0, 0) != labels).all()


def test_seeds_that_train_together_train_as_alone():
    arm = k_decay.decayed("polynomial", 1.5, 0.1)
    together = common.train(arm, [0, 1], 2)
    alone = [common.train(arm, [seed], 2)[0] for seed in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


def test_robustness_leaves_out_what_sgd_does_not_take(monkeypatch):
    condition = robustness.Condition("unknown", {}, {"no_such_argument": True})
    monkeypatch.setattr(robustness, "CONDITIONS", [robustness.PLAIN, condition])
    assert robustness.available() == [robustness.PLAIN]
