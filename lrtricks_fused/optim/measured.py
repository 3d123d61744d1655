"""What an optimizer tells of its steps: slopes, the norm of the gradients, and metrics. See sums.py for the sums."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .stored import StoredOptimizer
from .sums import metrics


class MeasuredOptimizer(StoredOptimizer):
    """What all optimizers share of what is summed up while they step."""

    track_metrics: bool = False  # which earlier versions have not pickled
    _measured: dict[str, Tensor]
    _slopes: dict[torch.device, Tensor] | None

    def _wants_sums(self) -> bool:
        return self.track_metrics or self._slopes is not None

    def _enter(self, sums: Tensor | None) -> None:
        if sums is not None:
            self._measured["sums"] = sums

    @contextmanager
    def add_slopes_to(self, slopes: dict[torch.device, Tensor]) -> Iterator[None]:
        r"""A context in which every step adds its slope to ``slopes``: how far it goes along the gradient.

        .. math:: \langle \nabla f(p),\, p - p' \rangle

        where p' are the parameters after the step. The displacement is the real one, with momentum, weight decay and
        mask in it; the gradient is the one in ``.grad``, but for the scale of torch.amp.GradScaler. The sum over the
        parameters of a device has a fixed order. A skipped step adds nothing, and nothing waits for the device. Of
        DTensors every element is counted on one rank, and the ranks' sums are added up: equal to the slope of the whole
        parameters up to rounding.

        Args:
            slopes: 0-dim float64 tensors by their devices, changed in place; missing ones are entered, as 0.

        Raises:
            ValueError: parameters are flattened by FSDP1.
        """
        if self._flattened:
            self._check_flattened({"add_slopes_to": True})
        before = self._slopes
        self._slopes = slopes
        try:
            yield
        finally:
            self._slopes = before

    @property
    def grad_norm(self) -> Tensor | None:
        """The L2 norm of all gradients of the last step, not multiplied by torch.amp.GradScaler's scale, and unclipped.

        A 0-dim float64 on the parameters' device; nothing waits for the device until it is read, as by ``float``. None
        before the first step, and after one with ``max_norm=None``; math.inf as ``max_norm`` measures, and clips
        nothing.
        """
        return self._measured.get("grad_norm")

    def metrics(self) -> dict[str, Tensor]:
        r"""What the last step did, over all parameters that it stepped; summed up while it stepped them.

        .. math:: \frac{1}{n} \sum_i \mathrm{keep}_i,\quad \frac{1}{n} \sum_i [p'_i \ne p_i],\quad
            \lVert p' - p \rVert_2,\quad \lVert p' \rVert_2

        over n elements, p' the parameters after the step as they are stored. DTensors count once, as wholes: with
        ``track_metrics`` every step sums over their ranks.

        Returns:
            0-dim float64 tensors on the parameters' device, for which nothing waits until they are read: ``keep_rate``,
            the share of elements that the keep decisions let move; ``change_rate``, the share of those whose bits have
            changed; ``update_norm`` and ``param_norm``. All are NaN of a step that was skipped for an overflow. Empty
            before the first step.

        Raises:
            ValueError: ``track_metrics`` is False, and was at the last step.
        """
        sums = self._measured.get("sums")
        if sums is None and not self.track_metrics:
            raise ValueError("Invalid track_metrics=False: a step is summed up only where this is True")
        return {} if sums is None else metrics(sums)
