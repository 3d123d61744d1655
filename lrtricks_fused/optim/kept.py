"""The states of an optimizer between steps: the columns that calls take of them, made once and kept while they hold."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..step.host import HeldEntries, same


class Held(NamedTuple):
    """Parameters that are stepped together, and entries of their states in columns."""

    params: list[Tensor]
    columns: dict[str, list[Any]]


def held(params: list[Tensor], names: list[str], state: Mapping[Any, Any]) -> Held:
    """The parameters with the entries of these names.

    Raises:
        KeyError, TypeError: a parameter has no state, or not all of it.
    """
    states: list[Any] = [state.get(param) for param in params]
    return Held(params, {name: [own[name] for own in states] for name in names})


class KeptStates:
    """What the parameters of a step have, as long as the states hold the very same objects."""

    def __init__(self, state: Mapping[Any, Any]) -> None:
        self._entries, self._parts = HeldEntries(state), dict[Hashable, Held]()

    def __len__(self) -> int:
        """How many parts of steps it knows."""
        return len(self._parts)

    def hold(self, state: Mapping[Any, Any]) -> bool:
        """Whether these are still the states."""
        return self._entries.hold(state)

    def of(self, key: Hashable, params: list[Tensor], names: list[str], state: Mapping[Any, Any]) -> Held:
        """As :func:`held`; of the part of a step that had this key the same lists as then, if it was of these."""
        kept = self._parts.get(key)
        if kept is None or list(kept.columns) != names or not same(kept.params, params):
            kept = self._parts[key] = held(params, names, state)
        return kept

    def forget_others(self, keys: set[Hashable]) -> None:
        """Drop what parts of other keys have, and hold."""
        for key in self._parts.keys() - keys:
            del self._parts[key]
