"""Addresses of one call's tensors, gathered once and reused while they stay: what a fused step over a list reads.

To hand a tensor to an op costs about a microsecond, which for a model of many small tensors is more than the step
itself. A row of the table is one parameter: addresses of the parameter, the gradient, its states (those the variant
has, then zeros) and the step count, the number of elements, the parameter's index, the codes of the two dtypes, the
first of its chunks, of the slices whose mean its gradient loses, the length (0: none), the first, and the first of
their partial sums, the address of its scalar state (0: none), what is stored beside them (call.Storage; 0: none),
the codes of the gradient's and the mirror's dtype, and, of a parameter one dimension of which lies innermost as
channels do in channels_last, what slab_of says (0: contiguous), and last the index map (zeros: no shard). On a GPU the
table, the chunks and the scratch of the step live on the device.
"""

from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

import numpy
import torch
from torch import Tensor

from .call import BESIDE, StepCall, slice_partials
from .host import addresses
from .keep import LANES, TILE
from .layouts import Takes, columns_beside, fits_table, slab_of
from .operands import check_operands, is_staged
from .storage import DTYPE_CODES
from .streams import Streams, is_capturing
from .watched import Columns, Watched

PARAM, GRAD, STATE, STEP, NUMEL, PARAM_INDEX, PARAM_DTYPE, STATE_DTYPE, FIRST_CHUNK = 0, 1, 2, 5, 6, 7, 8, 9, 10
SLICE_LENGTH, FIRST_SLICE, FIRST_PARTIAL, SCALAR_STATE = 11, 12, 13, 14
MAX_STATES, MAX_SCALAR_STATES = STEP - STATE, 1
MIRROR = SCALAR_STATE + MAX_SCALAR_STATES  # and the others of BESIDE
GRAD_DTYPE = MIRROR + len(BESIDE)
MIRROR_DTYPE, SLAB, CHANNELS, BASE, RUN, PITCH, COLUMNS = range(GRAD_DTYPE + 1, GRAD_DTYPE + 8)
CHUNK = 8192  # elements that one block steps; csrc/core/slope.h
MOST_COUNTED = 2**32 * TILE // LANES  # elements whose Philox calls 32 bits count
ACCESS = 16  # bytes a thread moves at once; csrc/core/slope.h
SLOPE_COLUMNS = 256  # csrc/core/slope.h
PREPARED_BYTES = 128  # scratch of a call, and of each of its tensors; csrc/cuda/step.h
HOST = torch.device("cpu")


_CAPTURED = "captured"
# Copies int64 words from the CPU to the device of its first argument, which is contiguous or a column of a table.
Upload = Callable[[Tensor, Tensor], None]


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=HOST)


