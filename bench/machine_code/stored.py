"""The machine code of the CUDA kernels of tensors that are stored otherwise than they are stepped.

In a kernel's loop over tiles there is a loop over the passes of a tile for each usual choice of types, and one for all
others. That of a kind of storage is told by the bytes that each of its passes moves at least; the one for all others
moves single elements, too. In a loop a way is told by what it moves: of all through a pass the longest that makes
nothing but wide accesses, loads and stores just the bytes of the kind and rounds no other way than it. Ways of as many
bytes (of mirrors in bfloat16 and float16) are so one, the longer: figures are of at most so many instructions.
"""

import itertools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lrtricks_fused.step.rounding import PARAM_MULTIPLIER, STATE_MULTIPLIERS
from lrtricks_fused.step.table import CHUNK

from . import cuda_model
from .kernel import Kernel
from .sass import Instruction, Loop, Text, UnknownStructure, loops, successors, ways
from .trace import draws
from .variants import VARIANTS

THREADS, TILE_ELEMENTS, PASSES = 128, 16, 2  # of a block; of a thread in a tile; over a tile
ACCESS, BITMAP = 16, 1  # bytes
UNIT = TILE_ELEMENTS // PASSES
TILES = CHUNK // (THREADS * TILE_ELEMENTS)  # of a warp
TOLD_WORDS = 2 * UNIT * PASSES  # of the words that round a thread's elements of a tile, how many it is told by others
_PARAM_PRODUCT = re.compile(f"{PARAM_MULTIPLIER << 16 | 1:#x}")
_STATE_PRODUCT = re.compile("|".join(f"{multiplier << 16 | 1:#x}" for multiplier in STATE_MULTIPLIERS))
_SUBNORMAL = re.compile(r"F2I")  # only float16 is rounded stochastically by an integer


BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # of an element, by torch's names
LOW_BYTES = 2  # of the other half of a split master
F32, BF16, F16 = "float32", "bfloat16", "float16"


@dataclass(frozen=True)
class Kind:
    """How a parameter is stored: names of dtypes, and what is told of it besides."""

    param: str = F32
    state: str = F32
    grad: str = F32
    mirror: str | None = None
    split: bool = False
    tracked: bool = False
    stochastic: bool = False
    stochastic_states: bool = False

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded stochastically."""
        return self.stochastic or self.stochastic_states

    @property
    def rounds_half(self) -> bool:
        """Whether float16 is."""
        return F16 in (self.stochastic and self.param, self.stochastic_states and self.state)

    @property
    def least(self) -> "Kind":
        """Without what some tensors have beside the parameter."""
        return replace(self, split=False, mirror=None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of an element of the operands that there are."""
        beside = (LOW_BYTES,) * self.split + ((BYTES[self.mirror],) if self.mirror else ())
        return BYTES[self.param], BYTES[self.grad], BYTES[self.state], *beside

    def loaded(self, states: int) -> int:
        """Bytes per parameter, under a mask."""
        return sum(self.sizes) + (states - 1) * BYTES[self.state]

    def stored(self, states: int) -> int:
        """Bytes per parameter."""
        return self.loaded(states) - BYTES[self.grad]


KINDS = {
    "f32, bf16 grads": Kind(grad=BF16),
    "offload": Kind(grad=BF16, mirror=BF16),
    "split": Kind(param=BF16, grad=BF16, split=True),
    "bf16 stoch./f32": Kind(param=BF16, grad=BF16, stochastic=True),
    "f32/bf16 stoch.": Kind(state=BF16, stochastic_states=True),
    "bf16 stoch.": Kind(BF16, BF16, BF16, stochastic=True, stochastic_states=True),
    "f16 stoch.": Kind(F16, F16, F16, stochastic=True, stochastic_states=True),
}


def traffic_bytes(rule: str, kind: str) -> int:
    """Least bytes per parameter under a mask, without bitmaps; of a pair of types, too."""
    if kind not in KINDS:
        return cuda_model.traffic_bytes(rule, kind)
    states = VARIANTS[rule].states
    return KINDS[kind].loaded(states) + KINDS[kind].stored(states)


