"""One step of a list of tensors: load -> rule -> keep -> store. Knows no optimizer; twin of ``cuda/step_kernel.cuh``.

Two kernels, as there, after those of ``slices.py`` if gradients are centralized: ``prepare_kernel`` advances the step
counts and rounds the constants, ``step_kernel`` steps one chunk a program. Both read the table of
``lrtricks_fused.step.table``, so that one launch serves a whole list. What changes from step to step arrives as a
64-bit integer that is not specialized on (a double by its bits, a device scalar by its address): nothing recompiles
when a schedule moves.
"""

import triton
import triton.language as tl

from lrtricks_fused.step import table

from .philox import KEEP_ALL, LANES, ROUNDS, ROWS, TILE, keep_threshold, philox4x32
from .slope import SKIP, WORDS, slope_units

PARAM = tl.constexpr(table.PARAM)
GRAD = tl.constexpr(table.GRAD)
STATE = tl.constexpr(table.STATE)
STEP = tl.constexpr(table.STEP)
NUMEL = tl.constexpr(table.NUMEL)
INDEX = tl.constexpr(table.INDEX)
FIRST_CHUNK = tl.constexpr(table.FIRST_CHUNK)
SLICE_LENGTH = tl.constexpr(table.SLICE_LENGTH)
FIRST_SLICE = tl.constexpr(table.FIRST_SLICE)
COLUMNS = tl.constexpr(table.COLUMNS)
CHUNK = tl.constexpr(table.CHUNK)

# The scratch, in words of 64 bits: eight for the call, then eight per tensor. Values of the compute type come first;
# the last word holds two of 32 bits: of the call its limit and its flags, of a tensor its step count and whether it is
# one. The three words before hold of the call the addresses of the slices' means and of the slope's units, and
# 1 / grad_scale, as a double.
DRAWS = tl.constexpr(1)


@triton.jit
def double(bits):
    """A double from its bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def number(bits, address, is_double):
    """A double given by its bits, or what is at an address of the device: a double or a float."""
    value = double(bits)
    if address != 0:
        if is_double != 0:
            value = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float64)))
        else:
            value = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value


@triton.jit
def is_step_count(count):
    """Whether this can be a count of steps: a whole number below 2**53."""
    in_range = (count >= 0.0) & (count < 9007199254740992.0)
    return in_range & (tl.where(in_range, count, 0.0).to(tl.int64).to(tl.float64) == count)


@triton.jit
def reals(words, REAL: tl.constexpr):
    """Pointer to 64-bit words as pointer to values of the compute type."""
    return words.to(tl.pointer_type(REAL), bitcast=True)


@triton.jit
def last_word(words):
    """The two 32-bit halves of the last word of eight."""
    return (words + (WORDS - 1)).to(tl.pointer_type(tl.int32), bitcast=True)


# Names of the arguments that change from step to step.
NUMBERS = (
    "tensors", "lr", "lr_address", "keep_prob", "keep_prob_address", "grad_weight", "grad_weight_address", "grad_scale",
    "grad_scale_address", "found_inf", "found_inf_address", "doubles", "weight_decay", "decoupled", "maximize",
    "slice_means", "slope_scratch", "hyper0", "hyper1", "hyper2",
)  # fmt: skip


@triton.jit(do_not_specialize=NUMBERS)
def prepare_kernel(
    rows,
    prepared,
    tensors: tl.int64,
    lr: tl.int64,
    lr_address: tl.int64,
    keep_prob: tl.int64,
    keep_prob_address: tl.int64,
    grad_weight: tl.int64,
    grad_weight_address: tl.int64,
    grad_scale: tl.int64,
    grad_scale_address: tl.int64,
    found_inf: tl.int64,
    found_inf_address: tl.int64,
    doubles: tl.int64,
    weight_decay: tl.int64,
    decoupled: tl.int64,
    maximize: tl.int64,
    slice_means: tl.int64,
    slope_scratch: tl.int64,
    hyper0: tl.int64,
    hyper1: tl.int64,
    hyper2: tl.int64,
    CONSTANTS: tl.constexpr,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Advances the step counts of BLOCK tensors and rounds their constants; the first program, those of the call."""
    skip = number(found_inf, found_inf_address, doubles & 16) != 0
    if tl.program_id(0) == 0:
        inv_scale = 1.0 / number(grad_scale, grad_scale_address, doubles & 8)
        factor = number(grad_weight, grad_weight_address, doubles & 4) * inv_scale
        factor = tl.where(maximize != 0, -factor, factor)
        decay = double(weight_decay)
        threshold = keep_threshold(number(keep_prob, keep_prob_address, doubles & 2))
        draws = (threshold != 0) & (threshold != KEEP_ALL)
        shared = reals(prepared, REAL)
        tl.store(shared, number(lr, lr_address, doubles & 1).to(REAL))
        tl.store(shared + 1, tl.where(decoupled != 0, 0.0, decay).to(REAL))
        tl.store(shared + 2, tl.where(decoupled != 0, decay, 0.0).to(REAL))
        tl.store(shared + 3, factor.to(REAL))
        tl.store(prepared + (WORDS - 4), slice_means)
        tl.store(prepared + (WORDS - 3), slope_scratch)
        tl.store(reals(prepared + (WORDS - 2), tl.float64), inv_scale)
        # Without draws every draw is 0, and 0 < 1 keeps all.
        tl.store(last_word(prepared), tl.where(draws, threshold, tl.where(threshold == 0, 0, 1)))
        tl.store(last_word(prepared) + 1, tl.where(draws, DRAWS, 0) | tl.where(skip, SKIP, 0))
    if not skip:
        tensor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = tensor < tensors
        count = tl.load(rows + tensor * COLUMNS + STEP, mask, 0).to(tl.pointer_type(tl.float64))
        before = tl.load(count, mask, 0.0)
        counted = is_step_count(before)
        step = tl.where(counted, before, 0.0) + 1.0
        tl.store(count, step, mask & counted)
        own = prepared + (1 + tensor) * WORDS
        constants = CONSTANTS(double(hyper0), double(hyper1), double(hyper2), step)
        for k in tl.static_range(len(constants)):
            value = tl.broadcast_to(constants[k], [BLOCK]).to(REAL)
            tl.store(reals(own, REAL) + k, value, mask)
        tl.store(last_word(own), step.to(tl.int64).to(tl.int32), mask)
        tl.store(last_word(own) + 1, counted.to(tl.int32), mask)


