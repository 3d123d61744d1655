"""What is timed, as data: the rows, the most important first, because a budget takes them from the front."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .. import workloads
from ..candidates import RULES
from ..sixteen_bits import BITMAP_BYTES
from ..workloads import Shapes, Workload

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Two elements behind a multiple of 16 bytes: where gradients lie in the buckets of DistributedDataParallel
# (gradient_as_bucket_view), at 8 mod 16 bytes in fp32 and at 4 mod 16 in bf16.
BUCKET = 2
CAPTURES = 6  # graphs of one row, at most, each with memory of its own
COPY_BYTES = 2 * 2**30  # a longer copy moves bytes no faster
STAGED_BYTES = 128  # per parameter, at most: of tensor operations that store in 16 bits where no kernel does it


@dataclass(frozen=True)
class Trick:
    """What a step does besides: how often that reads the gradients once more, and other bytes that it moves."""

    name: str = ""
    reads: int = 0
    beside: float = 0.0  # per parameter


PLAIN = Trick()
CLIP, CENTRALIZE, SLOPE = Trick("max_norm=1", 1), Trick("centralize=True", 1), Trick("slope")
STOCHASTIC, STOCHASTIC_STATES = Trick("rounding=stochastic"), Trick("state_rounding=stochastic")
STOCHASTIC_BOTH = Trick(f"{STOCHASTIC.name}, {STOCHASTIC_STATES.name}")
SPLIT, MIRROR = Trick("master=split", beside=4), Trick("bf16 mirror", beside=2)
CHANGES = Trick("track_changes=True", beside=BITMAP_BYTES)
STORED = (STOCHASTIC, STOCHASTIC_STATES, STOCHASTIC_BOTH, SPLIT, MIRROR, CHANGES)


@dataclass(frozen=True)
class Row:
    """One workload stepped by one rule.

    Attributes:
        work: shapes, dtype and memory format.
        rule: one of bench.candidates.RULES.
        state_dtype: of our states; torch's are of the parameters' dtype.
        keep_probs: of ours; each is a candidate on each backend.
        peers: the candidates that are not ours, see candidates.PEERS.
        param_offset: elements that each parameter lies behind an aligned address.
        grad_offset: the same of the gradients.
        moved: whether gradients lie elsewhere at each step.
        graph: whether steps are replayed from a CUDA graph.
        backward: whether the gradients are made (copied from elsewhere) in the timed step, as in a graph of training.
        trick: what ours does besides.
    """

    work: Workload
    rule: str = "Adam"
    state_dtype: torch.dtype = torch.float32
    keep_probs: tuple[float, ...] = (0.5, 1.0)
    peers: tuple[str, ...] = ("fused",)
    param_offset: int = 0
    grad_offset: int = 0
    moved: bool = False
    graph: bool = False
    backward: bool = False
    trick: Trick = PLAIN

    @property
    def name(self) -> str:
        """All that tells it from other rows."""
        item, states = self.work.dtype.itemsize, self.state_dtype != torch.float32 or self.work.dtype.itemsize == 2
        parts = {
            f"{self.work.name} {NAMES[self.work.dtype]}": True,
            f"{NAMES[self.work.grad_dtype or self.work.dtype]} gradients": self.work.grad_dtype,
            self.rule: True,
            f"{NAMES[self.state_dtype]} states": states,
            "channels_last": self.work.memory_format == torch.channels_last,
            f"parameters at {self.param_offset * item} mod 16 bytes": self.param_offset,
            f"gradients at {self.grad_offset * item} mod 16 bytes": self.grad_offset,
            "moved gradients": self.moved,
            "graph replay": self.graph,
            "gradients made in it": self.backward,
            self.trick.name: self.trick != PLAIN,
            "compiled": "compiled" in self.peers and len(self.peers) == 2,
        }
        return ", ".join(part for part, said in parts.items() if said)

    def bytes_of(self, state_dtype: torch.dtype, trick: Trick) -> int:
        """Least bytes that a fused step with such states and that trick moves."""
        item = self.work.dtype.itemsize
        beside = item * (trick.reads + 2 * self.backward) + trick.beside
        least = RULES[self.rule].traffic_bytes(self.work.dtype, state_dtype, self.work.grad_dtype)
        return int((least + beside) * self.work.numel)

    @property
    def copy_bytes(self) -> int:
        """Bytes of a buffer whose copy, read and written, moves as many bytes as our step, up to COPY_BYTES."""
        return max(min(self.bytes_of(self.state_dtype, self.trick), COPY_BYTES) // 2, 1)

    @property
    def memory_bytes(self) -> int:
        """GPU memory that it takes at most: tensors, states shared by dtype, buffers of the copy, temporaries."""
        item, numel, states = self.work.dtype.itemsize, self.work.numel, RULES[self.rule].states
        tensors = 2 + self.moved + CAPTURES * self.backward
        peers = {"recipe": 5, "foreach": 3, "compiled": states + 1, "casts": 2}
        temporaries = max(peers.get(peer, 1) for peer in self.peers)
        strided = 2 + states if self.work.memory_format == torch.channels_last else 0
        kept = {self.work.dtype, self.state_dtype}
        return (
            numel * (item * (tensors + temporaries) + sum(dtype.itemsize for dtype in kept) * states + 4 * strided)
            + 2 * self.copy_bytes
            + STAGED_BYTES * numel * (self.trick in STORED)
        )

    @property
    def likely_seconds(self) -> float:
        """How long it takes, compilers included; a guess, which a run corrects as it goes."""
        compiled = 25.0 * ("compiled" in self.peers)
        return 4.0 + compiled + self.work.numel / 4e8 + len(self.work.shapes) / 2000


def small(row: Row, extra: Shapes = ()) -> Row:
    """The same of a few small tensors; ``extra`` are appended."""
    shapes = list(dict.fromkeys(row.work.shapes))[:4]
    cut = tuple((min(shape[0], 700),) if len(shape) == 1 else tuple(min(size, 5) for size in shape) for shape in shapes)
    return replace(row, work=replace(row.work, shapes=(*cut, *extra)))


def llama_shapes(layers: int, hidden: int, inner: int, keys: int, vocabulary: int = 0) -> Shapes:
    """A Llama's parameters in module order: attention, gated MLP and two norms a layer; the embedding is tied."""
    layer = ((hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden),
             (inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,))  # fmt: skip
    ends = ((vocabulary, hidden),) if vocabulary else ()
    return (*ends, *layer * layers, (hidden,))