Tally = tuple[int, ...]
Tallies = Sequence[Tally]  # of one instruction: what it may add to the sums of a way; none where no way may pass


def longest(code: Sequence[Instruction], first: int, last: int, of: Callable[[int], Tallies], goal: Tally) -> list[int]:
    """The longest way from ``first`` to ``last``, both included, without calls and going back, of these sums."""
    best: dict[int, dict[Tally, tuple[int, int, Tally]]] = {}
    for i in range(last, first - 1, -1):
        after = {tuple(0 for _ in goal): (0, -1, goal)}
        onward = [(after, -1)] if i == last else [(best[way], way) for way in successors(code, i) if way in best]
        for (sums, way), own in itertools.product(onward, of(i)):
            for before, (length, *_) in sums.items():
                total = tuple(map(operator.add, before, own))
                if all(map(operator.le, total, goal)):
                    here = best.setdefault(i, {})
                    here[total] = max(here.get(total, (0, -1, goal)), (length + 1, way, before))
    if goal not in best.get(first, {}):
        raise UnknownStructure(f"no way from {first} to {last} of {goal}")
    found, left = [], goal
    while first != -1:
        _, onward_to, rest = best[first][left]
        # A predicated access that this way does without takes a slot, and is left out as trace.py does.
        if left != rest or first == last or not code[first].access_bytes >= ACCESS:
            found.append(first)
        first, left = onward_to, rest
    return found


@dataclass(frozen=True)
class Nest:
    """The loop over tiles, and in it those over passes, one of which a tile takes."""

    tiles: Loop
    passes: tuple[Loop, ...]


def _nest(code: Sequence[Instruction]) -> Nest:
    found = loops(code)
    tiles = [loop for loop in found if sum(loop.contains(other) for other in found) == len(found) - 1]
    if len(found) < 2 or len(tiles) != 1 or any(a.contains(b) for a in found for b in found if a not in tiles):
        raise UnknownStructure(f"not loops in one: {found}")
    return Nest(tiles[0], tuple(loop for loop in found if loop not in tiles))


def _least(code: Sequence[Instruction], passes: Loop) -> tuple[int, int]:
    """Bytes that every pass loads and stores in wide accesses."""
    shortest = ways(code, passes.head, passes.end).shortest
    certain = [code[i] for i in shortest if code[i].access_bytes == ACCESS and not code[i].guarded]
    stores = sum(this.is_store for this in certain)
    return ACCESS * (len(certain) - stores), ACCESS * stores


def _moves_singles(code: Sequence[Instruction], passes: Loop) -> bool:
    return any(code[i].access_bytes not in (0, BITMAP, ACCESS) for i in range(passes.head, passes.end + 1))


def passes_of(code: Sequence[Instruction], nest: Nest, kind: Kind, states: int) -> list[Loop]:
    """Those of tensors of a kind: of their types, several if others move as many bytes, or of any types."""
    any_types = [passes for passes in nest.passes if _moves_singles(code, passes)]
    if len(any_types) != 1:
        raise UnknownStructure(f"not one loop for any types: {any_types}")
    least = UNIT * kind.least.loaded(states), UNIT * kind.least.stored(states)
    own = [passes for passes in nest.passes if passes not in any_types and _least(code, passes) == least]
    return own if own and not kind.rounds_half else any_types


@dataclass(frozen=True)
class Ways:
    """Indices of instructions: before the tiles, of a tile before its passes, of a pass, and behind these.

    The few at the end of a block are left out.
    """

    before: list[int]
    draws: list[int]
    one_pass: list[int]
    rest: list[int]

    def tile(self) -> list[int]:
        """Of a tile."""
        return [*self.draws, *self.one_pass * PASSES, *self.rest]

    def chunk(self) -> list[int]:
        """Of a full chunk."""
        return [*self.before, *self.tile() * TILES]


def _has_singles(code: Sequence[Instruction], index: int) -> bool:
    """Whether the instructions from ``index`` to the next branch access single elements."""
    for this in code[index:]:
        if this.access_bytes not in (0, BITMAP, ACCESS):
            return True
        if this.target is not None or this.is_exit:
            break
    return False


