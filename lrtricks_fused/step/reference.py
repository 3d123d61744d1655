"""Every update rule in plain tensor operations: the specification the fused kernels must match bit for bit.

Each rule is a function ``(grad, state, hyper, step, const) -> direction`` with the statement order of its twin in
``csrc/rules``; above it stands its record (see rule.py). ``state`` holds tensors in the compute type and is replaced in
place, ``const`` rounds a double once to the compute type. A rule with scalar states takes a dict of them, as floats,
besides, which is replaced in place. float64 parameters (or ``compute_dtype=torch.float64``) make
an oracle of higher precision.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy
import torch
from torch import Tensor

from . import storage
from .call import StepCall
from .copies import writable
from .keep import keep_mask
from .operands import is_staged, written
from .rule import RULES, rule
from .staged import step_staged
from .sums import (
    add_totals,
    centralized,
    inverse_scale,
    metric_terms,
    same_bits,
    slope_terms,
    slope_total,
    squared_norm,
    sums_of_chunks,
)
from .table import ACCESS, SLOPE_COLUMNS

State = dict[str, Tensor]
Hyper = dict[str, float | bool]
Const = Callable[[float], Tensor]
CLIP_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


def int_pow(base: float, exponent: int) -> float:
    """base ** exponent by squaring: only IEEE products, so every backend gets the same double."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def sqrt_rn(x: Tensor) -> Tensor:
    """Correctly rounded square root, which torch's own kernels on the CPU are not (off by one ulp for many values)."""
    if x.device.type != "cpu":
        return x.sqrt()
    root = torch.empty_like(x)
    numpy.sqrt(x.numpy(), out=root.numpy())
    return root


