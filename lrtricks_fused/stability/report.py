"""The table and the figure of a comparison by the stability probe."""

from dataclasses import dataclass
from typing import Any

_DRIFTS = ("activation_drift", "weight_drift")


@dataclass
class StabilityReport:
    """What has changed between two snapshots of a StabilityProbe, which defines the metrics.

    Attributes:
        layers: one row per layer: "layer", "activation_drift", "gradient_cosine", "weight_drift"; fractions, not
            percentages.
        outputs: "prediction_churn" (a share), "logit_kl" (nats), "loss_before", "loss_after".
    """

    layers: list[dict[str, Any]]
    outputs: dict[str, float]

    def to_frame(self) -> Any:
        """``layers`` as a pandas.DataFrame; without pandas, a new list of dicts."""
        rows = [dict(row) for row in self.layers]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    def plot(self, ax: Any = None) -> Any:
        """Drifts on a logarithmic axis and the gradient cosine on a second one, over the layers.

        Args:
            ax: matplotlib axes to draw on; None makes a new figure.

        Returns:
            The axes of the drifts. Zeros, NaN and infinities leave gaps.

        Raises:
            ImportError: matplotlib is missing.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError("StabilityReport.plot needs matplotlib, which is not installed") from error
            ax = pyplot.subplots(figsize=(max(7.0, 0.5 * len(self.layers)), 4.0), layout="constrained")[1]
        places = range(len(self.layers))
        for metric, marker in zip(_DRIFTS, "os", strict=True):
            ax.plot(places, self._column(metric), marker=marker, label=metric)
        # Explicit, because a logarithmic axis without a positive value warns.
        if any(value > 0 for metric in _DRIFTS for value in self._column(metric)):
            ax.set_yscale("log", nonpositive="mask")
        right = ax.twinx()
        right.plot(places, self._column("gradient_cosine"), "^--", color="C2", label="gradient_cosine")
        right.set_ylim(-1.05, 1.05)
        ax.set_xticks(places, [row["layer"] or "(model)" for row in self.layers], rotation=45, ha="right")
        ax.set_ylabel("relative drift")
        right.set_ylabel("cosine")
        ax.set_title(
            "churn {prediction_churn:.3g}, KL {logit_kl:.3g}, loss {loss_before:.4g} to {loss_after:.4g}".format(
                **self.outputs
            )
        )
        lines = [*ax.get_lines(), *right.get_lines()]
        right.legend(lines, [line.get_label() for line in lines], loc="upper left", bbox_to_anchor=(1.15, 1.0))
        return ax

    def _column(self, metric: str) -> list[float]:
        """The metric of all layers; what cannot be drawn is NaN."""
        values = [row[metric] for row in self.layers]
        return [value if abs(value) != float("inf") else float("nan") for value in values]
