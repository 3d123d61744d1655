"""The text of PTX as kernels of basic blocks. Knows the grammar, and no instruction but those that end a block."""

import re

from .kernels import (
    BARRIERS,
    BRANCHES,
    ENDS,
    SIZES,
    WARP_WIDE,
    Address,
    Block,
    Immediate,
    Instruction,
    Kernel,
    Operand,
    Param,
    Register,
    Symbol,
    UnknownPtx,
)

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"^[ \t]*(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$.]+)", re.MULTILINE)
_MODULES_SHARED = re.compile(r"^\.shared\s[^;]*?([\w$]+)\[\d+\];\n?", re.MULTILINE)  # of a function with static memory
_EXTERN = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]")
_TARGET = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)
_PARAM = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.([busf]\d+)\s+(?:\.ptr\s+)?(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?"
                    r"([\w$]+)(?:\[(\d+)\])?\s*$")  # fmt: skip
_STORAGE = re.compile(r"\.(shared|local)\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$")
_LABEL = re.compile(r"([\w$]+):(?!:)")
_THREADS = re.compile(r"\.(maxntid|reqntid)\s+(\d+)(?:\s*,\s*1)*\s*$", re.MULTILINE)
_STATEMENT = re.compile(r"\s*(?:([\w$]+:(?!:))|([{}])|([^;]*);)", re.DOTALL)
_IGNORED = re.compile(r"^[ \t]*\.(?:loc|file)\b[^\n]*", re.MULTILINE)
_IMMEDIATE = re.compile(r"-?\d|true$|false$")


def entries(text: str) -> dict[str, str]:
    """The text of each kernel by its name, with what stands before the first, as far as it refers to that."""
    found = list(_ENTRY.finditer(text))
    head = text[: found[0].start()] if found else ""
    ends = [match.start() for match in found[1:]] + [len(text)]

    def head_of(entry: str) -> str:
        return _MODULES_SHARED.sub(lambda match: match[0] if match[1] in entry else "", head)

    entries = {match[1]: text[match.start() : end] for match, end in zip(found, ends, strict=True)}
    return {name: head_of(entry) + entry for name, entry in entries.items()}


def target(text: str) -> str:
    """What the text is for: "sm_90"."""
    match = _TARGET.search(text)
    if match is None:
        raise UnknownPtx("no .target")
    return match[1]


def kernel(text: str) -> Kernel:
    """The kernel of one of :func:`entries`."""
    text = _IGNORED.sub("", _COMMENT.sub("", text))
    entry = _ENTRY.search(text)
    if entry is None:
        raise UnknownPtx(f"no .entry in {text[:80]!r}")
    opened = text.index("{", entry.end())
    head, body = text[entry.end() : opened], text[opened + 1 : _closing(text, opened)]
    listed, _, attributes = head.partition("(")[2].partition(")")
    threads = _THREADS.search(attributes)
    made = Kernel(entry[1], _params(listed), threads and int(threads[2]), bool(threads and threads[1] == "reqntid"),
                  externs=tuple(_EXTERN.findall(text[: entry.start()])))  # fmt: skip
    _Body(made).read("".join(match[0] for match in _MODULES_SHARED.finditer(text[: entry.start()])) + body)
    return made


def _closing(text: str, opened: int) -> int:
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, opened):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise UnknownPtx("a { that nothing closes")


