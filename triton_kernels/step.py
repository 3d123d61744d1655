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
from .slices import centralized, slices_of_chunk
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
    SHARDS: bool  # whether some are shards
    UNIT: int  # lanes of a unit of the slope; 0: none is asked for
    BLOCK: int  # lanes a pass draws for in a full chunk
    TAIL_BLOCK: int  # the same in others


@triton.jit
def update(param, grad, states, constants, scalars, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """The parameter an update would give, and the states, which advance, kept or not."""
    FLAGS: tl.constexpr = VARIANT.FLAGS
    direction, states = DIRECTION(decayed_grad(param, grad, scalars), states, constants, FLAGS)
    return moved_param(param, direction, scalars), states


@triton.jit
def step_rows(
    word, drawn, lane, left, pointers, pitch, slices, shard, constants, scalars, threshold, slopes,
    DIRECTION: tl.constexpr, VARIANT: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The two rows that one word of every lane's draw decides; each lane's sum of slopes, where there is a unit.

    With SHARDS ``shard`` decides: its elements' draws serve no others, and are made where they are needed.
    """
    PARAM_DTYPE: tl.constexpr = VARIANT.PARAM_DTYPE
    STATE_DTYPE: tl.constexpr = VARIANT.STATE_DTYPE
    STATES: tl.constexpr = VARIANT.STATES
    param_row, grad_row, state_rows = pointers
    for half in tl.static_range(2):
        offset = lane + (2 * word + half) * LANES
        mask = None if FULL else offset < left
        stored = tl.load(param_row + offset, mask)
        raw_grad = to_real(tl.load(grad_row + offset, mask), PARAM_DTYPE)
        grad = raw_grad
        if VARIANT.CENTRALIZE:
            grad = centralized(grad, offset, mask, slices, PARAM_DTYPE)
        param = to_real(stored, PARAM_DTYPE)
        if VARIANT.RING:
            ring_row = state_rows[0] + offset
            updated = update_ring(param, grad, ring_row, pitch, mask, constants, scalars, DIRECTION, STATE_DTYPE)
        else:
            states = ()
            for k in tl.static_range(STATES):
                states = states + (to_real(tl.load(state_rows[k] + offset, mask), STATE_DTYPE),)
            updated, states = update(param, grad, states, constants, scalars, DIRECTION, VARIANT)
            for k in tl.static_range(STATES):
                tl.store(state_rows[k] + offset, from_real(states[k], STATE_DTYPE), mask)
        bits = (drawn >> (16 * half)) & 0xFFFF
        if VARIANT.SHARDS:
            index_map, masked, step, index, key0, key1 = shard
            if masked:
                bits = keep_bits(elements_of(offset, index_map), step, index, key0, key1)
        keep = bits < threshold
        stored = tl.where(keep, from_real(updated, PARAM_DTYPE), stored)
        tl.store(param_row + offset, stored, mask)
        if VARIANT.UNIT != 0:
            term = raw_grad * (param - to_real(stored, PARAM_DTYPE))
            slopes = slopes + (term if FULL else tl.where(mask, term, 0.0))
    return slopes


@triton.jit
def step_chunk(
    row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
    DIRECTION: tl.constexpr, VARIANT: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The elements from ``begin`` of one tensor. FULL: a whole chunk, aligned, in accesses of 16 bytes without a mask.

    A pass draws for BLOCK lanes, that is, for the eight rows of BLOCK / 64 tiles. ``units`` is where the chunk's units
    of the slope go. Of the ``left`` elements ``stepped`` are stepped: all or none.
    """
    PARAM_DTYPE: tl.constexpr = VARIANT.PARAM_DTYPE
    STATE_DTYPE: tl.constexpr = VARIANT.STATE_DTYPE
    STATES: tl.constexpr = VARIANT.STATES
    UNIT: tl.constexpr = VARIANT.UNIT
    BLOCK: tl.constexpr = VARIANT.BLOCK if FULL else VARIANT.TAIL_BLOCK
    param_row = pointer_to(tl.load(row + PARAM), PARAM_DTYPE, FULL) + begin
    grad_row = pointer_to(tl.load(row + GRAD), PARAM_DTYPE, FULL) + begin
    state_rows = ()
    for k in tl.static_range(STATES):
        state_rows = state_rows + (pointer_to(tl.load(row + (STATE + k)), STATE_DTYPE, FULL) + begin,)
    pointers = (param_row, grad_row, state_rows)
    index = tl.load(row + PARAM_INDEX).to(tl.uint32)
    pitch = ring_pitch(row, STATE_DTYPE, FULL)
    first = begin // ROWS  # Philox call of the chunk's first lane; a chunk does not cross 2**32 of them
    key0, key1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    shard = ()
    if VARIANT.SHARDS:
        shard = (map_of_chunk(row, begin), masked, step, index, key0, key1)
    PASSES: tl.constexpr = CHUNK // (ROWS * BLOCK)
    for block in range(PASSES if FULL else tl.cdiv(left, ROWS * BLOCK)):
        call = block * BLOCK + tl.arange(0, BLOCK)
        w0 = tl.zeros([BLOCK], tl.uint32)
        w1, w2, w3 = w0, w0, w0
        if not VARIANT.SHARDS:  # noqa: SIM102 (known to the compiler, unlike the other)
            if masked:
                c0 = first.to(tl.uint32) + call.to(tl.uint32)
                high = w0 + (first.to(tl.uint64) >> 32).to(tl.uint32)
                w0, w1, w2, w3 = philox4x32(c0, high, w0 + step, w0 + index, key0, key1, ROUNDS)
        lane = call // LANES * TILE + call % LANES
        slopes = tl.zeros([BLOCK], VARIANT.REAL)
        if FULL:  # unrolled: a loop would make the compiler move the draws to the loads' layout through shared memory
            words = (w0, w1, w2, w3)
            for word in tl.static_range(ROWS // 2):
                slopes = step_rows(word, words[word], lane, stepped, pointers, pitch, slices, shard, constants,
                                   scalars, threshold, slopes, DIRECTION, VARIANT, True)  # fmt: skip
        else:
            for word in range(ROWS // 2):
                drawn = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
                slopes = step_rows(word, drawn, lane, stepped, pointers, pitch, slices, shard, constants,
                                   scalars, threshold, slopes, DIRECTION, VARIANT, False)  # fmt: skip
        if UNIT != 0:
            place = block * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT)
            tl.store(units + place, slope_units(slopes, BLOCK, UNIT))


@triton.jit(do_not_specialize=["seed"])
def step_kernel(rows, chunk_tensors, prepared, seed: tl.int64, DIRECTION: tl.constexpr, VARIANT: tl.constexpr):
    """Steps one chunk of one tensor."""
    REAL: tl.constexpr = VARIANT.REAL
    STATES: tl.constexpr = VARIANT.STATES
    CONSTANTS: tl.constexpr = VARIANT.CONSTANTS
    flags = tl.load(last_word(prepared) + 1)
    if flags & SKIP != 0:
        return
    chunk = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunk_tensors + chunk).to(tl.int64)
    row = rows + tensor * COLUMNS
    own = prepared + (1 + tensor) * WORDS
    shared = reals(prepared, REAL)
    scalars = (tl.load(shared), tl.load(shared + 1), tl.load(shared + 2), tl.load(shared + 3))
    constants = ()
    for k in tl.static_range(CONSTANTS):
        constants = constants + (tl.load(reals(own, REAL) + k),)
    threshold = tl.load(last_word(prepared)).to(tl.uint32)
    step = tl.load(last_word(own)).to(tl.uint32)
    begin = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    left = tl.minimum(tl.load(row + NUMEL) - begin, CHUNK)  # an unaligned chunk ends where the next one begins
    stepped = tl.where(tl.load(last_word(own) + 1) != 0, left, 0)  # nothing is, without a count
    addresses = tl.load(row + PARAM) | tl.load(row + GRAD)
    for k in tl.static_range(STATES):
        addresses = addresses | tl.load(row + (STATE + k))
    if VARIANT.RING:  # from slot to slot
        addresses = addresses | tl.load(row + NUMEL) * (VARIANT.STATE_DTYPE.primitive_bitwidth // 8)
    masked = flags & MASKED != 0
    slices = ()
    if VARIANT.CENTRALIZE:
        slices = slices_of_chunk(row, begin, tl.load(prepared + SLICE_MEANS), REAL)
    units = shared
    if VARIANT.UNIT != 0:
        units = tl.load(prepared + SLOPE_UNITS).to(tl.pointer_type(REAL)) + chunk * (CHUNK // ROWS // VARIANT.UNIT)
    if (stepped == CHUNK) & (addresses % 16 == 0):
        step_chunk(row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
                   DIRECTION, VARIANT, True)  # fmt: skip
    else:
        step_chunk(row, begin, left, stepped, slices, constants, scalars, threshold, masked, seed, step, units,
                   DIRECTION, VARIANT, False)  # fmt: skip