BIG, HUGE = Workload("16M", ((16 * 2**20,),)), Workload("256M", ((256 * 2**20,),))
RESNET50 = replace(workloads.RESNET50, name="ResNet-50")
CHANNELS_LAST = replace(RESNET50, memory_format=torch.channels_last)
OFFLOADED = replace(BIG, grad_dtype=torch.bfloat16)
LLAMA = Workload("Llama 1B", llama_shapes(16, 2048, 8192, 512, 128_256))
LAYERS = Workload("4 layers of Llama 8B", llama_shapes(4, 4096, 14_336, 1024))
MANY, LEGION = (Workload(f"{count:,} tensors of 1,000", ((1000,),) * count) for count in (1000, 10_000))
SWEEP = tuple(
    Workload(f"{numel:,} elements", ((numel,),)) for numel in (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 25 * 10**7)
)
WITHOUT_MASK = ("fused", "foreach")
ALL = (*WITHOUT_MASK, "recipe")
HALF = (0.5,)


def low(work: Workload, rule: str = "Adam", state_dtype: torch.dtype = torch.bfloat16, **more: object) -> Row:
    """A row of bf16 parameters, whose states are bf16, too, or fp32."""
    return replace(Row(replace(work, dtype=torch.bfloat16), rule, state_dtype), **more)  # type: ignore[arg-type]