@rule(optional_states=("momentum_buffer",), hypers=("momentum", "dampening"), flags=("nesterov",))
def sgd(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """Buf = momentum buf + (1 - dampening) grad, without dampening at the first step; Nesterov looks ahead."""
    if "momentum_buffer" not in state:
        return grad
    momentum = const(hyper["momentum"])
    one_minus_dampening = const(1.0 if step == 1 else 1.0 - hyper["dampening"])
    state["momentum_buffer"] = momentum * state["momentum_buffer"] + one_minus_dampening * grad
    if hyper["nesterov"]:
        return grad + momentum * state["momentum_buffer"]
    return state["momentum_buffer"]


@rule(
    required_states=("exp_avg", "exp_avg_sq"),
    optional_states=("max_exp_avg_sq",),
    hypers=("beta1", "beta2", "eps"),
)
def adam(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """M_hat / (sqrt(v_hat) + eps); AMSGrad takes the running maximum of v."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    state["exp_avg"] = const(beta1) * state["exp_avg"] + const(1.0 - beta1) * grad
    state["exp_avg_sq"] = const(beta2) * state["exp_avg_sq"] + const(1.0 - beta2) * (grad * grad)
    second_moment = state["exp_avg_sq"]
    if "max_exp_avg_sq" in state:
        maximum = state["max_exp_avg_sq"]
        second_moment = state["max_exp_avg_sq"] = torch.where(maximum > second_moment, maximum, second_moment)
    inv_sqrt_bias_correction2 = const(1.0 / math.sqrt(1.0 - int_pow(beta2, step)))
    denom = sqrt_rn(second_moment) * inv_sqrt_bias_correction2 + const(hyper["eps"])
    return (state["exp_avg"] * const(1.0 / (1.0 - int_pow(beta1, step)))) / denom


@rule(
    required_states=("square_avg",),
    optional_states=("grad_avg", "momentum_buffer"),
    hypers=("alpha", "eps", "momentum"),
)
def rmsprop(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """Grad / (sqrt(v) + eps), v less the squared mean when centered, accumulated when there is momentum."""
    alpha, one_minus_alpha = const(hyper["alpha"]), const(1.0 - hyper["alpha"])
    state["square_avg"] = alpha * state["square_avg"] + one_minus_alpha * (grad * grad)
    variance = state["square_avg"]
    if "grad_avg" in state:
        state["grad_avg"] = alpha * state["grad_avg"] + one_minus_alpha * grad
        variance = state["square_avg"] - state["grad_avg"] * state["grad_avg"]
    update = grad / (sqrt_rn(variance) + const(hyper["eps"]))
    if "momentum_buffer" not in state:
        return update
    state["momentum_buffer"] = const(hyper["momentum"]) * state["momentum_buffer"] + update
    return state["momentum_buffer"]


@rule(required_states=("exp_avg", "exp_avg_sq"), hypers=("beta1", "beta2", "eps"))
def radam(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """Adam's direction times the variance rectification once rho_t > 5; the debiased momentum alone before."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    state["exp_avg"] = const(beta1) * state["exp_avg"] + const(1.0 - beta1) * grad
    state["exp_avg_sq"] = const(beta2) * state["exp_avg_sq"] + const(1.0 - beta2) * (grad * grad)
    update = state["exp_avg"] * const(1.0 / (1.0 - int_pow(beta1, step)))
    beta2_t = int_pow(beta2, step)
    bias_correction2 = 1.0 - beta2_t
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * beta2_t / bias_correction2
    if not rho > 5.0:
        return update
    rectification = math.sqrt(
        (rho - 4.0) * (rho - 2.0) * rho_inf * bias_correction2 / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
    )
    return update * const(rectification) / (sqrt_rn(state["exp_avg_sq"]) + const(hyper["eps"]))


@rule(required_states=("exp_avg", "exp_avg_var"), hypers=("beta1", "beta2", "eps"))
def adabelief(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """Adam with the variance of the gradient around its mean in place of its square (arXiv 2010.07468)."""
    beta1, beta2, eps = hyper["beta1"], hyper["beta2"], const(hyper["eps"])
    state["exp_avg"] = const(beta1) * state["exp_avg"] + const(1.0 - beta1) * grad
    surprise = grad - state["exp_avg"]
    state["exp_avg_var"] = const(beta2) * state["exp_avg_var"] + const(1.0 - beta2) * (surprise * surprise) + eps
    inv_sqrt_bias_correction2 = const(1.0 / math.sqrt(1.0 - int_pow(beta2, step)))
    denom = sqrt_rn(state["exp_avg_var"]) * inv_sqrt_bias_correction2 + eps
    return (state["exp_avg"] * const(1.0 / (1.0 - int_pow(beta1, step)))) / denom


@rule(required_states=("exp_avg",), hypers=("beta1", "beta2"))
def lion(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """The sign of an interpolation of momentum and gradient (arXiv 2302.06675); a NaN stays one."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    update = const(beta1) * state["exp_avg"] + const(1.0 - beta1) * grad
    state["exp_avg"] = const(beta2) * state["exp_avg"] + const(1.0 - beta2) * grad
    return torch.where(update > 0, const(1.0), torch.where(update < 0, const(-1.0), update))


@rule(
    required_states=("exp_avg", "exp_avg_sq"),
    scalar_states=(("mu_product", 1.0),),
    hypers=("beta1", "beta2", "eps", "decay"),
)
def nadam(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const, scalar_states: dict[str, float]) -> Tensor:
    """Adam that looks ahead along the schedule of its momentum (Dozat 2016); decay is 0.96 ** momentum_decay."""
    beta1, beta2, decay = hyper["beta1"], hyper["beta2"], hyper["decay"]
    momentum, following = (beta1 * (1.0 - 0.5 * int_pow(decay, number)) for number in (step, step + 1))
    mu_product = scalar_states["mu_product"] = scalar_states["mu_product"] * momentum
    root = math.sqrt(1.0 - int_pow(beta2, step))
    grad_factor = const((1.0 - momentum) / (1.0 - mu_product) * root)
    exp_avg_factor = const(following / (1.0 - mu_product * following) * root)
    state["exp_avg"] = const(beta1) * state["exp_avg"] + const(1.0 - beta1) * grad
    state["exp_avg_sq"] = const(beta2) * state["exp_avg_sq"] + const(1.0 - beta2) * (grad * grad)
    return (grad_factor * grad + exp_avg_factor * state["exp_avg"]) / (
        sqrt_rn(state["exp_avg_sq"]) + const(hyper["eps"] * root)
    )


@rule(required_states=("window_buffer",), hypers=("window",), ring=True)
def average_sgd(grad: Tensor, state: State, hyper: Hyper, step: int, const: Const) -> Tensor:
    """The mean of the last ``window`` gradients, taken anew in the order of the ring; exact where all are equal.

    The newest is in its slot, as it is stored: see ``_into_ring``.
    """
    ring = state["window_buffer"]
    mean = ring[0]
    for number in range(1, min(step, len(ring))):
        mean = mean + (ring[number] - mean) * const(1.0 / (number + 1))  # rounded twice, which 1/n survives
    return mean


def step(call: StepCall, compute_dtype: torch.dtype | None = None) -> None:
    """Run one step in place. ``compute_dtype`` overrides float32 (float64 for float64 parameters)."""
    if call.found_inf is not None and float(call.found_inf) != 0:
        return
    if is_staged(call):
        return step_staged(call, partial(step, compute_dtype=compute_dtype))
    with writable(written(call)):
        _step_all(call, compute_dtype)


def _step_all(call: StepCall, compute_dtype: torch.dtype | None) -> None:
    clip = 1.0 if call.clip is None else float(call.clip)
    grad_factor = float(inverse_scale(call.grad_scale, call.params[0].device)) * clip * float(call.grad_weight)
    grad_factor = -grad_factor if call.maximize else grad_factor
    chunks = []
    for i in range(len(call.params)):
        call.steps[i] += 1
        chunks.append(_step_one(call, i, grad_factor, compute_dtype))
    add_totals(call, chunks)


def squares(call: StepCall, out: Tensor) -> None:
    """Writes the squared norm of each gradient, one float64 per parameter."""
    for i, grad in enumerate(call.grads):
        out[i] = squared_norm(grad.to(storage.compute_dtype(grad.dtype)), ACCESS // grad.dtype.itemsize)


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """Writes the norm of all gradients, and the factor that takes it to ``max_norm`` at most.

    ``squares``: those of each parameter, and behind them scratch for columns.
    """
    inverse = float(inverse_scale(grad_scale, squares.device))
    value = math.sqrt(float(slope_total([squares[:-SLOPE_COLUMNS]]))) * inverse
    norm.fill_(value)
    wanted = max_norm / (value + CLIP_EPS)
    factor.fill_(1.0 if wanted > 1.0 else wanted)  # a NaN stays one


def _store(state: Tensor, new: Tensor) -> None:
    state.copy_(new.to(state.dtype))  # a copy that changes the dtype, too, forgets that one of them is negated


def _into_ring(ring: Tensor, grad: Tensor, step: int) -> None:
    _store(ring[(step - 1) % len(ring)], grad)


def _step_one(call: StepCall, i: int, grad_factor: float, compute_dtype: torch.dtype | None) -> Tensor:
    """One parameter's step; its sums, by chunks."""
    param, step = call.params[i], int(call.steps[i])
    dtype = compute_dtype or storage.compute_dtype(param.dtype)

    def const(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=param.device)

    old_param = param.to(dtype, copy=True)
    grad = call.grads[i].to(dtype)
    if call.slice_length(param):
        grad = centralized(grad, param.dtype)
    grad = grad * const(grad_factor)
    decay = const(call.weight_decay)
    if decay != 0 and not call.decoupled_weight_decay:
        grad = grad + decay * old_param
    if call.window is not None:
        _into_ring(call.states["window_buffer"][i], grad, step)
    state = {name: tensors[i].to(dtype) for name, tensors in call.states.items() if tensors}
    scalars = {name: float(column[i]) for name, column in call.scalar_states.items()}
    more = (scalars,) if scalars else ()
    direction = RULES[call.rule].direction(grad, state, call.hyper, step, const, *more)
    for name, value in scalars.items():
        call.scalar_states[name][i].fill_(value)
    for name, new in state.items():
        _store(call.states[name][i], new)
    if decay != 0 and call.decoupled_weight_decay:
        direction = direction + decay * old_param
    new_param = old_param - const(float(call.lr)) * direction
    index, index_map = call.param_indices[i], call.index_maps[i] if call.index_maps else None
    keep = keep_mask(param.shape, float(call.keep_prob), call.seed, step, index, param.device, index_map)
    stored = torch.where(keep, new_param.to(param.dtype), param)
    terms = []
    if call.sums is not None:
        terms = slope_terms(call.grads[i].to(dtype), old_param, stored.to(dtype))
        if call.wants_metrics:
            terms += metric_terms(old_param, stored.to(dtype), keep, ~same_bits(stored, param))
    param.copy_(stored)
    return sums_of_chunks(terms, ACCESS // param.dtype.itemsize)