def _moved(code: Sequence[Instruction], kind: Kind) -> Callable[[int], Tallies]:
    """What an instruction of a pass adds to (bytes loaded, stored); a bitmap's byte is accessed where it is to change.

    No way passes a branch one side of which moves single elements: it stands where some operand is not aligned.
    """

    def of(index: int) -> Tallies:
        this = code[index]
        rounds_param = _PARAM_PRODUCT.search(this.operands) and not kind.stochastic
        rounds_state = _STATE_PRODUCT.search(this.operands) and not kind.stochastic_states
        if rounds_param or rounds_state or (_SUBNORMAL.match(this.opcode) and not kind.rounds_half):
            return ()
        size = this.access_bytes
        single = this.target is not None and any(_has_singles(code, way) for way in successors(code, index))
        if single or size not in (0, BITMAP, ACCESS):
            return ()
        moved = (0, 0) if size != ACCESS else (0, size) if this.is_store else (size, 0)
        return (moved, (0, 0)) if size == ACCESS and this.guarded else (moved,)

    return of


def _draws(code: Sequence[Instruction], nest: Nest, to: int, masked: bool, stochastic: bool) -> list[int]:
    """The way to some passes of a tile, with what is drawn for it: words if it is rounded, or else decisions.

    Which of them is told by how often threads tell each other; without a mask they do, but draw no decisions.
    """
    head, behind = nest.tiles.head, min(passes.head for passes in nest.passes)
    told = [int(this.opcode.startswith("SHFL")) for this in code[:behind]]
    decisions = sum(told[head:]) - TOLD_WORDS

    def of(index: int) -> Tallies:
        if index >= behind:
            return ((0,),)
        drawn = draws(code[index]) and not (masked or stochastic)
        return () if drawn or code[index].access_bytes else ((told[index],),)

    return longest(code, head, to, of, (TOLD_WORDS if stochastic else decisions,))[:-1]


def ways_of(text: Text, rule: str, kind: str, masked: bool = True) -> Ways:
    """What a warp executes over full chunks; UnknownStructure if the code is not as expected."""
    code, how, states = text.code, KINDS[kind], VARIANTS[rule].states
    nest, goal = _nest(code), (UNIT * how.loaded(states), UNIT * how.stored(states))

    def way(passes: Loop) -> Ways:
        return Ways(
            before=[*ways(code, 0, nest.tiles.head).longest[:-1]],
            draws=_draws(code, nest, passes.head, masked, how.rounds),
            one_pass=longest(code, passes.head, passes.end, _moved(code, how), goal),
            rest=[*ways(code, passes.end, nest.tiles.end).longest[1:]],
        )

    return max(map(way, passes_of(code, nest, how, states)), key=lambda found: len(found.tile()))


def text_of(arch: int, rule: str) -> Text:
    """The rule's kernel in the native library, of tensors that are whole and contiguous."""
    name = f"void lrt::cuda::staged_kernel<false, {VARIANTS[rule].cpp('float')} >(lrt::cuda::Step)"
    text = cuda_model.library(arch).get(name)
    if text is None:
        raise RuntimeError(f"the native library has no kernel of {rule} by storage for sm_{arch}")
    return text


def kernels(arch: int, rule: str, kinds: Sequence[str] = tuple(KINDS)) -> list[Kernel]:
    """What full chunks of each kind execute at most, in the order of ``kinds``."""
    text, found = text_of(arch, rule), []
    for kind in kinds:
        masked, unmasked = (ways_of(text, rule, kind, masked).tile() for masked in (True, False))
        sizes = [text.code[i].access_bytes for i in masked if text.code[i].access_bytes > BITMAP]
        local = sum(text.code[i].is_local for i in masked)
        spills = sum(this.is_local for this in text.code)
        found.append(Kernel(
            arch, rule, kind, text.registers, text.stack_bytes, spills, local, len(sizes), sizes.count(ACCESS),
            len(masked) / TILE_ELEMENTS, len(unmasked) / TILE_ELEMENTS, traffic_bytes(rule, kind), "cuda",
        ))  # fmt: skip
    return found
