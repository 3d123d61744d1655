"""Loads and stores: which space, how wide, by whom."""

import numpy as np

from .instructions import instruction
from .kernels import Address, Instruction, Register, UnknownPtx
from .memory import MemoryFault
from .races import Access
from .registers import DTYPES, WINDOW_SHIFT, WINDOWS, Execute, Lanes, Mask, lanes_of, put

VECTORS = {"v2": 2, "v4": 4, "v8": 8}
SPACES = ("global", "param", "shared", "local")
# What a cache keeps, and for how long, changes no value.
CACHED = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "relaxed", "volatile", "gpu", "cta", "sys",
          "L1::evict_first", "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged", "L1::no_allocate",
          "L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B",
          "evict_first", "evict_last", "evict_normal"}  # fmt: skip


class _Accessed:
    """What a load or store says of itself."""

    def __init__(self, this: Instruction, lanes: Lanes) -> None:
        self.this, self.lanes = this, lanes
        self.count, self.space, self.kind = 1, None, this.type
        for modifier in this.modifiers[:-1]:
            if modifier in VECTORS:
                self.count = VECTORS[modifier]
            elif modifier in SPACES and self.space is None:
                self.space = modifier
            elif modifier not in CACHED:
                raise UnknownPtx(f".{modifier} of {this.opcode}: {this.text}")
        self.dtype = DTYPES.get(this.type)
        given = this.operands[: len(this.operands) - ("L2::cache_hint" in this.modifiers)]
        where, values = reversed(given) if this.opcode == "ld" else given
        self.values = values if isinstance(values, tuple) else (values,)
        if self.dtype is None or len(self.values) != self.count or not isinstance(where, Address):
            raise UnknownPtx(this.text)
        self.size = self.dtype.itemsize * self.count
        narrow = self.space in ("shared", "local") and isinstance(where.base, Register)
        width = lanes.registers[where.base.name].itemsize if narrow else 8
        self.base, self.offset = lanes.read(where.base, f"u{8 * width}"), where.offset

    def addresses(self, chosen: np.ndarray) -> np.ndarray:
        base = self.base if len(self.base) == 1 else self.base[chosen]
        return np.broadcast_to(base.astype(np.int64) + self.offset, chosen.shape)

    def space_of(self, addresses: np.ndarray) -> tuple[str, np.ndarray]:
        """A generic address says which space it is in; those of one access must agree."""
        if self.space is not None:
            return self.space, addresses
        windows = addresses >> WINDOW_SHIFT
        if (windows != windows[0]).any():
            raise MemoryFault(f"addresses in several spaces: {self.this.text}")
        for space, window in WINDOWS.items():
            if windows[0] == window >> WINDOW_SHIFT:
                return space, addresses - window
        return "global", addresses

    def access(self, addresses: np.ndarray, chosen: np.ndarray, values: np.ndarray | None) -> Access:
        lanes, this = self.lanes, self.this
        return Access(addresses, self.size, *lanes.order(chosen), "nc" in this.modifiers, this.text, values)

    def within(self, addresses: np.ndarray, limit: int) -> None:
        if (addresses % self.size).any() or (addresses < 0).any() or (addresses + self.size > limit).any():
            raise MemoryFault(f"offset {int(addresses.max())} of {limit} bytes, or not aligned: {self.this.text}")

    def storage(
        self, space: str, addresses: np.ndarray, chosen: np.ndarray, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The memory of a space that is not global, as numbers, and their places in it."""
        lanes = self.lanes
        if space == "param":
            self.within(addresses, lanes.kernel.param_bytes)
            return _numbers(lanes.params, self.dtype), addresses // self.dtype.itemsize
        held, row = (lanes.shared, lanes.block[chosen]) if space == "shared" else (lanes.local, chosen)
        self.within(addresses, held.shape[1])
        flat = addresses + row * held.shape[1]
        if space == "shared":
            lanes.note_shared(self.access(flat, chosen, values))
        return _numbers(held.reshape(-1), self.dtype), flat // self.dtype.itemsize


def _numbers(storage: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return storage[: len(storage) // dtype.itemsize * dtype.itemsize].view(f"u{dtype.itemsize}")


@instruction("ld")
def load(this: Instruction, lanes: Lanes) -> Execute:
    """From any space to one register or several."""
    what = _Accessed(this, lanes)
    outs = [lanes.write(value, this.type) for value in what.values]

    def read(addresses: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        space, places = what.space_of(addresses)
        if space == "global":
            lanes.memory.note(what.access(places, chosen, None))
            return lanes.memory.load(places, what.dtype.itemsize, what.count).view(what.dtype)
        numbers, first = what.storage(space, places, chosen)
        return numbers[first[:, None] + np.arange(what.count)].view(what.dtype)

    def run(mask: Mask) -> None:
        chosen = lanes_of(mask, lanes.count)
        values = read(what.addresses(chosen), chosen)
        for k, out in enumerate(outs):
            if mask is True:
                put(out, values[:, k], True)
            else:
                out[chosen] = values[:, k]

    return run


@instruction("st")
def store(this: Instruction, lanes: Lanes) -> Execute:
    """From registers or constants to any space but that of the parameters."""
    what = _Accessed(this, lanes)
    kind = f"u{8 * what.dtype.itemsize}"
    sources = [lanes.read(value, kind) for value in what.values]

    def run(mask: Mask) -> None:
        chosen = lanes_of(mask, lanes.count)
        space, places = what.space_of(what.addresses(chosen))
        values = np.stack([np.broadcast_to(s if len(s) == 1 else s[chosen], chosen.shape) for s in sources], 1)
        if space == "global":
            lanes.memory.note(what.access(places, chosen, values))
            lanes.memory.store(places, values)
        elif space == "param":
            raise MemoryFault(f"parameters are read-only: {this.text}")
        else:
            numbers, first = what.storage(space, places, chosen, values)
            numbers[first[:, None] + np.arange(what.count)] = values

    return run


def _nothing(this: Instruction, lanes: Lanes) -> Execute:
    return lambda mask: None


# Hints, and orders of what the machine has in order anyway.
for _opcode in ("prefetch", "prefetchu", "discard", "applypriority", "membar", "fence"):
    instruction(_opcode)(_nothing)


@instruction("createpolicy")
def policy(this: Instruction, lanes: Lanes) -> Execute:
    """A hint to a cache, which only accesses take."""
    out = lanes.write(this.operands[0], "b64")
    return lambda mask: put(out, np.zeros(1, np.uint64), mask)
