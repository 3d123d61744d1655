"""What the text of nvdisasm leaves out of a cubin, an ELF file: the encodings, and the size of a block."""

import math
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")  # after the identification, as <elf.h> has Elf64_Ehdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_SYMBOLS = 2  # SHT_SYMTAB
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little endian
_SIZED = 4  # format of an attribute of .nv.info that has a payload, of the length that follows; others are a word
_THREADS = (0x05, 0x10)  # EIATTR_MAX_THREADS, from launch bounds; EIATTR_REQNTID, the one size that may be launched


@dataclass(frozen=True)
class Section:
    """The bytes of one kernel's code, and of its attributes; ``symbol``: the number by which nvdisasm knows it."""

    code: bytes
    attributes: bytes
    symbol: int

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
    numbers: dict[str, int] = {}  # of sections of code
    symbols: dict[int, int] = {}  # the last one in each section
    for number, section in enumerate(sections):
        begin = strings + section[0]
        name = image[begin : image.index(b"\0", begin)].decode()
        content = image[section[4] : section[4] + section[5]]
        if name.startswith((".text.", ".nv.info.")):
            found[name] = content
        if name.startswith(".text."):
            numbers[name.removeprefix(".text.")] = number
        if section[1] == _SYMBOLS:
            symbols = {symbol[3]: index for index, symbol in enumerate(_SYMBOL.iter_unpack(content))}
    return {name: Section(found[f".text.{name}"], found.get(f".nv.info.{name}", b""), symbols[number])
            for name, number in numbers.items()}  # fmt: skip
