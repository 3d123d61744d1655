"""The variants of the rules whose machine code is read: from the records, one of each rule unless it says otherwise."""

from dataclasses import dataclass

from lrtricks_fused import optim
from lrtricks_fused.step import native  # noqa: F401 (enters the records)
from lrtricks_fused.step.rule import RULES, Rule

# Of a rule with several variants, what they are called and which optional states or flags they have.
SEVERAL: dict[str, dict[str, tuple[str, ...]]] = {
    "sgd": {"SGD momentum": ("momentum_buffer",)},
    "adam": {"Adam": (), "AMSGrad": ("max_exp_avg_sq",)},  # AdamW runs Adam's kernel
}


@dataclass(frozen=True)
class Variant:
    """A rule with its flags chosen."""

    record: Rule
    template: str  # of the C++ kernel, which is called as the optimizer's class
    flags: tuple[bool, ...]  # its optional states, then its flags
    states: int

    def cpp(self, compute_type: str) -> str:
        """The kernel's C++ type."""
        return f"lrt::{self.template}<{', '.join([compute_type, *(str(flag).lower() for flag in self.flags)])}>"


def _variants() -> dict[str, Variant]:
    classes = {name.lower(): name for name in optim.__all__}
    found = {}
    for rule in RULES.values():
        if rule.ring or rule.name not in classes:
            continue
        name = classes[rule.name]
        for label, present in SEVERAL.get(rule.name, {name: ()}).items():
            states = len(rule.required_states) + len({*present} & {*rule.optional_states})
            found[label] = Variant(rule, name, rule.variant(present), states)
    return found


VARIANTS = _variants()
