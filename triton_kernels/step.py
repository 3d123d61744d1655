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
    CHUNK,
    COLUMNS,
    FIRST_CHUNK,
    GRAD,
    MASKED,
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
from .philox import LANES, ROUNDS, ROWS, TILE, keep_bits, philox4x32
from .ring import ring_pitch, update_ring
from .runs import elements_of, map_of_chunk
from .slices import centralized, mean_of, slices_of_chunk
from .slope import slope_units
from .storage import from_real, pointer_to, to_real
from .update import decayed_grad, moved_param


class Variant(NamedTuple):
    """What an instance of step_kernel is compiled for, besides the rule's direction."""

    FLAGS: tuple[bool, ...]  # which optional states and flags of the rule there are
    STATES: int
    CONSTANTS: int  # of a tensor
    RING: bool  # whether the one state is a ring
    PARAM_DTYPE: tl.dtype
    STATE_DTYPE: tl.dtype
    REAL: tl.dtype  # in which is computed
    CENTRALIZE: bool  # whether some tensors have slices
    MAPPED: bool  # whether some are shards, or lie in channels_last
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
def load_row(offset, mask, grad_mask, pointers, slices, VARIANT: tl.constexpr):
    """What is stored of a row: parameters, gradients, states (a ring's are read later), and the means of its slices."""
    STATES: tl.constexpr = VARIANT.STATES
    param, grad, states = pointers
    stored_states = ()
    if not VARIANT.RING:
        for k in tl.static_range(STATES):
            stored_states = stored_states + (tl.load(states[k] + offset, mask),)
    mean = 0.0
    if VARIANT.CENTRALIZE:
        mean = mean_of(offset, mask, slices)
    return tl.load(param + offset, mask), tl.load(grad + offset, grad_mask), stored_states, mean


