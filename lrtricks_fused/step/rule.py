"""The record of an update rule: said once, beside its reference function, and read by all that must know of rules.

The ops' schemas state the same; ``tests/kernels/test_rules.py`` holds the two against each other.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Direction = Callable[..., Tensor]
Function = TypeVar("Function", bound=Direction)


@dataclass(frozen=True)
class Rule:
    """What is to be known of a rule besides its formula; all names in the order of the rule's op.

    Attributes:
        name: names the ops ``<name>_`` and ``<name>_table_``, and the functions of the Triton kernels.
        direction: the reference, ``(grad, state, hyper, step, const) -> direction``, see reference.py.
        required_states: those that every variant has.
        optional_states: those of some variants.
        scalar_states: those of one float64 per parameter, with the value that they begin with. They advance once per
            step, where the constants of the step are made; ``direction`` then takes them as a further argument, a dict
            of floats, and replaces them in place.
        hypers: the hyper-parameters that are numbers.
        flags: those that are booleans.
        ring: whether the one state is a ring of shape (window, *shape of the parameter). The rule's one hyper-parameter
            is then ``window``, an integer.
    """

    name: str
    direction: Direction
    required_states: tuple[str, ...] = ()
    optional_states: tuple[str, ...] = ()
    scalar_states: tuple[tuple[str, float], ...] = ()
    hypers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    ring: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """The states that have the shape of the parameter, or are rings."""
        return self.required_states + self.optional_states

    @property
    def always(self) -> tuple[str, ...]:
        """The states that every variant has, those of one number per parameter last."""
        return self.required_states + tuple(name for name, _ in self.scalar_states)

    def variant(self, present: Collection[str]) -> tuple[bool, ...]:
        """Which of the optional states, and then which of the flags, are among those that a step has."""
        return tuple(name in present for name in self.optional_states + self.flags)


RULES: dict[str, Rule] = {}


def rule(
    *,
    required_states: tuple[str, ...] = (),
    optional_states: tuple[str, ...] = (),
    scalar_states: tuple[tuple[str, float], ...] = (),
    hypers: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    ring: bool = False,
) -> Callable[[Function], Function]:
    """Enters the record of the rule whose direction the decorated function is, by the function's name."""

    def enter(direction: Function) -> Function:
        RULES[direction.__name__] = Rule(
            name=direction.__name__,
            direction=direction,
            required_states=required_states,
            optional_states=optional_states,
            scalar_states=scalar_states,
            hypers=hypers,
            flags=flags,
            ring=ring,
        )
        return direction

    return enter
