"""One step of a list of tensors: load -> rule -> keep -> store. Knows no optimizer; twin of ``cuda/step_kernel.cuh``.

Two kernels, as there, after those of ``slices.py`` if gradients are centralized: ``prepare_kernel`` (prepare.py)
advances the step counts and rounds the constants, ``step_kernel`` steps one chunk a program. Both read the table of
``lrtricks_fused.step.table``, so that one launch serves a whole list. What changes from step to step arrives as a
64-bit integer that is not specialized on (a double by its bits, a device scalar by its address): nothing recompiles
when a schedule moves.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .layout import (
    BASE,
    CHANGES,
    CHUNK,
    COLUMNS,
    FIRST_CHUNK,
    GRAD,
    GRAD_DTYPE,
    LOW,
    MASKED,
    MIRROR,
    MIRROR_DTYPE,
    NUMEL,
    PARAM,
    PARAM_INDEX,
    SKIP,
    SLICE_MEANS,
    SLOPE_UNITS,
    STATE,
    WORDS,
    last_word,
    reals,
)
from .philox import KEEP_ALL, LANES, ROWS, TILE, draw_alone, turned
from .ring import ring_pitch, update_ring
from .rounding import STATE_MULTIPLIERS, draw_pass, rounded
from .runs import elements_of, map_of_chunk, place_of_chunk
from .slices import centralized, mean_of, slices_of_chunk
from .slope import slope_units
from .storage import pointer_to, to_real
from .stored import add_changes, load_beside, pointers_beside, real_param, store_param, with_flag
from .update import decayed_grad, moved_param


class Variant(NamedTuple):
    """What an instance of step_kernel is compiled for, besides the rule's direction."""

    FLAGS: tuple[bool, ...]  # which optional states and flags of the rule there are
    STATES: int
    CONSTANTS: int  # of a tensor
    RING: bool  # whether the one state is a ring
    PARAM_DTYPE: tl.dtype
    GRAD_DTYPE: tl.dtype
    STATE_DTYPE: tl.dtype
    MIRROR_DTYPE: tl.dtype | None  # of what a parameter's rounding is written to, too
    SPLIT: bool  # whether parameters are halves of float32 masters
    TRACKED: bool  # whether a bit per element says what has changed
    STOCHASTIC: bool  # whether parameters are rounded so, as the next says of states
    STOCHASTIC_STATES: bool
    ONLY: tuple[int, int] | None  # the table's codes of the gradients' and mirrors' dtypes that are stepped; None: all
    REAL: tl.dtype  # in which is computed
    CENTRALIZE: bool  # whether some tensors have slices
    MAPPED: bool  # AddressTable.is_mapped
    BACKWARDS: bool  # whether a pass takes the last of its rows first, see [note: Backwards]
    UNIT: int  # lanes of a unit of the slope; 0: none is asked for
    BLOCK: int  # lanes a pass draws for in a full chunk
    TAIL_BLOCK: int  # the same in others
    AHEAD: int  # rows whose loads are under way while the one before is stepped, in a full chunk
    TAIL_AHEAD: int  # the same in others


