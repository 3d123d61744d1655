"""Between memory and arithmetic: pointers to stored values, and their conversion to and from the compute type."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


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
    """The nearest value that can be stored, ties to even. The interpreter's cast to bfloat16 would truncate."""
    if STORAGE == tl.bfloat16 and INTERPRETED:
        bits = real.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        stored = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    elif STORAGE == tl.bfloat16:
        stored = real.to(tl.bfloat16).to(tl.uint16, bitcast=True)
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
