"""What a step needs once: advances the counts of steps and rounds the constants, for step.py to read."""

import triton
import triton.language as tl

from .doubles import from_halves, read_scalar
from .layout import (
    COLUMNS,
    INV_SCALE,
    MASKED,
    SCALAR_STATE,
    SKIP,
    SLICE_MEANS,
    SLOPE_UNITS,
    STEP,
    WORDS,
    last_word,
    reals,
)
from .philox import KEEP_ALL, keep_threshold


@triton.jit
def is_step_count(count):
    """Whether this can be a count of steps: a whole number below 2**53."""
    in_range = (count >= 0.0) & (count < 9007199254740992.0)
    return in_range & (tl.where(in_range, count, 0.0).to(tl.int64).to(tl.float64) == count)


# Names of the numbers that change from step to step; tuples take care of theirs.
NUMBERS = ("tensors", "flags", "slice_means", "slope_units")
# Scalars of a step, in their order in its tuple, and flags.
LR, KEEP_PROB, GRAD_WEIGHT, GRAD_SCALE, FOUND_INF, CLIP, WEIGHT_DECAY = (tl.constexpr(k) for k in range(7))
DECOUPLED_WEIGHT_DECAY, MAXIMIZE = tl.constexpr(1), tl.constexpr(2)


@triton.jit(do_not_specialize=NUMBERS)
def prepare_kernel(
    rows,
    prepared,
    tensors: tl.int64,
    scalars,
    flags: tl.int64,
    slice_means: tl.int64,
    slope_units: tl.int64,
    hypers,
    CONSTANTS: tl.constexpr,
    SCALAR_STATES: tl.constexpr,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Advances the step counts of BLOCK tensors and rounds their constants; the first program, those of the call.

    ``scalars``: those named above, by doubles.scalars_in_halves; ``hypers``: the rule's numbers, by in_halves.
    """
    skip = read_scalar(scalars, FOUND_INF) != 0
    if tl.program_id(0) == 0:
        inv_scale = 1.0 / read_scalar(scalars, GRAD_SCALE)
        factor = inv_scale * read_scalar(scalars, CLIP) * read_scalar(scalars, GRAD_WEIGHT)
        factor = tl.where(flags & MAXIMIZE != 0, -factor, factor)
        decay = read_scalar(scalars, WEIGHT_DECAY)
        threshold = keep_threshold(read_scalar(scalars, KEEP_PROB))
        masked = (threshold != 0) & (threshold != KEEP_ALL)
        decoupled = flags & DECOUPLED_WEIGHT_DECAY != 0
        shared = reals(prepared, REAL)
        tl.store(shared, read_scalar(scalars, LR).to(REAL))
        tl.store(shared + 1, tl.where(decoupled, 0.0, decay).to(REAL))
        tl.store(shared + 2, tl.where(decoupled, decay, 0.0).to(REAL))
        tl.store(shared + 3, factor.to(REAL))
        tl.store(prepared + SLICE_MEANS, slice_means)
        tl.store(prepared + SLOPE_UNITS, slope_units)
        tl.store(reals(prepared + INV_SCALE, tl.float64), inv_scale)
        # Without a mask every draw is 0, and 0 < 1 keeps all.
        tl.store(last_word(prepared), tl.where(masked, threshold, tl.where(threshold == 0, 0, 1)))
        tl.store(last_word(prepared) + 1, tl.where(masked, MASKED, 0) | tl.where(skip, SKIP, 0))
    if not skip:
        tensor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = tensor < tensors
        count = tl.load(rows + tensor * COLUMNS + STEP, mask, 0).to(tl.pointer_type(tl.float64))
        before = tl.load(count, mask, 0.0)
        counted = is_step_count(before)
        step = tl.where(counted, before, 0.0) + 1.0
        tl.store(count, step, mask & counted)
        own = prepared + (1 + tensor) * WORDS
        if SCALAR_STATES == 0:
            constants = CONSTANTS(*from_halves(hypers), step)
        else:
            pointers = ()
            scalar_states = ()
            for k in tl.static_range(SCALAR_STATES):
                pointer = tl.load(rows + tensor * COLUMNS + (SCALAR_STATE + k), mask, 0).to(tl.pointer_type(tl.float64))
                pointers = pointers + (pointer,)
                scalar_states = scalar_states + (tl.load(pointer, mask, 0.0),)
            constants, scalar_states = CONSTANTS(*from_halves(hypers), step, *scalar_states)
            for k in tl.static_range(SCALAR_STATES):
                tl.store(pointers[k], scalar_states[k], mask & counted)
        tl.static_assert(len(constants) < WORDS)
        for k in tl.static_range(len(constants)):
            value = tl.broadcast_to(constants[k], [BLOCK]).to(REAL)
            tl.store(reals(own, REAL) + k, value, mask)
        tl.store(last_word(own), step.to(tl.int64).to(tl.int32), mask)
        tl.store(last_word(own) + 1, counted.to(tl.int32), mask)