@triton.jit
def update(param, grad, states, constants, scalars, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """The parameter an update would give, and the states, which advance, kept or not."""
    FLAGS: tl.constexpr = VARIANT.FLAGS
    direction, states = DIRECTION(decayed_grad(param, grad, scalars), states, constants, FLAGS)
    return moved_param(param, direction, scalars), states


# [note: Paths that must not be merged] MLIR makes one of two blocks that differ in a pointer alone, and of that pointer
# knows no alignment. So the loads of an unaligned gradient have a mask, which in a full chunk is true.


@triton.jit
def load_row(offset, mask, grad_mask, chunk, VARIANT: tl.constexpr):
    """What is stored of a row: parameters, gradients, states (a ring's are read later), means of slices, and beside."""
    STATES: tl.constexpr = VARIANT.STATES
    pointers, beside_pointers, _, slices, _, draws, _, _, limit = chunk
    param, grad, states = pointers
    stored_states = ()
    if not VARIANT.RING:
        for k in tl.static_range(STATES):
            stored_states = stored_states + (tl.load(states[k] + offset, mask),)
    mean = 0.0
    if VARIANT.CENTRALIZE:
        mean = mean_of(offset, mask, slices)
    drops = draws[0] | (limit == 0)
    beside = load_beside(offset, mask, beside_pointers, drops, VARIANT)
    return tl.load(param + offset, mask), tl.load(grad + offset, grad_mask), stored_states, mean, beside


@triton.jit
def step_row(
    row, words, offset, mask, chunk,
    ROW: tl.constexpr, DIRECTION: tl.constexpr, VARIANT: tl.constexpr,
):  # fmt: skip
    """Steps what :func:`load_row` has loaded; each element's term of the slope, and whether it has changed.

    With MAPPED the draws of scattered elements serve no others, and are made where they are needed.
    """
    STATE_DTYPE: tl.constexpr = VARIANT.STATE_DTYPE
    STATES: tl.constexpr = VARIANT.STATES
    STOCHASTIC_STATES: tl.constexpr = VARIANT.STOCHASTIC_STATES
    pointers, beside_pointers, pitch, _, index_map, draws, constants, scalars, limit = chunk
    masked, stream, scattered = draws
    stored, stored_grad, stored_states, mean, beside = row
    bits = words[ROW // 2] >> (16 * (ROW % 2)) & 0xFFFF
    word = turned(words[ROW // 2], ROW)
    if VARIANT.MAPPED:  # noqa: SIM102 (known to the compiler, unlike the other)
        if scattered & (masked | VARIANT.STOCHASTIC | STOCHASTIC_STATES):
            word = draw_alone(elements_of(offset, index_map), stream)
            bits = word >> 16
    param, raw_grad = real_param(stored, beside, VARIANT), to_real(stored_grad, VARIANT.GRAD_DTYPE)
    grad = raw_grad
    if VARIANT.CENTRALIZE:
        grad = centralized(grad, mean, VARIANT.GRAD_DTYPE)
    if VARIANT.RING:
        ring_row = pointers[2][0] + offset
        updated = update_ring(param, grad, ring_row, pitch, mask, constants, scalars, DIRECTION, STATE_DTYPE)
    else:
        states = ()
        for k in tl.static_range(STATES):
            states = states + (to_real(stored_states[k], STATE_DTYPE),)
        updated, states = update(param, grad, states, constants, scalars, DIRECTION, VARIANT)
        for k in tl.static_range(STATES):
            new_state = rounded(states[k], word, STATE_MULTIPLIERS[k], STATE_DTYPE, STOCHASTIC_STATES)
            tl.store(pointers[2][k] + offset, new_state, mask)
    written = (pointers[0], beside_pointers)
    keep = bits < limit
    after, changed = store_param(stored, updated, keep, word, offset, mask, written, beside, VARIANT)
    return raw_grad * (param - after), changed


# [note: Backwards] Words are drawn in another layout than that of the loads, to which the compiler moves them, or their
# draws: through shared memory where that seems cheaper. Seen from the last words, which take the fewest operations, it
# is not, and the others follow.


@triton.constexpr_function
def row_number(k, backwards):
    """The k-th row of a pass."""
    return ROWS.value - 1 - k if backwards else k


@triton.jit
def step_pass(
    block, stepped, chunk, DIRECTION: tl.constexpr, VARIANT: tl.constexpr, FULL: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The eight rows that BLOCK Philox calls of a chunk serve; each lane's sum of slopes, where there is a unit.

    The loads of AHEAD rows are under way before the first of them is stepped. Unrolled: a loop would make the compiler
    move the draws to the loads' layout through shared memory.
    """
    BACKWARDS: tl.constexpr = VARIANT.BACKWARDS
    call = block * BLOCK + tl.arange(0, BLOCK)
    lane = call // LANES * TILE + call % LANES
    slopes = tl.zeros_like(call).to(VARIANT.REAL)
    flags = (tl.zeros_like(call).to(tl.uint32), tl.zeros_like(call).to(tl.uint32))  # of what changes, see stored.py
    rows = ()
    for k in tl.static_range(ROWS + AHEAD):
        if k < ROWS:
            offset = lane + row_number(k, BACKWARDS) * LANES
            inside = offset < stepped
            mask = None if FULL else inside
            rows = rows + (load_row(offset, mask, None if GRAD_ALIGNED else inside, chunk, VARIANT),)
        if k == AHEAD - 1:
            words = draw_pass(call, stepped, chunk[5], VARIANT)
        if k >= AHEAD:
            offset = lane + row_number(k - AHEAD, BACKWARDS) * LANES
            mask = None if FULL else offset < stepped
            term, changed = step_row(
                rows[k - AHEAD], words, offset, mask, chunk, row_number(k - AHEAD, BACKWARDS), DIRECTION, VARIANT
            )
            if VARIANT.TRACKED:
                flags = with_flag(flags, changed, row_number(k - AHEAD, BACKWARDS), BACKWARDS)
            if VARIANT.UNIT != 0:
                slopes = slopes + (term if FULL else tl.where(mask, term, 0.0))
    if VARIANT.TRACKED:
        add_changes(chunk[1][2], flags, block, stepped, FULL, BLOCK)
    return slopes


@triton.jit
def step_chunk(
    row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
    DIRECTION: tl.constexpr, VARIANT: tl.constexpr, FULL: tl.constexpr, GRAD_ALIGNED: tl.constexpr,
):  # fmt: skip
    """The elements from ``begin`` of one tensor. FULL: a whole chunk, in accesses of 16 bytes without a mask.

    GRAD_ALIGNED: those to the gradient, too. A pass draws for BLOCK lanes, that is, for the eight rows of BLOCK / 64
    tiles. ``units`` is where the chunk's units of the slope go. Of the ``left`` elements ``stepped`` are stepped: all
    or none.
    """
    PARAM_DTYPE: tl.constexpr = VARIANT.PARAM_DTYPE
    STATE_DTYPE: tl.constexpr = VARIANT.STATE_DTYPE
    STATES: tl.constexpr = VARIANT.STATES
    UNIT: tl.constexpr = VARIANT.UNIT
    BLOCK: tl.constexpr = VARIANT.BLOCK if FULL else VARIANT.TAIL_BLOCK
    AHEAD: tl.constexpr = VARIANT.AHEAD if FULL else VARIANT.TAIL_AHEAD
    param = pointer_to(tl.load(row + PARAM), PARAM_DTYPE, FULL) + begin
    grad = pointer_to(tl.load(row + GRAD), VARIANT.GRAD_DTYPE, GRAD_ALIGNED) + begin
    states = ()
    for k in tl.static_range(STATES):
        states = states + (pointer_to(tl.load(row + (STATE + k)), STATE_DTYPE, FULL) + begin,)
    index_map, element, scattered = (), begin + tl.load(row + BASE), False
    if VARIANT.MAPPED:
        index_map = map_of_chunk(row, begin)
        element, scattered = place_of_chunk(left, index_map)
    first = element // ROWS  # Philox call of the chunk's first lane; a chunk does not cross 2**32 of them
    key0, key1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    draws = (masked, (first.to(tl.uint64), step, tl.load(row + PARAM_INDEX).to(tl.uint32), key0, key1), scattered)
    pitch = ring_pitch(row, STATE_DTYPE, FULL)
    beside = pointers_beside(row, begin, VARIANT, FULL)
    chunk = ((param, grad, states), beside, pitch, slices, index_map, draws, constants, scalars, threshold)
    PASSES: tl.constexpr = CHUNK // (ROWS * BLOCK)
    for block in range(PASSES if FULL else tl.cdiv(left, ROWS * BLOCK)):
        slopes = step_pass(block, stepped, chunk, DIRECTION, VARIANT, FULL, GRAD_ALIGNED, BLOCK, AHEAD)
        if UNIT != 0:
            place = block * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT)
            tl.store(units + place, slope_units(slopes, BLOCK, UNIT))


@triton.jit
def written_addresses(row, VARIANT: tl.constexpr):
    """The bits that some address has of what a step of a tensor writes."""
    STATES: tl.constexpr = VARIANT.STATES
    addresses = tl.load(row + PARAM)
    for k in tl.static_range(STATES):
        addresses = addresses | tl.load(row + (STATE + k))
    if VARIANT.SPLIT:
        addresses = addresses | tl.load(row + LOW)
    if VARIANT.MIRROR_DTYPE is not None:
        addresses = addresses | tl.load(row + MIRROR)
    if VARIANT.TRACKED:
        addresses = addresses | tl.load(row + CHANGES)
    if VARIANT.RING:  # from slot to slot
        addresses = addresses | tl.load(row + NUMEL) * (VARIANT.STATE_DTYPE.primitive_bitwidth // 8)
    return addresses


@triton.jit(do_not_specialize=["seed"])
def step_kernel(rows, chunk_tensors, prepared, seed: tl.int64, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """Steps one chunk of one tensor."""
    REAL: tl.constexpr = VARIANT.REAL
    CONSTANTS: tl.constexpr = VARIANT.CONSTANTS
    chunk = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunk_tensors + chunk).to(tl.int64)
    row = rows + tensor * COLUMNS
    own = prepared + (1 + tensor) * WORDS
    shared = reals(prepared, REAL)
    flags = tl.load(last_word(prepared) + 1)
    scalars = (tl.load(shared), tl.load(shared + 1), tl.load(shared + 2), tl.load(shared + 3))
    constants = ()
    for k in tl.static_range(CONSTANTS):
        constants = constants + (tl.load(reals(own, REAL) + k),)
    threshold = tl.load(last_word(prepared)).to(tl.uint32)
    step = tl.load(last_word(own)).to(tl.uint32)
    begin = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    left = tl.minimum(tl.load(row + NUMEL) - begin, CHUNK)  # an unaligned chunk ends where the next one begins
    stepped = tl.where(tl.load(last_word(own) + 1) != 0, left, 0)  # nothing is, without a count
    full = (stepped == CHUNK) & (written_addresses(row, VARIANT) % 16 == 0)
    grad_aligned = tl.load(row + GRAD) % 16 == 0
    masked = flags & MASKED != 0
    if VARIANT.STOCHASTIC or VARIANT.STOCHASTIC_STATES:  # bits are drawn without a mask, too
        threshold = tl.where(masked | (threshold == 0), threshold, KEEP_ALL)
    skip = flags & SKIP != 0
    if VARIANT.ONLY is not None:
        skip = skip | (tl.load(row + GRAD_DTYPE) != VARIANT.ONLY[0]) | (tl.load(row + MIRROR_DTYPE) != VARIANT.ONLY[1])
    slices = ()
    if VARIANT.CENTRALIZE:
        slices = slices_of_chunk(row, begin, tl.load(prepared + SLICE_MEANS), REAL)
    units = shared
    if VARIANT.UNIT != 0:
        units = tl.load(prepared + SLOPE_UNITS).to(tl.pointer_type(REAL)) + chunk * (CHUNK // ROWS // VARIANT.UNIT)
    if skip:
        return
    if full & grad_aligned:
        step_chunk(row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
                   DIRECTION, VARIANT, True, True)  # fmt: skip
    elif full:
        step_chunk(row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
                   DIRECTION, VARIANT, True, False)  # fmt: skip
    else:
        step_chunk(row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
                   DIRECTION, VARIANT, False, False)  # fmt: skip