def _keep_tiles(rows: Tensor) -> bool:
    """Whether the tiles of all tensors follow each other as tiles of the whole parameters, as in most of FSDP's shards.

    Kernels without maps draw for these. Triton's count the calls of a chunk by 32 bits, which must not overflow in it.
    """
    numel, base, run, pitch = rows[:, NUMEL], *rows[:, BASE:].unbind(1)
    end = base + numel
    follow = (base % TILE == 0) & ((run == 0) | (run >= numel) | (run == pitch))
    counted = (base % CHUNK == 0) | (base // MOST_COUNTED == (end + CHUNK) // MOST_COUNTED)
    return bool((follow & counted).all())


class AddressTable:
    """The table of one call, and what must still hold for it to be used by the next.

    Holds the parameters and states it points to, so that no address can be taken by another tensor meanwhile;
    gradients, which come and go, are looked up at every step. ``rows`` is None where only the tensors themselves say
    enough.
    """

    has_slabs = False  # whether some parameters lie as slab_of says
    is_mapped = False  # whether kernels must know where elements lie: of these, or of shards by more than a first tile
    staged: Hashable = None  # how parameters are stored otherwise than they are stepped; None where none is

    def __init__(
        self,
        call: StepCall,
        upload: Upload | None,
        takes: Takes | None = None,
        guarded: bool = True,
        fits: bool | None = None,
    ) -> None:
        check_operands(call)
        self._upload, self._device = upload, call.params[0].device
        lists = self._lists(call)
        fits = fits_table(call, takes) if fits is None else fits
        self.watched = Watched(lists, call.grads, guarded=fits and guarded)
        self._indices, self._maps, self._how = call.param_indices, call.index_maps, (call.centralize, call.rounds)
        self.slices = self.partials = 0  # of all tensors
        self.rows: Any = None
        self.chunk_tensors: Any = None  # this and what follows: on a device, if the table lies there
        self.prepared: Any = None
        self.slice_scratch: Any = None
        self._slope_scratch: Any = None
        self._uploaded_grads: Any = None  # addresses, on the host, that the device's table has
        self._integers: dict[tuple[int, ...], Tensor] = {}
        self._streams = Streams()  # that have read this table
        self.kernels: dict[Hashable, Hashable] = {}  # that are launched, by what is asked for: see device.py
        self._apart: dict[Hashable, AddressTable] = {}  # of copies, see apart
        self.is_mapped = call.has_shards
        if fits:
            self._fill(call, *map(addresses, lists))

    @staticmethod
    def _lists(call: StepCall) -> Columns:
        own = [call.params, call.steps, *call.states.values(), *call.scalar_states.values()]
        return own if call.storage is None else own + columns_beside(call)

    def _fill(self, call: StepCall, params: list[int], steps: list[int], *all_states: list[int]) -> None:
        used = [column for column in call.states.values() if column]
        states, others = all_states[: len(call.states)], all_states[len(call.states) :]
        numel = _integers([param.numel() for param in call.params])
        chunks = (numel + CHUNK - 1) // CHUNK
        self._param_size = call.params[0].element_size()
        self._grad_size = max(map(Tensor.element_size, call.grads))
        param_code, grad_codes = DTYPE_CODES[call.params[0].dtype], [DTYPE_CODES[grad.dtype] for grad in call.grads]
        self.grad_code = grad_codes[0] if len({*grad_codes}) == 1 else None  # None: they have several
        state_code = DTYPE_CODES[used[0][0].dtype] if used else param_code
        rows = torch.zeros(len(call.params), COLUMNS, dtype=torch.int64, device=HOST)
        closed_up = [addresses for addresses in states if addresses]
        for number, column in enumerate([params, self.watched.grads, *closed_up]):
            rows[:, number] = _integers(column)
        for number, column in enumerate(others[: len(call.scalar_states)], SCALAR_STATE):
            rows[:, number] = _integers(column)
        rows[:, STEP] = _integers(steps)
        rows[:, NUMEL] = numel
        rows[:, PARAM_INDEX] = _integers(call.param_indices)
        if call.has_shards:
            rows[:, BASE:] = _integers(call.map_integers()).view(-1, COLUMNS - BASE)
            self.is_mapped = not _keep_tiles(rows)
        rows[:, PARAM_DTYPE], rows[:, STATE_DTYPE] = param_code, state_code
        rows[:, GRAD_DTYPE] = _integers(grad_codes)
        rows[:, FIRST_CHUNK] = chunks.cumsum(0) - chunks
        if is_staged(call):
            self._fill_beside(call, rows)
        for number, param in enumerate(call.params):
            if not param.is_contiguous():
                rows[number, SLAB], rows[number, CHANNELS] = slab_of(param)
                self.has_slabs = self.is_mapped = True
        self.rows = self._host_rows = rows
        if call.centralize:
            self._fill_slices(call, rows)
        state_mask = sum(1 << k for k, column in enumerate(call.states.values()) if column)
        self.codes = (state_mask, param_code, state_code)
        if self._upload is not None:
            self.place(call.params[0].device, self._upload)

    def _fill_beside(self, call: StepCall, rows: Tensor) -> None:
        for number, name in enumerate(BESIDE, MIRROR):
            column = getattr(call.storage, name, None) or ()
            for row, tensor in zip(rows, column, strict=False):
                row[number] = 0 if tensor is None else tensor.data_ptr()
                if tensor is not None and name == "mirrors":
                    row[MIRROR_DTYPE] = DTYPE_CODES[tensor.dtype]
        kinds = [rows[:, MIRROR : MIRROR + len(BESIDE)] != 0, rows[:, GRAD_DTYPE : MIRROR_DTYPE + 1]]
        self.staged = frozenset(map(tuple, torch.cat(kinds, 1).tolist()))

    def _fill_slices(self, call: StepCall, rows: Tensor) -> None:
        lengths = _integers(list(map(call.slice_length, call.params)))
        slices = rows[:, NUMEL] // lengths.clamp(min=1) * (lengths != 0)
        partials = slices * _integers(list(map(slice_partials, lengths.tolist())))
        rows[:, SLICE_LENGTH] = lengths
        rows[:, FIRST_SLICE] = slices.cumsum(0) - slices
        rows[:, FIRST_PARTIAL] = partials.cumsum(0) - partials
        self.slices, self.partials = int(slices.sum()), int(partials.sum())

    def place(self, device: torch.device, upload: Upload) -> None:
        """Copy the table to a device, with the list of the chunks' tensors and the scratch of a step."""
        self._upload = upload
        self.rows = torch.empty_like(self._host_rows, device=device)
        upload(self.rows, self._host_rows)
        self._uploaded_grads = self._host_rows[:, GRAD].clone()
        tensors = torch.repeat_interleave((self._host_rows[:, NUMEL] + CHUNK - 1) // CHUNK).int()
        # Whole words; an odd one out is never read.
        pairs = torch.zeros(len(tensors) // 2 + 1, 2, dtype=torch.int32, device=HOST)
        pairs.view(-1)[: len(tensors)] = tensors
        words = torch.empty(len(pairs), dtype=torch.int64, device=device)
        upload(words, pairs.view(torch.int64).flatten())
        self.chunk_tensors = words.view(torch.int32)[: len(tensors)]
        self.prepared = torch.empty(PREPARED_BYTES * (1 + len(self.rows)), dtype=torch.uint8, device=device)
        if self.slices:
            size = (self.slices + self.partials) * max(self._param_size, 4)  # the partial sums, then the means
            self.slice_scratch = torch.empty(size, dtype=torch.uint8, device=device)

    def integers(self, values: tuple[int, ...]) -> Tensor:
        """These int64 on the table's device, which are kept as long as the table is; the current stream reads them."""
        self.use_on_current_stream()
        if values not in self._integers:
            own = torch.tensor(values, dtype=torch.int64, device=HOST)
            if self._upload is not None:  # which no capture forbids, as it does copies
                host, own = own, torch.empty(len(values), dtype=torch.int64, device=self._device)
                self._upload(own, host)
            self._integers[values] = self._streams.add(own)
        return self._integers[values]

    def apart(
        self, name: Hashable, copies: StepCall, upload: Upload, fits: bool | None = None
    ) -> "AddressTable | None":
        """The table, on the device, of a call of copies that is made anew at every step; as address_table's.

        It holds none of them, so that their memory is others' between steps: of a large transposed parameter it is as
        much as parameter, gradient and states have. But they mostly lie where those before did. So the memory of the
        table before is used again, and the columns in which the two differ are all that is uploaded.
        """
        table = AddressTable(copies, None, guarded=False, fits=fits)
        table.watched = Watched([], [])
        if table.rows is None:
            return None
        before = self._apart.pop(name, None)  # an interrupted upload leaves it with neither's addresses
        if before is None or not table._takes_place_of(before, upload):
            table.place(copies.params[0].device, upload)
        self._apart[name] = table
        return table

    def _takes_place_of(self, before: "AddressTable", upload: Upload) -> bool:
        """Upload what differs to where an earlier table is; whether that has room for this one."""
        own, old = self._host_rows, before._host_rows
        sizes = [(t.slices, t.partials, t._param_size, t._grad_size, len(t._host_rows)) for t in (self, before)]
        if sizes[0] != sizes[1] or not torch.equal(own[:, NUMEL], old[:, NUMEL]):
            return False
        self.rows, self.chunk_tensors, self.prepared = before.rows, before.chunk_tensors, before.prepared
        self.slice_scratch, self._slope_scratch, self._streams = (
            before.slice_scratch, before._slope_scratch, before._streams
        )  # fmt: skip
        self._upload, self._integers = before._upload, before._integers
        for column in (own != old).any(0).nonzero().flatten().tolist():
            upload(self.rows[:, column], own[:, column].contiguous())
        return True

    def use_on_current_stream(self) -> None:
        """Keep the table's memory, should it be dropped, from others until the current stream has done with it."""
        own = self.rows, self.chunk_tensors, self.prepared, self.slice_scratch, self._slope_scratch
        self._streams.use(self._device, chain(own, self._integers.values()))

    def slope_scratch(self) -> Tensor:
        """Device memory for the partial sums of a slope (csrc/core/slope.h), kept when it was first asked for.

        A captured graph has its own, which others may use after the launches: it is too much to be kept for each.
        """
        if self._slope_scratch is not None and not is_capturing(self.rows):
            return self._slope_scratch
        chunks = len(self.chunk_tensors)
        units = chunks * CHUNK // 8 * max(self._param_size, self._grad_size) // ACCESS
        size = units * max(self._param_size, 4) + 8 * (chunks + SLOPE_COLUMNS)
        scratch = torch.empty(size, dtype=torch.uint8, device=self.rows.device)
        if not is_capturing(self.rows):
            self._slope_scratch = self._streams.add(scratch)
        return scratch

    def keep_for_graph(self) -> None:
        """A graph will read this table: nothing is kept that it does not read."""
        for table in (self, *self._apart.values()):
            table._slope_scratch = None

    def holds(self, call: StepCall) -> bool:
        """Whether the table holds for this call; gradients that have moved are entered."""
        try:
            return self._update(call)
        except RuntimeError:  # a sparse or opaque gradient does not say how it lies: checking it tells what is wrong
            return False

    def gradient_slot(self, number: int) -> int:
        """Where on the host the address of a parameter's gradient is."""
        return self._host_rows.data_ptr() + (number * COLUMNS + GRAD) * self._host_rows.element_size()

    def upload_gradients(self) -> None:
        """Take the addresses of the gradients from the host's table to the device's, if it has others."""
        if self._upload is None:
            return
        own, uploaded = self._host_rows[:, GRAD].clone(), self._uploaded_grads
        if uploaded is None or not torch.equal(own, uploaded):
            self._uploaded_grads = None  # should the upload be interrupted
            self._upload(self.rows[:, GRAD], own)
            self._uploaded_grads = own

    def _update(self, call: StepCall) -> bool:
        if not (
            self._indices == call.param_indices
            and {*map(type, call.param_indices)} <= {int}  # True and 1.0 are equal to 1
            and self._maps == call.index_maps
            and self._how == (call.centralize, call.rounds)
            and self.watched.are_in(self._lists(call))
        ):
            return False
        if self.rows is None:
            return self.watched.are_at(call.grads)
        before = self.watched.grads
        if not self.watched.hold(call.grads):
            return False
        grads = self.watched.grads
        if grads != before:
            self._host_rows.numpy()[:, GRAD] = numpy.array(grads, dtype=numpy.int64)
            self.upload_gradients()
        return True


def address_table(call: StepCall, upload: Upload | None = None, takes: Takes | None = None) -> AddressTable | None:
    """The table of ``call``, or None where only the tensors say enough (see fits_table); all of them are checked.

    With ``upload`` it lies on the parameters' device, with what a step needs there; else on the CPU, alone. ``takes``
    is asked where the call is one that else is staged, when its table is made; whatever it says must follow from the
    tensors, and from what an optimizer does not change.

    Raises:
        ValueError, TypeError: an operand is not what the kernels take it for.
    """
    if call.tables is None or torch.compiler.is_compiling():
        check_operands(call)
        return None
    table: Any = call.tables.pop(call.table_key, None)
    if table is None or not table.holds(call):
        apart = {} if table is None else table._apart
        table = AddressTable(call, upload, takes)
        table._apart = apart
    elif table.rows is None:
        check_operands(call)  # which a table without rows does not vouch for
    if is_capturing(call.params[0]):
        # The graph will be replayed with this very table: no later step may find it and enter other gradients.
        table.keep_for_graph()
        call.tables.setdefault(_CAPTURED, []).append(table)
    else:
        call.tables[call.table_key] = table
    call.kept = table
    summed_apart = table.has_slabs or (table.staged and upload is not None)
    if table.rows is None or (call.sums is not None and summed_apart):
        return None  # sums of slabs are in the order of indices; on a device staged.py has those of the stored
    return table


def ask_for(tables: dict[Hashable, Any]) -> None:
    """Ask for the host's memory that a step through these tables will look at, see watched.py."""
    for table in tables.values():
        if isinstance(table, AddressTable):
            table.watched.ask()


def forget(tables: dict[Hashable, Any], keep: AbstractSet[Hashable] = frozenset()) -> None:
    """Drop the other tables, and what they hold alive; not those that captured graphs read."""
    for key in tables.keys() - {_CAPTURED} - keep:
        del tables[key]
