"""The k-decay family, trapezoid and HTD as torch learning rate schedulers. The formulas are in the shapes."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..optim.checks import check_count, plain
from .base import Schedule, between, check_not_negative
from .follow import FollowingLR
from .k_decay import cosine_k_decay, exponential_k_decay, multi_k_decay, polynomial_k_decay
from .shapes import tanh_decay, trapezoid

Lr = float | Tensor


class ShapeLR(FollowingLR):
    """Base: lr = (peak - min_lr) shape(min(t / total_steps, 1)) + min_lr for each group.

    ``peak`` is the group's lr at the start. While nobody else writes lr, that is the closed form: no rounding adds up.
    Where somebody else has changed it since, the change is taken over as one of the peak, so lr - min_lr goes on from
    there by the ratio of the shape's values, as torch's chainable schedulers do; at a value of 0, which leaves nothing
    to scale, it is not. All of it happens on the device of a tensor lr, without synchronisation.

    A group that is added later goes on from its lr in the same way. At a value of 0 its lr is its peak; after the last
    step, where no shape is left, it stays as it is.
    """

    _per_group = ("base_lrs", "_last_lr", "_peaks", "min_lrs")

    def __init__(
        self, optimizer: Optimizer, total_steps: int, min_lr: float | Sequence[float], last_epoch: int
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Invalid optimizer of type {type(optimizer).__name__}: must be a torch.optim.Optimizer")
        self.total_steps = check_count("total_steps", total_steps, 1)
        last_epoch = check_count("last_epoch", last_epoch, -1)
        given, groups = plain(min_lr), len(optimizer.param_groups)
        one_each = isinstance(given, (list, tuple))
        if one_each and len(given) != groups:
            raise ValueError(f"Invalid min_lr={given}: must be a float or {groups}, one per group")
        self.min_lrs = [check_not_negative("min_lr", value) for value in (given if one_each else [given] * groups)]
        self.min_lr = None if one_each else check_not_negative("min_lr", given)  # of groups to come
        shape = vars(self._shape())  # raises for bad arguments before the optimizer is touched
        vars(self).update({name: shape[name] for name in shape.keys() & vars(self).keys()})  # as plain numbers
        self._peaks: list[Lr] = []
        self._watch(optimizer)
        super().__init__(optimizer, last_epoch)

    def _shape(self) -> Schedule:
        """The schedule from 1 to 0. Made anew each time, from numbers that state_dict holds."""
        raise NotImplementedError

    def _factor(self, t: int) -> float:
        return self._shape()(t / self.total_steps)

    def _adopt(self, lr: Lr, place: int) -> dict[str, Any]:
        if self.min_lr is None and place >= len(self.min_lrs):
            raise ValueError(f"Invalid min_lrs={self.min_lrs}: a group was added, its min_lr must be appended")
        min_lr = self.min_lrs[place] if self.min_lr is None else self.min_lr
        if self.last_epoch >= self.total_steps:
            min_lr = float(lr)
        peak = _peak(_copy(lr), lr, math.nan, min_lr, self._factor(self.last_epoch))
        return {"base_lrs": peak, "_last_lr": _copy(lr), "_peaks": peak, "min_lrs": min_lr}

    def get_lr(self) -> list[Lr]:
        """The learning rates of step ``last_epoch``; called by ``step()``, see get_last_lr() for the present ones."""
        if not self._get_lr_called_within_step:
            warnings.warn("To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
                          UserWarning, stacklevel=2)  # fmt: skip
        if self._is_initial and self.last_epoch > 0:
            return self._get_closed_form_lr()  # resumed by the argument last_epoch
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        if self.last_epoch <= 0:
            self._peaks = list(map(_copy, lrs))
        else:
            before = self._factor(self.last_epoch - 1)
            columns = zip(self._peaks, lrs, self._last_lr, self.min_lrs, strict=True)
            self._peaks = [_peak(*column, before) for column in columns]
        return self._lrs()

    def _get_closed_form_lr(self) -> list[Lr]:
        # torch calls this for step(epoch), and SequentialLR when it hands over.
        self.base_lrs = [float(base) for base in self.base_lrs]  # reads the device once only
        self._peaks = list(self.base_lrs)
        return self._lrs()

    def _lrs(self) -> list[Lr]:
        factor = self._factor(self.last_epoch)
        return [between(peak, min_lr, factor) for peak, min_lr in zip(self._peaks, self.min_lrs, strict=True)]


def _copy(lr: Lr) -> Lr:
    return lr.detach().to(torch.float64, copy=True) if isinstance(lr, Tensor) else lr


def _peak(peak: Lr, lr: Lr, last: Lr, min_lr: float, factor: float) -> Lr:
    """The peak that explains ``lr`` at the given factor: the known one if ``lr`` is what was last written."""
    if factor == 0:
        return peak
    if not isinstance(lr, Tensor):
        return float(peak) if lr == last else min_lr + (lr - min_lr) / factor
    # A checkpoint may have been loaded to another device.
    last, peak = (value.to(lr.device) if isinstance(value, Tensor) else value for value in (last, peak))
    return torch.where(lr == last, peak, min_lr + (lr.double() - min_lr) / factor)


class PolynomialKDecayLR(ShapeLR):
    r"""Polynomial k-decay of the learning rate.

    .. math:: L(t) = (L_0 - L_e) (1 - (t/T)^k)^N + L_e

    Each ``step()`` advances t by one, whether it counts batches (as the paper does) or epochs; t > T stays at T.
    T = 1 goes from L_0 to L_e in one step. With L_0 < L_e the rate rises. With k = 1 and min_lr = 0 it is
    torch.optim.lr_scheduler.PolynomialLR. What others do to lr in between (ChainedScheduler, ReduceLROnPlateau, you) is
    kept: lr - min_lr goes on from there by the ratio of the formula's values. So does a group that is added later, with
    the lr it is given; after the last step its lr stays as it is.

    Source: Zhang and Li, arXiv 2004.05909, Eq. 11.

    Args:
        optimizer: any torch optimizer; L_0 is each group's lr, a float or a tensor (updated in place).
        total_steps: T, an int >= 1.
        k: > 0; the paper advises 1 < k <= 2.
        power: N >= 0; 0 is a constant rate.
        min_lr: L_e >= 0, absolute; a float or a list of one per group. With such a list, the one of a group that is
            added later has to be appended to the scheduler's ``min_lrs`` before the next step.
        last_epoch: -1 to start. Else the step before the one to go on with, as in torch, from the groups' initial_lr.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        k: float = 1.5,
        power: float = 1.0,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.k, self.power = k, power
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return polynomial_k_decay(k=self.k, power=self.power)


