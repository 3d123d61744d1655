"""What the learning rate schedulers share: their numbers per group follow the optimizer's groups."""

from itertools import count
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..optim.checks import check_real, plain

Group = dict[str, Any]


def plain_lrs(optimizer: Optimizer) -> None:
    """Learning rates of other libraries' types become Python's, which a checkpoint can hold; tensors stay."""
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group and not isinstance(group[name], Tensor):
                group[name] = check_real(name, group[name])


def _same(known: Group, group: Group) -> bool:
    """Whether it is one group, whose dictionary Optimizer.load_state_dict has replaced, or somebody else its list."""
    return known["params"] is group["params"]


class FollowingLR(LRScheduler):
    """Base: before each step the lists in ``_per_group`` are brought in line with the optimizer's groups.

    A group that was removed takes its entries along, one that was added gets those of ``_adopt``. Entries of a
    checkpoint with more groups than there are go to the next ones added.
    """

    _per_group: tuple[str, ...] = ("base_lrs", "_last_lr")

    def _watch(self, optimizer: Optimizer) -> None:
        """Before LRScheduler's constructor."""
        plain_lrs(optimizer)
        self._groups: list[Group] = list(optimizer.param_groups)

    def _adopt(self, lr: float | Tensor, place: int) -> dict[str, Any]:
        """Entries of a new group, at ``place`` behind the known ones, whose lr is the one of the present step.

        Raises:
            ValueError: there is nothing to know one of them from.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As torch's: everything but the optimizer and its groups."""
        return {name: value for name, value in super().state_dict().items() if name != "_groups"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._groups = self.optimizer.param_groups[: len(self.base_lrs)]

    def step(self, epoch: int | None = None) -> None:
        """As torch's.

        Raises:
            ValueError: there is no min_lr for a group that was added; nothing has been changed then.
        """
        self._follow()
        super().step(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        self._follow()  # here, too: SequentialLR hands over by this
        super()._update_lr(plain(epoch))

    def _follow(self) -> None:
        groups = self.optimizer.param_groups
        plain_lrs(self.optimizer)
        if len(groups) == len(self._groups) == len(self.base_lrs) and all(map(_same, self._groups, groups)):
            return
        unclaimed = iter(range(len(self._groups), len(self.base_lrs)))
        rows, new = [], count(len(self.base_lrs))
        for group in groups:
            place = next((i for i, known in enumerate(self._groups) if _same(known, group)), None)
            place = next(unclaimed, None) if place is None else place
            if place is None:
                rows.append(self._adopt(group["lr"], next(new)))
            else:
                rows.append({name: getattr(self, name)[place] for name in self._per_group})
        vars(self).update({name: [row[name] for row in rows] for name in self._per_group})
        self._groups = list(groups)
