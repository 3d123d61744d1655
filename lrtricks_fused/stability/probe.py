"""Network stability: how far activations, gradients, weights and predictions move between two moments of training.

Reads a model through hooks and plain autograd; knows nothing of optimizers.
"""

import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..optim.checks import check_count
from ..tuning.untouched import seeded, sharding_modules, untouched
from .report import StabilityReport


@dataclass
class _Layer:
    """One layer at one moment, on the CPU."""

    activations: list[Tensor]  # every tensor of every call, in order
    weights: list[Tensor]
    grads: list[Tensor | None]


@dataclass
class StabilitySnapshot:
    """What a probe saw at one moment: its layers, the model's output and the loss."""

    layers: dict[str, _Layer]
    logits: Tensor
    loss: float
    probe: str  # which probe took it


class StabilityProbe:
    r"""Compares a model with itself between two moments of training, on a fixed batch.

    .. math::
        \text{activation\_drift}_l &= \lVert a_l' - a_l \rVert / \lVert a_l \rVert, \quad
        \text{weight\_drift}_l = \lVert w_l' - w_l \rVert / \lVert w_l \rVert, \quad
        \text{gradient\_cosine}_l = \cos(\nabla_l L, \nabla_l L') \\
        \text{prediction\_churn} &= \mathrm{mean}[\arg\max z' \ne \arg\max z], \quad
        \text{logit\_kl} = \mathrm{mean}\,\mathrm{KL}(\mathrm{softmax}\,z \,\Vert\, \mathrm{softmax}\,z')

    with a_l the outputs of layer l, w_l its parameters, z the model's output, and ' for the later moment.

    Source: these metrics are ours. The article (Proposing a new effect of learning rate decay: Network Stability)
    claims that a lower learning rate steadies forward activations and backward signals; as it is stored here it
    shows no metric of that. ::

        probe = StabilityProbe(model, inputs, torch.nn.functional.cross_entropy, targets)
        before = probe.snapshot()
        train()
        report = probe.compare(before, probe.snapshot())

    A snapshot leaves the model as it was, bit for bit: parameters, buffers (BatchNorm's statistics), ``.grad``, the
    modes, and the global random generators. The modes are set as ``module.training``, without calling ``train()``,
    whose overrides may change a model. The user's own hooks run, on modules and on parameters' gradients.

    Memory: the probe has its own copy of the batch. A snapshot holds, on the CPU and in their dtypes, the activations
    of the probed layers and their parameters twice (values, gradients). While it is taken, the model's device holds
    one more copy of parameters and buffers.

    Args:
        model: the model that is trained. Of a DistributedDataParallel give ``.module``.
        inputs: the batch: a tuple is passed as positional arguments, a dict as keyword arguments, anything else as
            the only argument.
        loss_fn: ``loss_fn(output, targets)``, a tensor of one element.
        targets: what loss_fn takes; anything.
        layers: names of modules, each with all parameters below it. By default every module that owns parameters
            itself (mostly the leaves), with these. A module shared under several names is one layer, and a shared
            parameter counts in each layer that has it, with its whole gradient.
        training: modules are in training mode, else in evaluation mode. (cuDNN's recurrent layers have gradients in
            training mode only.)
        seed: of the global generators while a snapshot is taken, so that dropout masks do not count as drift.
        class_dim: dimension of the classes in the model's output; 1 as for torch.nn.CrossEntropyLoss.

    Raises:
        ValueError, TypeError: a layer is not a module of the model, seed or class_dim is not an int.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        targets: Any,
        *,
        layers: Iterable[str] | None = None,
        training: bool = False,
        seed: int = 0,
        class_dim: int = 1,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.training = training
        self.seed = check_count("seed", seed, -(2**63), 2**64 - 1)
        self.class_dim = check_count("class_dim", class_dim, -(2**63))
        self._inputs, self._targets = _copies(inputs), _copies(targets)
        self._recurse = layers is not None
        self._modules = _modules(model, layers)
        self._id = uuid.uuid4().hex
        self._check_model()

    def _check_model(self) -> None:
        for module in sharding_modules(self.model, "FSDPModule", "FullyShardedDataParallel"):
            raise ValueError(
                f"Invalid model: FSDP shards its {type(module).__name__}, whose whole weights and gradients are not at "
                "hand; probe a model that has gathered them"
            )

    @property
    def layers(self) -> list[str]:
        """Names of the probed layers, in the order of the report."""
        return list(self._modules)

    def snapshot(self) -> StabilitySnapshot:
        """The model at this moment.

        Raises:
            ValueError: loss_fn returns no tensor of one element, or the model no tensor; FSDP shards the model.
        """
        self._check_model()
        params = {name: list(module.parameters(recurse=self._recurse)) for name, module in self._modules.items()}
        weights = {name: _on_cpu(own) for name, own in params.items()}  # the forward may renormalise an embedding
        activations: dict[str, list[Tensor]] = {name: [] for name in params}
        with (
            untouched(self.model),
            seeded(self.seed, self._devices()),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            for module in self.model.modules():
                module.training = self.training
            output = self._forward(activations)
            logits = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
            if logits is None:
                raise ValueError(f"Invalid model: its output holds no tensor, it is a {type(output).__name__}")
            logits = logits.detach().to("cpu", copy=True)  # loss_fn may write into it
            loss = self.loss_fn(output, _copies(self._targets))
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"Invalid loss_fn: it returned {what}, must be a tensor of one element")
            grads = _gradients(loss, [param for own in params.values() for param in own])
        layers = {
            name: _Layer(activations[name], weights[name], [grads.get(id(param)) for param in own])
            for name, own in params.items()
        }
        return StabilitySnapshot(layers, logits, float(loss.detach()), self._id)

    def compare(self, before: StabilitySnapshot, after: StabilitySnapshot) -> StabilityReport:
        """What has changed from ``before`` to ``after``, in float64.

        Zero norms: a drift is 0 between equal tensors, inf from zero to anything else; a cosine with a zero gradient
        is 0. NaN: the activation drift of a layer that was not called, or not as often; the cosine of a layer without
        gradients in both snapshots (frozen, unused); churn and KL of outputs that are not real numbers or lack
        the dimension ``class_dim``.

        Raises:
            TypeError: not a snapshot.
            ValueError: a snapshot of another probe, or parameters or outputs have changed their shapes.
        """
        for name, snapshot in (("before", before), ("after", after)):
            if not isinstance(snapshot, StabilitySnapshot):
                raise TypeError(f"Invalid {name}: must be a snapshot, not {type(snapshot).__name__}")
            if snapshot.probe != self._id:
                raise ValueError(f"Invalid {name}: a snapshot of another probe, so of another model or batch")
        for name in self._modules:
            _check_shapes(f"parameters of layer {name!r}", before.layers[name].weights, after.layers[name].weights)
        _check_shapes("model's outputs", [before.logits], [after.logits])
        churn, kl = _churn_and_kl(before.logits, after.logits, self.class_dim)
        return StabilityReport(
            [{"layer": name, **_compare_layers(before.layers[name], after.layers[name])} for name in self._modules],
            dict(prediction_churn=churn, logit_kl=kl, loss_before=before.loss, loss_after=after.loss),
        )

    def _devices(self) -> set[torch.device]:
        tensors = [*self.model.parameters(), *self.model.buffers(), *tree_leaves((self._inputs, self._targets))]
        return {tensor.device for tensor in tensors if isinstance(tensor, Tensor)}

    def _forward(self, activations: dict[str, list[Tensor]]) -> Any:
        """The model's output; the hooks are gone before the gradients, where checkpointed layers run again."""
        inputs = _copies(self._inputs)
        with ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.enter_context(module.register_forward_hook(_recorder(activations[name])))
            if isinstance(inputs, tuple):
                return self.model(*inputs)
            return self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)