def in_sixteen_bits() -> Iterator[Row]:
    """Rows of what is stored in 16 bits otherwise than rounded to nearest, beside the same without."""
    fp32, bf16 = torch.float32, torch.bfloat16
    yield low(BIG, state_dtype=fp32, keep_probs=HALF, trick=STOCHASTIC)
    yield low(BIG, keep_probs=HALF, trick=STOCHASTIC_BOTH)
    yield low(BIG, state_dtype=fp32, keep_probs=HALF, trick=SPLIT)
    yield Row(BIG, state_dtype=bf16, keep_probs=HALF, trick=STOCHASTIC_STATES)
    yield Row(OFFLOADED, "AdamW", keep_probs=HALF, peers=("casts",), trick=MIRROR)
    yield low(BIG, state_dtype=fp32, keep_probs=HALF, trick=CHANGES)


def in_order() -> Iterator[Row]:
    """All rows, the most important first."""
    fp32 = torch.float32
    rules = {"SGD+momentum": WITHOUT_MASK, "AMSGrad": WITHOUT_MASK, "RMSprop": ("foreach",)}
    yield Row(BIG, peers=(*ALL, "compiled"))
    yield Row(RESNET50, peers=ALL)
    yield low(BIG, state_dtype=fp32, peers=ALL)
    yield low(BIG, peers=WITHOUT_MASK)
    yield Row(MANY, peers=ALL)
    yield from (Row(work, grad_offset=BUCKET) for work in (BIG, RESNET50))
    yield from (Row(BIG, rule, peers=peers) for rule, peers in rules.items())
    yield from (Row(work, graph=True) for work in (RESNET50, MANY))
    yield from (Row(work, moved=True) for work in (RESNET50, MANY))
    yield Row(CHANNELS_LAST)
    yield from in_sixteen_bits()
    yield Row(HUGE, peers=ALL)
    yield low(LLAMA, state_dtype=fp32)
    yield low(LLAMA)
    yield from (Row(work, keep_probs=HALF, trick=CLIP, peers=("fused", "by hand")) for work in (BIG, RESNET50))
    yield Row(RESNET50, keep_probs=HALF, trick=CENTRALIZE, peers=("fused", "by hand"))
    yield from (Row(work, keep_probs=HALF, trick=SLOPE) for work in (BIG, RESNET50))
    yield Row(RESNET50, graph=True, backward=True)
    yield from (low(BIG, rule, dtype, peers=peers) for rule, peers in rules.items() for dtype in (fp32, torch.bfloat16))
    yield from (Row(work, keep_probs=HALF) for work in SWEEP)
    yield from (low(BIG, state_dtype=dtype, grad_offset=BUCKET) for dtype in (fp32, torch.bfloat16))
    yield Row(BIG, param_offset=BUCKET, grad_offset=BUCKET)
    yield Row(LAYERS, peers=WITHOUT_MASK)
    yield low(LAYERS)
    yield Row(LEGION, peers=WITHOUT_MASK)
    yield from (Row(LEGION, keep_probs=HALF, moved=moved, graph=not moved) for moved in (True, False))
    yield from (Row(RESNET50, rule, peers=peers) for rule, peers in rules.items())
    yield from (low(RESNET50, state_dtype=dtype) for dtype in (fp32, torch.bfloat16))
    yield low(CHANNELS_LAST)
    yield from (low(HUGE, state_dtype=dtype) for dtype in (fp32, torch.bfloat16))
    yield from (Row(HUGE, rule, peers=peers[:1]) for rule, peers in rules.items())
    yield Row(RESNET50, peers=("fused", "compiled"))
    yield Row(BIG, "SGD+momentum", peers=("fused", "compiled"))


ROWS = {row.name: row for row in in_order()}


def summary(row: Row) -> str:
    """Name, tensors and parameters, for a list."""
    count = len(row.work.shapes)
    return f"{row.name}: {count:,} tensor{'s' * (count > 1)}, {row.work.numel:,} parameters"