def _params(text: str) -> list[Param]:
    params, end = [], 0
    for line in filter(None, map(str.strip, text.split(","))):
        match = _PARAM.match(line)
        if match is None:
            raise UnknownPtx(f"parameter {line}")
        size = SIZES[match[2][1:]]
        offset = -(-end // int(match[1] or size)) * int(match[1] or size)
        params.append(Param(match[3], offset, size * int(match[4] or 1)))
        end = offset + params[-1].size
    return params


class _Body:
    """Reads what stands in a kernel's braces."""

    def __init__(self, made: Kernel) -> None:
        self.made, self.scopes, self.ranges, self.count = made, [], {}, 0
        self.block = Block(None)

    def read(self, text: str) -> None:
        position = 0
        while match := _STATEMENT.match(text, position):
            position = match.end()
            if match[1]:
                self._begin(match[1][:-1])
            elif match[2]:
                self._scope(match[2])
            elif match[3].strip():
                self._statement(" ".join(match[3].split()))
        if text[position:].strip():
            raise UnknownPtx(f"no end of {text[position:][:80].strip()!r}")
        self._begin(None)

    def _begin(self, label: str | None) -> None:
        if self.block.instructions or self.block.label:
            self.made.blocks.append(self.block)
        self.block = Block(label)

    def _scope(self, brace: str) -> None:
        if brace == "{":
            self.scopes.append({})
        else:
            self.scopes.pop()

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif match := _STORAGE.match(text):
            self._variable(match[1], int(match[2]), match[3], int(match[4]))
        elif text.startswith(".") and not text.startswith(".pragma"):
            raise UnknownPtx(text)
        elif not text.startswith("."):
            self._instruction(text)

    def _registers(self, text: str) -> None:
        _, kind, names = text.split(None, 2)
        for name in map(str.strip, names.split(",")):
            if name.endswith(">"):
                self.ranges[name[: name.index("<")]] = kind[1:]
            elif self.scopes:
                self.count += 1
                self.scopes[-1][name] = f"{name}#{self.count}"
                self.made.registers[f"{name}#{self.count}"] = kind[1:]
            else:
                self.made.registers[name] = kind[1:]

    def _variable(self, space: str, align: int, name: str, size: int) -> None:
        begin = -(-getattr(self.made, f"{space}_bytes") // align) * align
        getattr(self.made, space)[name] = begin
        setattr(self.made, f"{space}_bytes", begin + size)

    def _instruction(self, text: str) -> None:
        guard, negated, rest = None, False, text
        if text.startswith("@"):
            word, rest = text[1:].split(None, 1)
            negated, guard = word.startswith("!"), self._register(word.lstrip("!"))
        word, _, operands = rest.partition(" ")
        opcode, *modifiers = word.split(".")
        read = tuple(self._operand(part) for part in split(operands))
        made = Instruction(text, opcode, tuple(modifiers), read, guard, negated)
        if opcode in BARRIERS or opcode in WARP_WIDE:
            self._begin(None)
            self.block.waits = "block" if opcode in BARRIERS and modifiers[0] != "warp" else "warp"
        self.block.instructions.append(made)
        if opcode in BRANCHES or opcode in ENDS or opcode in BARRIERS or opcode in WARP_WIDE:
            self._begin(None)

    def _register(self, name: str) -> Register:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        if name not in self.made.registers:
            kind = self.ranges.get(name.rstrip("0123456789"))
            if kind is None:
                raise UnknownPtx(f"register {name}")
            self.made.registers[name] = kind
        return Register(name)

    def _is_register(self, name: str) -> bool:
        return (name in self.made.registers or name.rstrip("0123456789") in self.ranges
                or any(name in scope for scope in self.scopes))  # fmt: skip

    def _operand(self, text: str) -> Operand:
        if text[0] == "[":
            base, plus, offset = text[1:-1].strip().partition("+")
            return Address(self._operand(base.strip()), int(offset.strip(), 0) if plus else 0)
        if text[0] == "{":
            return tuple(self._operand(part) for part in split(text[1:-1]))
        if "|" in text:
            return tuple(self._operand(part.strip()) for part in text.split("|"))
        if self._is_register(text):
            return self._register(text)
        if text[:2].lower() in ("0f", "0d"):
            return Immediate(int(text[2:], 16), 4 if text[1] in "fF" else 8)
        if _IMMEDIATE.match(text):
            return Immediate({"true": 1, "false": 0}[text] if text in ("true", "false") else int(text.rstrip("U"), 0))
        return Symbol(text)


def split(text: str) -> list[str]:
    """Operands at their commas, those in braces and brackets together."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return [part for part in [*parts, text[begin:].strip()] if part]
