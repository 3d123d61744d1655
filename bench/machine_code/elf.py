"""What the text of nvdisasm leaves out of a cubin, an ELF file: the encodings, and the size of a block."""

import math
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")  # after the identification, as <elf.h> has Elf64_Ehdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little endian
_SIZED = 4  # format of an attribute of .nv.info that has a payload, of the length that follows; others are a word
_THREADS = (0x05, 0x10)  # EIATTR_MAX_THREADS, from launch bounds; EIATTR_REQNTID, the one size that may be launched


@dataclass(frozen=True)
class Section:
    """The bytes of one kernel's code, and of its attributes."""

    code: bytes
    attributes: bytes

    def encoding(self, index: int) -> int:
        """The upper half of an instruction's 128 bits."""
        (upper,) = struct.unpack_from("<Q", self.code, 16 * index + 8)
        return int(upper)

    def threads(self) -> int | None:
        """The most threads of a block; None if the kernel does not say."""
        at = 0
        while at + 4 <= len(self.attributes):
            kind, attribute, size = struct.unpack_from("<BBH", self.attributes, at)
            at += 4
            if kind == _SIZED and attribute in _THREADS:
                sizes: tuple[int, ...] = struct.unpack_from("<3I", self.attributes, at)
                return math.prod(sizes)
            at += size if kind == _SIZED else 0
        return None


def kernels(image: bytes) -> dict[str, Section]:
    """Every kernel of a cubin by its mangled name. ValueError if it is none."""
    if not image.startswith(_MAGIC):
        raise ValueError(f"not a cubin: it begins with {image[:6]!r}")
    header = _HEADER.unpack_from(image)
    table, count, names = header[5], header[11], header[12]
    sections = [_SECTION.unpack_from(image, table + number * header[10]) for number in range(count)]
    strings = sections[names][4]
    found: dict[str, bytes] = {}
    for section in sections:
        begin = strings + section[0]
        name = image[begin : image.index(b"\0", begin)].decode()
        if name.startswith((".text.", ".nv.info.")):
            found[name] = image[section[4] : section[4] + section[5]]
    return {name.removeprefix(".text."): Section(code, found.get(f".nv.info.{name.removeprefix('.text.')}", b""))
            for name, code in found.items() if name.startswith(".text.")}  # fmt: skip
