"""The base of all optimizers: the constructor, and the step, which hands its work to a backend. No arithmetic."""

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..step.backends import prepare
from ..step.call import StepCall
from ..step.keep import keep_mask
from ..step.operands import MAX_STEP, is_wrapper
from ..step.operands import check_param as check_operand
from ..step.table import ask_for, forget
from .arguments import OF_GROUP, OF_OPTIMIZER, SharedArguments, check_number, completed
from .checks import as_python, as_seed, check_count, of_scaler, one_of
from .clipping import Clipping, Places, places
from .compiled import begin_graph, step_in_graph
from .groups import Group, Hyper
from .identity import IDENTITY, by_param, present_identities
from .kept import KeptStates, held
from .local_parts import localize
from .measured import MeasuredOptimizer
from .observed import quick
from .parts import PLAIN, Part, only_key, split
from .repeats import Repeats
from .shards import gradients, index_map, is_dtensor, local, placed
from .sums import StepSums


class MaskedOptimizer(MeasuredOptimizer):
    """Base of the drop-in classes: one fused step per parameter group, with learning rate dropout inside.

    Attributes:
        allow_negative_grad_weight: whether steps accept gradient weights below 0, which ascend the loss; False until it
            is set, by :class:`lrtricks_fused.GradientWeight` or by hand. Copies keep it; loading a checkpoint with such
            a weight sets it.
    """

    max_norm: float | None = None  # which earlier versions have not pickled
    _serial: str  # see compiled.enter

    def __init__(self, params: Iterable, defaults: Group, **shared: Unpack[SharedArguments]) -> None:
        arguments = completed(type(self), shared)
        for name in OF_OPTIMIZER:
            setattr(self, name, as_python(arguments[name]))
        self._check_attributes()
        self._tables: dict[Hashable, Any] = {}
        self._maps = {}
        self._checked_groups = {}
        self._measured: dict[str, Tensor] = {}  # by the last step
        self._repeats = Repeats()
        self._slopes: dict[torch.device, Tensor] | None = None  # what each step adds its slope to
        defaults = {**defaults, **{name: arguments[name] for name in OF_GROUP}}
        self._check_group(defaults)  # as torch.optim, also where every group overrides them
        self._names, self._master = by_param(arguments["names"]), arguments["master"]
        one_of(None, "split")("master", self._master)
        self._mirrors, self._changes = {}, {}
        super().__init__(params, defaults)
        self._names = None  # an optimizer does not hold the model
        self._check_storage()
        dtype = self.state_dtype
        takes = any(p.dtype.itemsize == 2 or self._state_dtype_of(p) != p.dtype for p in self._params())
        if dtype is not None and not takes:
            text = f"state_dtype={dtype} is of no effect: no parameter has states of another dtype than its own"
            warnings.warn(text, stacklevel=3)

    def _patch_step_function(self) -> None:
        plain: Any = type(self).step
        super()._patch_step_function()
        if not getattr(plain, "hooked", False):
            type(self).step = quick(plain, type(self).step, plain is MaskedOptimizer.step)  # type: ignore[method-assign]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """As torch's: with ``fused=True`` a step unscales and skips by itself, without waiting for the device."""
        return bool(self.defaults.get("fused"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            ValueError, TypeError: a hyper-parameter or a gradient is invalid; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step()
        else:
            with torch._C.DisableTorchFunctionSubclass():  # plain subclasses are stepped as tensors
                self._step()
        return loss

    def _step(self) -> None:
        """The step, after the closure."""
        if not torch.compiler.is_compiling():
            if self._repeats.step(self):
                return
            ask_for(self._tables)
            for parts in self._maps.values():
                parts.ask()
        elif torch.compiler.is_dynamo_compiling():  # and not torch.export alone
            begin_graph(self._serial)
        self._take([part for group in self.param_groups for part in self._gather(group)])

    def _begin_states(self) -> None:
        """Make missing states, and bitmaps, of parameters that have a gradient, unless their first step is another.

        Raises:
            ValueError, TypeError: a group is invalid; none was made then.
        """
        for group in self.param_groups:
            self._check_group(group)
        identities = present_identities(self.param_groups, self.state)
        for group in self.param_groups:
            if self._first_hyper(group) == self._hyper(group):
                wanted = [name for name, used in self._state_names(group).items() if used]
                for param in group["params"]:
                    if param.grad is not None:
                        self._prepare_changes(param)
                        new = {IDENTITY: identities[param], **self._new_states(group, param, wanted)}
                        self.state[param].update({**new, **self.state[param]})

    def _take(self, work: list[Part], whole: bool = True) -> None:
        """The step of these parts: every call is built and checked before the first one runs.

        Tables and maps of others go where this is the whole step, unless nothing is stepped: see in_backward.py.
        """
        new: dict[Tensor, dict[str, Any]] = {}
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._check_attributes()
        summed = StepSums(self._slopes, self.track_metrics) if self._wants_sums() else None
        kept = self._kept_states() if whole and not compiling else None
        calls = [call for part in work for call in self._calls(part, new, kept, summed)]
        at = self._places(calls, work)
        if not compiling:
            self._repeats.forget()
            clipping = None if at is None else Clipping(self.max_norm, calls, at, self._params())
            backends = prepare(self.backend, calls)
            norm = None if clipping is None else clipping.measure(backends)
        for param, states in new.items():
            self.state[param].update(states)
        if compiling:
            step_in_graph(self, calls, at)
            return self._enter(self._finish(work, summed))
        for backend, call in zip(backends, calls, strict=True):
            backend.step(call)
        sums = self._finish(work, summed)
        if not whole:
            return
        self._measured.clear()  # a dict, because torch.compile drops what is set on an optimizer
        if norm is not None:
            self._measured["grad_norm"] = norm
        self._enter(sums)
        if not calls:
            return
        if len(self._tables) > len(calls):
            forget(self._tables, {call.table_key for call in calls})
        if kept is not None and len(kept) > len(work):
            kept.forget_others({part.table_key for part in work})
        if self._maps and not self._maps.keys() <= (used := {call.table_key for call in calls}):
            forget(self._maps, used)
        if not new:
            self._repeats.note(self, work, calls, backends, clipping, summed)

    def _places(self, calls: list[StepCall], work: list[Part]) -> Places | None:
        """Where clipping has the calls' parameters; None where nothing is clipped."""
        if self.max_norm is None:
            return None
        groups = {id(part.checked) for part in work}  # of a dict, the tracers of before torch 2.12 know no id
        return places(calls, map(local, self._params()), len(groups))

    def _finish(self, work: list[Part], summed: StepSums | None) -> Tensor | None:
        """What a step still has to do once its calls have run; its sums, where metrics are tracked."""
        for part in work:
            if part.sharded:  # a graph that was built of DTensors must not be used after the step
                torch.autograd.graph.increment_version(part.params)
        return None if summed is None else summed.finish()

    def _gather(self, group: Group) -> list[Part]:
        """The parameters of a group that have a gradient, in parts that one call can step; the group is checked."""
        checked = self._checked_group(group)
        params = group["params"]
        self._check_state(group, params)
        grads = [param.grad for param in params]
        kinds, sharded = {*map(type, grads)}, False
        if not kinds <= PLAIN and not torch.compiler.is_compiling() and any(map(is_wrapper, kinds - PLAIN)):
            sharded = any(map(is_dtensor, grads))
            grads = gradients(params, grads)
        apart = sharded and self._wants_sums()  # what several ranks have is counted once
        together = self.backend != "triton"  # the CPU's own backends take any mix of dtypes and layouts
        if params and not apart and type(None) not in kinds:
            only = only_key(params, together)
            if only is not None:
                return [Part(only, group, checked, list(params), grads, sharded)]
        return split(group, checked, grads, together, self.track_changes, sharded, apart)

    def _kept_states(self) -> KeptStates:
        """The states as they are; what is known of them since the last step, where nothing has changed."""
        if self._kept is None or not self._kept.hold(self.state):
            self._kept = KeptStates(self.state)
        return self._kept

    def _calls(
        self,
        part: Part,
        new: dict[Tensor, dict[str, Any]],
        kept: KeptStates | None = None,
        summed: StepSums | None = None,
    ) -> list[StepCall]:
        """The calls of a part. Missing states are made and entered into ``new``, not yet into the optimizer."""
        calls = self._calls_of(part, new, kept)
        if summed is not None:
            for call in calls:
                call.sums = summed.of(part.params[0])
        return calls

    def _calls_of(self, part: Part, new: dict[Tensor, dict[str, Any]], kept: KeptStates | None) -> list[StepCall]:
        if self._lacks_lows(part.params):
            return self._first_calls(part, new)
        try:
            if kept is None:
                part.params, columns = held(part.params, part.checked.wanted, self.state)
            else:
                part.params, columns = kept.of(part.table_key, part.params, part.checked.wanted, self.state)
        except (KeyError, TypeError):  # of a parameter that has no state at all
            return self._first_calls(part, new)
        return [self._call(part, columns, part.checked.hyper, new)]

    def _first_calls(self, part: Part, new: dict[Tensor, dict[str, Any]]) -> list[StepCall]:
        """The same where states are missing: parameters that get some in this step, and the others."""
        group, wanted = part.group, part.checked.wanted
        identities = present_identities(self.param_groups, self.state)
        begun = set()  # those whose tensors are made now
        for param in part.params:
            if not torch.compiler.is_compiling():  # a tracer's tensors have no memory to look at
                check_operand(local(param))
            made = self._new_states(group, param, wanted[2:])
            if made:
                begun.add(param)
            if IDENTITY not in self.state.get(param, {}):
                made[IDENTITY] = identities[param]
            new[param] = made
        calls = []
        first, later = part.checked.first_hyper, part.checked.hyper
        for hyper, fresh in ((first, True), (later, False)) if first != later else ((later, None),):
            own = [i for i, param in enumerate(part.params) if fresh is None or (param in begun) == fresh]
            if own:
                some = part.some(part.key if fresh is None else (part.key, fresh), own)
                states = [{**self.state.get(param, {}), **new.get(param, {})} for param in some.params]
                columns = {name: [state[name] for state in states] for name in wanted}
                calls.append(self._call(some, columns, hyper, new))
        return calls

    def _call(
        self, part: Part, columns: dict[str, list[Any]], hyper: Hyper, new: dict[Tensor, dict[str, Any]]
    ) -> StepCall:
        names, scalars = part.checked.names, part.checked.scalars
        call = StepCall(
            **part.checked.arguments,
            params=part.params,
            grads=part.grads,
            states={name: columns.get(name, []) for name in names if name not in scalars},
            scalar_states={name: columns[name] for name in scalars},
            steps=columns["step"],
            param_indices=columns[IDENTITY],
            hyper=hyper,
            **of_scaler(self),
            storage=self._storage(part.params, new),
            tables=self._tables,
            table_key=None if torch.compiler.is_compiling() else part.table_key,
        )
        if part.sharded:
            localize(call, self._maps)
        return call

    def keep_mask(self, param: Tensor, step: int) -> Tensor:
        """Which elements of ``param`` its ``step``-th update moves, at the group's present keep_prob and seed.

        keep(i) = bits(seed, step, identity of the parameter, i) < rint(65536 keep_prob)

        The identity is the one in the parameter's state; before its first step the CRC-32 of its name, or without names
        its index in ``state_dict()`` order.

        Args:
            param: a parameter of this optimizer.
            step: the parameter's step count, 1 at its first update; any step, past or to come.

        Returns:
            A boolean tensor of the parameter's shape, on its device; of a DTensor one that lies as it does.

        Raises:
            ValueError: the parameter is not in this optimizer, or step is not in [1, 2**53].
            TypeError: one of them is no tensor, or no int.
        """
        if not isinstance(param, Tensor):
            raise TypeError(f"Invalid param={param!r}: must be a parameter of this optimizer")
        step = check_count("step", step, 1, MAX_STEP)
        self._look_at(self.param_groups)
        for group in self.param_groups:
            if any(candidate is param for candidate in group["params"]):
                check_number("keep_prob", group["keep_prob"], False)
                keep_prob, seed = float(group["keep_prob"]), as_seed(group["seed"])
                identity = present_identities(self.param_groups, self.state)[param]
                own, where = local(param), index_map(param) if is_dtensor(param) else None
                mask = keep_mask(own.shape, keep_prob, seed, step, identity, own.device, where)
                return placed(mask, param) if is_dtensor(param) else mask
        raise ValueError(f"Invalid param of shape {tuple(param.shape)}: it is not in this optimizer")