@triton.jit
def step_row(row, bits, offset, mask, chunk, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """Steps what :func:`load_row` has loaded; each element's term of the slope.

    With MAPPED the draws of an element serve no others, and are made where they are needed.
    """
    PARAM_DTYPE: tl.constexpr = VARIANT.PARAM_DTYPE
    STATE_DTYPE: tl.constexpr = VARIANT.STATE_DTYPE
    STATES: tl.constexpr = VARIANT.STATES
    pointers, pitch, _, index_map, stream, constants, scalars, threshold = chunk
    param_pointer, _, state_pointers = pointers
    stored, stored_grad, stored_states, mean = row
    param, raw_grad = to_real(stored, PARAM_DTYPE), to_real(stored_grad, PARAM_DTYPE)
    grad = raw_grad
    if VARIANT.CENTRALIZE:
        grad = centralized(grad, mean, PARAM_DTYPE)
    if VARIANT.RING:
        ring_row = state_pointers[0] + offset
        updated = update_ring(param, grad, ring_row, pitch, mask, constants, scalars, DIRECTION, STATE_DTYPE)
    else:
        states = ()
        for k in tl.static_range(STATES):
            states = states + (to_real(stored_states[k], STATE_DTYPE),)
        updated, states = update(param, grad, states, constants, scalars, DIRECTION, VARIANT)
        for k in tl.static_range(STATES):
            tl.store(state_pointers[k] + offset, from_real(states[k], STATE_DTYPE), mask)
    if VARIANT.MAPPED:
        masked, _, step, index, key0, key1 = stream
        if masked:
            bits = keep_bits(elements_of(offset, index_map), step, index, key0, key1)
    stored = tl.where(bits < threshold, from_real(updated, PARAM_DTYPE), stored)
    tl.store(param_pointer + offset, stored, mask)
    return raw_grad * (param - to_real(stored, PARAM_DTYPE))


@triton.jit
def draw(call, stream, DRAWS: tl.constexpr):
    """The four words of each Philox call of a chunk; zeros where none is drawn."""
    masked, first, step, index, key0, key1 = stream
    w0 = tl.zeros_like(call).to(tl.uint32)
    w1, w2, w3 = w0, w0, w0
    if DRAWS:  # noqa: SIM102 (known to the compiler, unlike the other)
        if masked:
            c0 = first.to(tl.uint32) + call.to(tl.uint32)
            high = w0 + (first.to(tl.uint64) >> 32).to(tl.uint32)
            w0, w1, w2, w3 = philox4x32(c0, high, w0 + step, w0 + index, key0, key1, ROUNDS)
    return w0, w1, w2, w3


@triton.jit
def step_pass(
    call, stepped, chunk, DIRECTION: tl.constexpr, VARIANT: tl.constexpr, FULL: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The eight rows that these Philox calls of a chunk serve; each lane's sum of slopes, where there is a unit.

    The loads of AHEAD rows are under way before the first of them is stepped. Unrolled: a loop would make the compiler
    move the draws to the loads' layout through shared memory.
    """
    lane = call // LANES * TILE + call % LANES
    slopes = tl.zeros_like(call).to(VARIANT.REAL)
    pointers, _, slices, _, stream, _, _, _ = chunk
    rows = ()
    for k in tl.static_range(ROWS + AHEAD):
        if k < ROWS:
            offset = lane + k * LANES
            inside = offset < stepped
            mask = None if FULL else inside
            rows = rows + (load_row(offset, mask, None if GRAD_ALIGNED else inside, pointers, slices, VARIANT),)
        if k == AHEAD - 1:
            words = draw(call, stream, not VARIANT.MAPPED)
        if k >= AHEAD:
            offset = lane + (k - AHEAD) * LANES
            mask = None if FULL else offset < stepped
            bits = words[(k - AHEAD) // 2] >> (16 * ((k - AHEAD) % 2)) & 0xFFFF
            term = step_row(rows[k - AHEAD], bits, offset, mask, chunk, DIRECTION, VARIANT)
            if VARIANT.UNIT != 0:
                slopes = slopes + (term if FULL else tl.where(mask, term, 0.0))
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
    grad = pointer_to(tl.load(row + GRAD), PARAM_DTYPE, GRAD_ALIGNED) + begin
    states = ()
    for k in tl.static_range(STATES):
        states = states + (pointer_to(tl.load(row + (STATE + k)), STATE_DTYPE, FULL) + begin,)
    first = begin // ROWS  # Philox call of the chunk's first lane; a chunk does not cross 2**32 of them
    key0, key1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    stream = (masked, first, step, tl.load(row + PARAM_INDEX).to(tl.uint32), key0, key1)
    index_map = ()
    if VARIANT.MAPPED:
        index_map = map_of_chunk(row, begin)
    pitch = ring_pitch(row, STATE_DTYPE, FULL)
    chunk = ((param, grad, states), pitch, slices, index_map, stream, constants, scalars, threshold)
    PASSES: tl.constexpr = CHUNK // (ROWS * BLOCK)
    for block in range(PASSES if FULL else tl.cdiv(left, ROWS * BLOCK)):
        call = block * BLOCK + tl.arange(0, BLOCK)
        slopes = step_pass(call, stepped, chunk, DIRECTION, VARIANT, FULL, GRAD_ALIGNED, AHEAD)
        if UNIT != 0:
            place = block * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT)
            tl.store(units + place, slope_units(slopes, BLOCK, UNIT))


@triton.jit(do_not_specialize=["seed"])
def step_kernel(rows, chunk_tensors, prepared, seed: tl.int64, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """Steps one chunk of one tensor."""
    REAL: tl.constexpr = VARIANT.REAL
    STATES: tl.constexpr = VARIANT.STATES
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
    addresses = tl.load(row + PARAM)  # of what is written, too
    for k in tl.static_range(STATES):
        addresses = addresses | tl.load(row + (STATE + k))
    if VARIANT.RING:  # from slot to slot
        addresses = addresses | tl.load(row + NUMEL) * (VARIANT.STATE_DTYPE.primitive_bitwidth // 8)
    full = (stepped == CHUNK) & (addresses % 16 == 0)
    grad_aligned = tl.load(row + GRAD) % 16 == 0
    masked = flags & MASKED != 0
    slices = ()
    if VARIANT.CENTRALIZE:
        slices = slices_of_chunk(row, begin, tl.load(prepared + SLICE_MEANS), REAL)
    units = shared
    if VARIANT.UNIT != 0:
        units = tl.load(prepared + SLOPE_UNITS).to(tl.pointer_type(REAL)) + chunk * (CHUNK // ROWS // VARIANT.UNIT)
    if flags & SKIP != 0:
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
