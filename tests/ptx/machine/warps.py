"""Instructions that the threads of a warp execute together. launch.py has waited until all of them are there."""

import numpy as np

from .instructions import instruction, operands
from .kernels import Address, Immediate, Instruction, UnknownPtx
from .memory import MemoryFault
from .races import Access
from .registers import WARP, Execute, Lanes, Mask, lanes_of, put

MATRIX, ROW_BYTES = 8, 16  # rows of a matrix of 16-bit elements
REDUCE = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
          "xor": np.bitwise_xor}  # fmt: skip


class PartOfWarp(Exception):
    """An instruction of whole warps that a part of one executes, or that names a part."""


def whole_warps(this: Instruction, lanes: Lanes, mask: Mask) -> None:
    """Refuses a mask with a part of a warp."""
    if lanes.threads % WARP:
        raise PartOfWarp(f"{lanes.threads} threads in a block: {this.text}")
    if mask is not True:
        there = mask.reshape(-1, WARP)
        if (there.any(1) != there.all(1)).any():
            raise PartOfWarp(this.text)


def _everyone(this: Instruction, operand: object, lanes: Lanes, mask: Mask) -> None:
    members = lanes.read(operand, "u32")
    if ((members != 0xFFFFFFFF) & mask).any():
        raise PartOfWarp(f"a part of a warp is named: {this.text}")
    whole_warps(this, lanes, mask)


def source_lane(mode: str, lane: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From which lane each one takes, and whether it lies in range."""
    clamp, segment = c & 31, c >> 8 & 31
    least, largest = lane & segment, (lane & segment) | (clamp & ~segment & 31)
    if mode == "up":
        found = lane - (b & 31)
        return found, found >= largest
    found = {"down": lane + (b & 31), "bfly": lane ^ (b & 31), "idx": least | (b & 31 & ~segment)}[mode]
    return found, found <= largest


@instruction("shfl")
def shuffle(this: Instruction, lanes: Lanes) -> Execute:
    """Values of other lanes of the warp; where there are none, the lane's own."""
    if len(this.modifiers) != 3 or this.modifiers[0] != "sync" or this.type != "b32":
        raise UnknownPtx(this.text)
    outs, source, b, c, members = operands(this, 5)
    outs = outs if isinstance(outs, tuple) else (outs,)
    values, own = lanes.read(source, "b32"), lanes.thread % WARP
    distance, clamp = lanes.read(b, "u32"), lanes.read(c, "u32")
    targets = [lanes.write(out, kind) for out, kind in zip(outs, ("b32", "pred"), strict=False)]

    def run(mask: Mask) -> None:
        _everyone(this, members, lanes, mask)
        lane, valid = source_lane(this.modifiers[1], own, distance.astype(np.int64), clamp.astype(np.int64))
        found = np.broadcast_to(values, own.shape)[lanes.lane - own + np.where(valid, lane, own)]
        for target, value in zip(targets, (found, valid), strict=False):
            put(target, value, mask)

    return run


@instruction("redux")
def reduce(this: Instruction, lanes: Lanes) -> Execute:
    """One integer of all in the warp, to all of them."""
    if len(this.modifiers) != 3 or this.modifiers[0] != "sync" or this.modifiers[1] not in REDUCE:
        raise UnknownPtx(this.text)
    out, source, members = operands(this, 3)
    values, target = lanes.read(source, this.type), lanes.write(out, this.type)

    def run(mask: Mask) -> None:
        _everyone(this, members, lanes, mask)
        rows = np.broadcast_to(values, lanes.lane.shape).reshape(-1, WARP)
        put(target, np.repeat(REDUCE[this.modifiers[1]].reduce(rows, axis=1), WARP), mask)

    return run


@instruction("vote")
def vote(this: Instruction, lanes: Lanes) -> Execute:
    """Whether all in the warp say so, or any, or which."""
    sync, mode, kind = this.modifiers
    if sync != "sync" or (mode, kind) not in (("any", "pred"), ("all", "pred"), ("ballot", "b32")):
        raise UnknownPtx(this.text)
    out, source, members = operands(this, 3)
    values, target = lanes.read(source, "pred"), lanes.write(out, kind)

    def run(mask: Mask) -> None:
        _everyone(this, members, lanes, mask)
        rows = np.broadcast_to(values, lanes.lane.shape).reshape(-1, WARP)
        bits = (rows.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1)
        found = {"any": rows.any(1), "all": rows.all(1), "ballot": bits}[mode]
        put(target, np.repeat(found, WARP), mask)

    return run


@instruction("bar", "barrier")
def barrier(this: Instruction, lanes: Lanes) -> Execute:
    """Orders what the threads of a block, or of a warp, have done before from what they do after."""
    of_warp = this.modifiers == ("warp", "sync")
    if not of_warp and (this.modifiers not in (("sync",), ("sync", "aligned")) or this.operands != (Immediate(0),)):
        raise UnknownPtx(this.text)

    def run(mask: Mask) -> None:
        if of_warp:
            _everyone(this, this.operands[0], lanes, mask)
        (lanes.warp_epoch if of_warp else lanes.epoch)[lanes_of(mask, lanes.count)] += 1

    return run


@instruction("stmatrix")
def store_matrix(this: Instruction, lanes: Lanes) -> Execute:
    """8 x 8 numbers of 16 bits to shared memory: thread 8 m + r of a warp has the address of row r of matrix m.

    Thread t holds of every matrix columns 2 (t % 4) and the next of row t / 4; with .trans, of the column.
    """
    *modifiers, kind = this.modifiers
    known = ("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared")
    if kind != "b16" or not {"m8n8", "shared"} <= set(modifiers) <= {*known}:
        raise UnknownPtx(this.text)
    where, values = operands(this, 2)
    values = values if isinstance(values, tuple) else (values,)
    if not isinstance(where, Address):
        raise UnknownPtx(this.text)
    width = lanes.registers[where.base.name].itemsize
    base = lanes.read(where.base, f"u{8 * width}")
    held = [lanes.read(value, "b32") for value in values]
    row, column = lanes.thread % WARP // 4, lanes.thread % 4 * 2

    def run(mask: Mask) -> None:
        whole_warps(this, lanes, mask)
        chosen, limit = lanes_of(mask, lanes.count), lanes.shared.shape[1]
        rows = base.astype(np.int64) + where.offset
        numbers = lanes.shared.reshape(-1).view(np.uint16)
        for matrix, source in enumerate(held):
            for half in range(2):
                r, c = (column + half, row) if "trans" in modifiers else (row, column + half)
                at = rows[lanes.lane - lanes.thread % WARP + MATRIX * matrix + r][chosen]
                if (at % ROW_BYTES).any() or (at < 0).any() or (at + ROW_BYTES > limit).any():
                    raise MemoryFault(f"a row at {int(at.max())} of {limit} bytes, or not aligned: {this.text}")
                flat = at + 2 * c[chosen] + lanes.block[chosen] * limit
                values = (source[chosen] >> np.uint32(16 * half)).astype(np.uint16)
                lanes.note_shared(Access(flat, 2, *lanes.order(chosen), False, this.text, values[:, None]))
                numbers[flat // 2] = values

    return run