class CosineKDecayLR(ShapeLR):
    r"""Cosine k-decay of the learning rate.

    .. math:: L(t) = \tfrac12 (L_0 - L_e) (1 + \cos(\pi (t/T)^k)) + L_e

    Source: Zhang and Li, arXiv 2004.05909, Eq. 12. Arguments, edge cases and errors as :class:`PolynomialKDecayLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        k: float = 1.5,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.k = k
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return cosine_k_decay(k=self.k)


class ExponentialKDecayLR(ShapeLR):
    r"""Exponential k-decay of the learning rate.

    .. math:: L(t) = \frac{L_0 - L_e}{1 - e^{-1}} e^{-(t/T)^k} + \frac{L_e - L_0 e^{-1}}{1 - e^{-1}}

    Source: Zhang and Li, arXiv 2004.05909, Eq. 13. Arguments, edge cases and errors as :class:`PolynomialKDecayLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        k: float = 1.5,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.k = k
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return exponential_k_decay(k=self.k)


class MultiKDecayLR(ShapeLR):
    r"""Polynomial decay of the learning rate with several k.

    .. math:: L(t) = (L_0 - L_e) \Bigl(1 - \frac1n \sum_j (t/T)^{k_j}\Bigr)^N + L_e

    Source: Zhang and Li, arXiv 2004.05909, Eq. 14. Arguments, edge cases and errors as :class:`PolynomialKDecayLR`;
    ``ks`` is a list of one or more numbers > 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        ks: Sequence[float],
        power: float = 1.0,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.ks, self.power = list(ks) if isinstance(ks, tuple) else ks, power
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return multi_k_decay(ks=self.ks, power=self.power)


class TrapezoidLR(ShapeLR):
    """Learning rate from min_lr up to the group's lr over [0, rise] of the steps, held until fall, then down to min_lr.

    In a ChainedScheduler it belongs last: while the rate is 0, what the schedulers after it multiply by is lost.

    Source: Xing et al., A Walk with SGD, arXiv 1802.08770; defaults as :class:`lrtricks_fused.schedules.trapezoid`.
    optimizer, total_steps, min_lr, last_epoch, edge cases and errors as :class:`PolynomialKDecayLR`.

    Args:
        optimizer, total_steps, min_lr, last_epoch: see above; the group's lr is the height of the trapezoid.
        rise: share of the steps in [0, 1] after which the group's lr is reached.
        fall: share in [rise, 1] after which it is left.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        rise: float = 1 / 3,
        fall: float = 1 / 2,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.rise, self.fall = rise, fall
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return trapezoid(rise=self.rise, fall=self.fall)


class TanhLR(ShapeLR):
    r"""Hyperbolic-tangent decay (HTD) of the learning rate.

    .. math:: L(t) = \tfrac12 (L_0 - L_e) (1 - \tanh(\text{lower} (1 - t/T) + \text{upper}\, t/T)) + L_e

    The formula's ends are approached only: the first rate is L_0 - 6e-6 (L_0 - L_e) with the defaults.

    Source: Hsueh et al., WACV 2019; see :class:`lrtricks_fused.schedules.tanh_decay` for lower and upper. The other
    arguments, edge cases and errors as :class:`PolynomialKDecayLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        lower: float = -6.0,
        upper: float = 3.0,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.lower, self.upper = lower, upper
        super().__init__(optimizer, total_steps, min_lr, last_epoch)

    def _shape(self) -> Schedule:
        return tanh_decay(lower=self.lower, upper=self.upper)