def _copies(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def _on_cpu(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]


def _modules(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    if layers is None:
        return {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    known = dict(model.named_modules(remove_duplicate=False))
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in known:
            raise ValueError(f"Invalid layers: {name!r} is not a module of the model")
    return {name: known[name] for name in names}


def _recorder(activations: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        # Copied at once: an operation in place may follow.
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        activations.extend(_on_cpu(t for t in tensors if t.is_floating_point() or t.is_complex()))

    return record


def _gradients(loss: Tensor, params: list[Tensor]) -> dict[int, Tensor]:
    """Gradients on the CPU by id of the parameter, without those that have none; ``.grad`` is not written."""
    wanted = list({id(param): param for param in params if param.requires_grad}.values())
    if not wanted or not loss.requires_grad:
        return {}
    grads = zip(wanted, torch.autograd.grad(loss, wanted, allow_unused=True), strict=True)
    return {id(param): grad.to_dense().to("cpu", copy=True) for param, grad in grads if grad is not None}


def _check_shapes(what: str, before: list[Tensor], after: list[Tensor]) -> None:
    old, new = ([tuple(tensor.shape) for tensor in tensors] for tensors in (before, after))
    if old != new:
        raise ValueError(f"Invalid after: the {what} have shapes {new}, before {old}")


def _vector(tensors: list[Tensor]) -> Tensor:
    """All elements in float64; a complex one as its two parts."""
    parts = [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor for tensor in tensors]
    return torch.cat([part.reshape(-1).double() for part in parts])


def _drift(before: list[Tensor], after: list[Tensor]) -> float:
    if not before or [t.shape for t in before] != [t.shape for t in after]:
        return float("nan")
    old = _vector(before)
    distance, norm = float((_vector(after) - old).norm()), float(old.norm())
    if distance == 0:
        return 0.0
    return distance / norm if norm else float("inf")


def _cosine(before: list[Tensor | None], after: list[Tensor | None]) -> float:
    """Over the parameters that have a gradient in both."""
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    if not pairs:
        return float("nan")
    old, new = (_vector(list(grads)) for grads in zip(*pairs, strict=True))
    norms = float(old.norm()), float(new.norm())
    if 0.0 in norms:
        return 0.0
    cosine = float((old / norms[0]).dot(new / norms[1]))
    return max(-1.0, min(1.0, cosine)) if cosine == cosine else cosine


def _compare_layers(before: _Layer, after: _Layer) -> dict[str, float]:
    return {
        "activation_drift": _drift(before.activations, after.activations),
        "gradient_cosine": _cosine(before.grads, after.grads),
        "weight_drift": _drift(before.weights, after.weights),
    }


def _churn_and_kl(before: Tensor, after: Tensor, dim: int) -> tuple[float, float]:
    if not before.is_floating_point() or not -before.dim() <= dim < before.dim():
        return float("nan"), float("nan")
    churn = before.argmax(dim).ne(after.argmax(dim)).double().mean()
    old, new = (logits.double().log_softmax(dim) for logits in (before, after))
    # A class of probability 0 adds 0, also where both are masked with -inf.
    terms = torch.where(old == -torch.inf, 0.0, old.exp() * (old - new))
    return float(churn), float(terms.sum(dim).mean())