@triton.jit
def to_real(stored, STORAGE: tl.constexpr):
    """A stored value in the compute type, exactly. bfloat16 comes as its bits."""
    if STORAGE == tl.bfloat16:
        real = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif STORAGE == tl.float16:
        real = stored.to(tl.float32)
    else:
        real = stored
    return real


@triton.jit
def from_real(real, STORAGE: tl.constexpr):
    """The nearest value that can be stored, ties to even. Integers for bfloat16: the interpreter's cast truncates."""
    if STORAGE == tl.bfloat16:
        bits = real.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        stored = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    elif STORAGE == tl.float16:
        stored = real.to(tl.float16)
    else:
        stored = real
    return stored


@triton.jit
def pointer_to(address, STORAGE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of a tensor's first element as a pointer; bfloat16 is moved as its bits."""
    pointer = address.to(tl.pointer_type(tl.uint16 if STORAGE == tl.bfloat16 else STORAGE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)  # said of the integer it would be lost
    return pointer


# [note: Slices of a chunk]
# Offset i of a chunk lies in slice (into + i) // length, counted from the one that begins ``into`` elements before the
# chunk. Of a length beyond a chunk's the excess is taken off both: the one boundary that the chunk may hold stays where
# it is. So length <= 2**13 and into + i < 2**14, and (into + i) * inverse >> 28 with inverse = 2**28 // length + 1 is
# exactly the quotient, because inverse * length exceeds 2**28 by at most length. A tensor without slices has the mean
# 0, which is what its length is by its bits, too.
TWO_28 = tl.constexpr(2**28)
TWO_4 = tl.constexpr(2**4)


@triton.jit
def slices_of_chunk(row, begin, means, REAL: tl.constexpr):
    """The means from the chunk's first slice on, ``into`` and ``inverse`` of [note: Slices of a chunk]."""
    length = tl.load(row + SLICE_LENGTH)
    excess = tl.maximum(length - CHUNK, 0)
    divisor = tl.maximum(length, 1)
    first = begin // divisor
    into = tl.maximum(begin - first * divisor - excess, 0)
    inverse = tl.where(length != 0, TWO_28 // (divisor - excess) + 1, 0)
    means += (tl.load(row + FIRST_SLICE) + first) * (REAL.primitive_bitwidth // 8)
    means = tl.where(length != 0, means, (row + SLICE_LENGTH).to(tl.int64))
    return means.to(tl.pointer_type(REAL)), into.to(tl.int32), inverse.to(tl.uint32)


@triton.jit
def centred(grad, offset, mask, slices, STORAGE: tl.constexpr):
    """The gradient less its slices' means, as it would be stored."""
    means, into, inverse = slices
    place = tl.umulhi((into + offset).to(tl.uint32) * TWO_4, inverse)  # the upper word, so >> 28
    return to_real(from_real(grad - tl.load(means + place.to(tl.int32), mask), STORAGE), STORAGE)


@triton.jit
def decayed_grad(param, grad, scalars):
    """The gradient that a rule sees: scaled, with coupled weight decay."""
    _, coupled_decay, _, grad_factor = scalars
    grad = grad * grad_factor
    return tl.where(coupled_decay != 0, grad + coupled_decay * param, grad)


@triton.jit
def moved_param(param, direction, scalars):
    """The parameter that a rule's direction leads to, with decoupled weight decay."""
    lr, _, decoupled_decay, _ = scalars
    direction = tl.where(decoupled_decay != 0, direction + decoupled_decay * param, direction)
    return param - lr * direction


@triton.jit
def update(param, grad, states, constants, scalars, DIRECTION: tl.constexpr, FLAG0: tl.constexpr, FLAG1: tl.constexpr):
    """The parameter an update would give, and the states, which advance, kept or not."""
    direction, states = DIRECTION(decayed_grad(param, grad, scalars), states, constants, FLAG0, FLAG1)
    return moved_param(param, direction, scalars), states


@triton.jit
def update_ring(
    param, grad, ring_row, pitch, mask, constants, scalars, INCLUDE: tl.constexpr, STATE_DTYPE: tl.constexpr
):
    """The same for a rule with a ring, whose slots of ``pitch`` elements lie one behind the other."""
    slot, filled = constants[0].to(tl.int64), constants[1].to(tl.int64)
    newest = from_real(decayed_grad(param, grad, scalars), STATE_DTYPE)
    tl.store(ring_row + slot * pitch, newest, mask)
    grad = to_real(newest, STATE_DTYPE)
    mean = to_real(tl.load(ring_row, mask), STATE_DTYPE)
    mean = tl.where(slot == 0, grad, mean)  # what this slot held may be read before the store, or after it
    count = constants[1] * 0.0 + 1.0
    for number in range(1, filled):
        count = count + 1.0
        gradient = to_real(tl.load(ring_row + number * pitch, mask), STATE_DTYPE)
        mean = INCLUDE(mean, tl.where(slot == number, grad, gradient), count)
    return moved_param(param, mean, scalars)


@triton.jit
def step_rows(
    word, drawn, lane, left, param_row, grad_row, state_rows, pitch, slices, constants, scalars, limit, slopes,
    DIRECTION: tl.constexpr, FLAG0: tl.constexpr, FLAG1: tl.constexpr, STATES: tl.constexpr, RING: tl.constexpr,
    PARAM_DTYPE: tl.constexpr, STATE_DTYPE: tl.constexpr, SLOPE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The two rows that one word of every lane's draw decides; each lane's sum of slopes, with SLOPE."""
    for half in tl.static_range(2):
        offset = lane + (2 * word + half) * LANES
        mask = None if FULL else offset < left
        stored = tl.load(param_row + offset, mask)
        raw_grad = to_real(tl.load(grad_row + offset, mask), PARAM_DTYPE)
        grad = raw_grad
        if len(slices) != 0:
            grad = centred(grad, offset, mask, slices, PARAM_DTYPE)
        param = to_real(stored, PARAM_DTYPE)
        if RING:
            ring_row = state_rows[0] + offset
            updated = update_ring(param, grad, ring_row, pitch, mask, constants, scalars, DIRECTION, STATE_DTYPE)
        else:
            states = ()
            for k in tl.static_range(STATES):
                states = states + (to_real(tl.load(state_rows[k] + offset, mask), STATE_DTYPE),)
            updated, states = update(param, grad, states, constants, scalars, DIRECTION, FLAG0, FLAG1)
            for k in tl.static_range(STATES):
                tl.store(state_rows[k] + offset, from_real(states[k], STATE_DTYPE), mask)
        keep = ((drawn >> (16 * half)) & 0xFFFF) < limit
        stored = tl.where(keep, from_real(updated, PARAM_DTYPE), stored)
        tl.store(param_row + offset, stored, mask)
        if SLOPE:
            term = raw_grad * (param - to_real(stored, PARAM_DTYPE))
            slopes = slopes + (term if FULL else tl.where(mask, term, 0.0))
    return slopes


@triton.jit
def step_chunk(
    row, begin, left, stepped, slices, constants, scalars, limit, draws, seed, step, units,
    DIRECTION: tl.constexpr, FLAG0: tl.constexpr, FLAG1: tl.constexpr, STATES: tl.constexpr, RING: tl.constexpr,
    PARAM_DTYPE: tl.constexpr, STATE_DTYPE: tl.constexpr, REAL: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """The elements from ``begin`` of one tensor. FULL: a whole chunk, aligned, in accesses of 16 bytes without a mask.

    A pass draws for BLOCK lanes, that is, for the eight rows of BLOCK / 64 tiles. UNIT, if not 0, is the number of
    lanes of a unit, and ``units`` where those of the chunk go. Of the ``left`` elements ``stepped`` are stepped: all or
    none.
    """
    param_row = pointer_to(tl.load(row + PARAM), PARAM_DTYPE, FULL) + begin
    grad_row = pointer_to(tl.load(row + GRAD), PARAM_DTYPE, FULL) + begin
    state_rows = ()
    for k in tl.static_range(STATES):
        state_rows = state_rows + (pointer_to(tl.load(row + (STATE + k)), STATE_DTYPE, FULL) + begin,)
    index = tl.load(row + INDEX).to(tl.uint32)
    pitch = tl.load(row + NUMEL)
    if FULL and RING:
        pitch = tl.multiple_of(pitch, 128 // STATE_DTYPE.primitive_bitwidth)
    first = begin // ROWS  # Philox call of the chunk's first lane; a chunk does not cross 2**32 of them
    key0, key1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    passes: tl.constexpr = CHUNK // (ROWS * BLOCK)
    for block in range(passes if FULL else tl.cdiv(left, ROWS * BLOCK)):
        call = block * BLOCK + tl.arange(0, BLOCK)
        w0 = tl.zeros([BLOCK], tl.uint32)
        w1, w2, w3 = w0, w0, w0
        if draws:
            c0 = first.to(tl.uint32) + call.to(tl.uint32)
            high = w0 + (first.to(tl.uint64) >> 32).to(tl.uint32)
            w0, w1, w2, w3 = philox4x32(c0, high, w0 + step, w0 + index, key0, key1, ROUNDS)
        lane = call // LANES * TILE + call % LANES
        slopes = tl.zeros([BLOCK], REAL)
        if FULL:  # unrolled: a loop would make the compiler move the draws to the loads' layout through shared memory
            words = (w0, w1, w2, w3)
            for word in tl.static_range(ROWS // 2):
                slopes = step_rows(
                    word, words[word], lane, stepped, param_row, grad_row, state_rows, pitch, slices, constants,
                    scalars, limit, slopes, DIRECTION, FLAG0, FLAG1, STATES, RING, PARAM_DTYPE, STATE_DTYPE,
                    UNIT != 0, True,
                )  # fmt: skip
        else:
            for word in range(ROWS // 2):
                drawn = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
                slopes = step_rows(
                    word, drawn, lane, stepped, param_row, grad_row, state_rows, pitch, slices, constants, scalars,
                    limit, slopes, DIRECTION, FLAG0, FLAG1, STATES, RING, PARAM_DTYPE, STATE_DTYPE, UNIT != 0, False,
                )  # fmt: skip
        if UNIT != 0:
            place = block * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT)
            tl.store(units + place, slope_units(slopes, BLOCK, UNIT))


@triton.jit(do_not_specialize=["seed"])
def step_kernel(
    rows,
    chunk_tensors,
    prepared,
    seed: tl.int64,
    DIRECTION: tl.constexpr,
    FLAG0: tl.constexpr,
    FLAG1: tl.constexpr,
    STATES: tl.constexpr,
    VALUES: tl.constexpr,
    RING: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    REAL: tl.constexpr,
    CENTRALIZE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
):
    """Steps one chunk of one tensor. VALUES: how many constants of a tensor the rule has."""
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
    for k in tl.static_range(VALUES):
        constants = constants + (tl.load(reals(own, REAL) + k),)
    limit = tl.load(last_word(prepared)).to(tl.uint32)
    step = tl.load(last_word(own)).to(tl.uint32)
    begin = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    left = tl.minimum(tl.load(row + NUMEL) - begin, CHUNK)  # an unaligned chunk ends where the next one begins
    stepped = tl.where(tl.load(last_word(own) + 1) != 0, left, 0)  # nothing is, without a count
    addresses = tl.load(row + PARAM) | tl.load(row + GRAD)
    for k in tl.static_range(STATES):
        addresses = addresses | tl.load(row + (STATE + k))
    if RING:  # from slot to slot
        addresses = addresses | tl.load(row + NUMEL) * (STATE_DTYPE.primitive_bitwidth // 8)
    draws = flags & DRAWS != 0
    slices = ()
    if CENTRALIZE:
        slices = slices_of_chunk(row, begin, tl.load(prepared + (WORDS - 4)), REAL)
    units = shared
    if UNIT != 0:
        units = tl.load(prepared + (WORDS - 3)).to(tl.pointer_type(REAL)) + chunk * (CHUNK // ROWS // UNIT)
    if (stepped == CHUNK) & (addresses % 16 == 0):
        step_chunk(row, begin, left, stepped, slices, constants, scalars, limit, draws, seed, step, units, DIRECTION,
                   FLAG0, FLAG1, STATES, RING, PARAM_DTYPE, STATE_DTYPE, REAL, UNIT, BLOCK, True)  # fmt: skip
    else:
        step_chunk(row, begin, left, stepped, slices, constants, scalars, limit, draws, seed, step, units, DIRECTION,
                   FLAG0, FLAG1, STATES, RING, PARAM_DTYPE, STATE_DTYPE, REAL, UNIT, TAIL_BLOCK, False)  # fmt: skip
