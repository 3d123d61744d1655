"""The update rules: twins of ``csrc/rules/*.h``, the same names in the same order of statements.

Of each rule, ``<rule>_constants(*hypers, step)`` gives what a step needs once per tensor, in double, as a tuple. A rule
with scalar states takes them, too, ``(*hypers, step, *scalar_states)``, and returns that tuple and the one of the
scalar states, advanced. The direction ``<rule>(grad, states, constants, FLAGS) -> (direction, states)`` is what a step
needs per element, in the compute type; FLAGS tells of the optional states, and then of the flags, which there are.
(average_sgd, whose state is a ring, has another: see ring.py.)
"""

import triton
import triton.language as tl


@triton.jit
def sqrt_rn(x):
    """Correctly rounded square root."""
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def div_rn(x, y):
    """Correctly rounded division, which ``/`` is for double only."""
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def int_pow(base, exponent):
    """base ** exponent by squaring, with the products of the other backends."""
    n = exponent.to(tl.int64)
    result = n.to(tl.float64) * 0.0 + 1.0
    factor = result * base
    while tl.max(n, 0) > 0:
        result = tl.where(n % 2 == 1, result * factor, result)
        factor = factor * factor
        n = n // 2
    return result


@triton.jit
def running_maximum(maximum, value):
    """The larger one; a NaN that is new is kept."""
    return tl.where(maximum > value, maximum, value)


@triton.jit
def sgd_constants(momentum, dampening, step):
    return momentum, tl.where(step == 1.0, 1.0, 1.0 - dampening)


@triton.jit
def sgd(grad, states, constants, FLAGS: tl.constexpr):
    MOMENTUM: tl.constexpr = FLAGS[0]
    NESTEROV: tl.constexpr = FLAGS[1]
    momentum, one_minus_dampening = constants
    if MOMENTUM:
        momentum_buffer = momentum * states[0] + one_minus_dampening * grad
        states = (momentum_buffer,)
        direction = grad + momentum * momentum_buffer if NESTEROV else momentum_buffer
    else:
        direction = grad
    return direction, states


@triton.jit
def adam_constants(beta1, beta2, eps, step):
    inv_bias_correction1 = 1.0 / (1.0 - int_pow(beta1, step))
    inv_sqrt_bias_correction2 = 1.0 / sqrt_rn(1.0 - int_pow(beta2, step))
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, inv_bias_correction1, inv_sqrt_bias_correction2


@triton.jit
def adam(grad, states, constants, FLAGS: tl.constexpr):
    AMSGRAD: tl.constexpr = FLAGS[0]
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1, inv_sqrt_bias_correction2 = constants
    exp_avg = beta1 * states[0] + one_minus_beta1 * grad
    exp_avg_sq = beta2 * states[1] + one_minus_beta2 * (grad * grad)
    if AMSGRAD:
        second_moment = running_maximum(states[2], exp_avg_sq)  # max_exp_avg_sq
        states = (exp_avg, exp_avg_sq, second_moment)
    else:
        second_moment = exp_avg_sq
        states = (exp_avg, exp_avg_sq)
    denom = sqrt_rn(second_moment) * inv_sqrt_bias_correction2 + eps
    return div_rn(exp_avg * inv_bias_correction1, denom), states


@triton.jit
def rmsprop_constants(alpha, eps, momentum, step):
    return alpha, 1.0 - alpha, eps, momentum


@triton.jit
def rmsprop(grad, states, constants, FLAGS: tl.constexpr):
    CENTERED: tl.constexpr = FLAGS[0]
    MOMENTUM: tl.constexpr = FLAGS[1]
    alpha, one_minus_alpha, eps, momentum = constants
    square_avg = alpha * states[0] + one_minus_alpha * (grad * grad)
    variance = square_avg
    advanced = (square_avg,)
    if CENTERED:
        grad_avg = alpha * states[1] + one_minus_alpha * grad
        variance = square_avg - grad_avg * grad_avg
        advanced = (square_avg, grad_avg)
    update = div_rn(grad, sqrt_rn(variance) + eps)
    if MOMENTUM:
        update = momentum * states[len(states) - 1] + update  # momentum_buffer
        advanced = advanced + (update,)
    return update, advanced


@triton.jit
def radam_constants(beta1, beta2, eps, step):
    inv_bias_correction1 = 1.0 / (1.0 - int_pow(beta1, step))
    beta2_t = int_pow(beta2, step)
    bias_correction2 = 1.0 - beta2_t
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * beta2_t / bias_correction2
    square = (rho - 4.0) * (rho - 2.0) * rho_inf * bias_correction2 / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
    rectification = tl.where(rho > 5.0, sqrt_rn(square), 0.0)  # 0: not rectified yet
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, inv_bias_correction1, rectification


@triton.jit
def radam(grad, states, constants, FLAGS: tl.constexpr):
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1, rectification = constants
    exp_avg = beta1 * states[0] + one_minus_beta1 * grad
    exp_avg_sq = beta2 * states[1] + one_minus_beta2 * (grad * grad)
    update = exp_avg * inv_bias_correction1
    rectified = div_rn(update * rectification, sqrt_rn(exp_avg_sq) + eps)
    return tl.where(rectification != 0, rectified, update), (exp_avg, exp_avg_sq)


@triton.jit
def adabelief_constants(beta1, beta2, eps, step):
    return adam_constants(beta1, beta2, eps, step)


@triton.jit
def adabelief(grad, states, constants, FLAGS: tl.constexpr):
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1, inv_sqrt_bias_correction2 = constants
    exp_avg = beta1 * states[0] + one_minus_beta1 * grad
    surprise = grad - exp_avg
    exp_avg_var = beta2 * states[1] + one_minus_beta2 * (surprise * surprise) + eps
    denom = sqrt_rn(exp_avg_var) * inv_sqrt_bias_correction2 + eps
    return div_rn(exp_avg * inv_bias_correction1, denom), (exp_avg, exp_avg_var)


@triton.jit
def average_sgd_constants(window, step):
    number, slots = step.to(tl.int64) - 1, window.to(tl.int64)
    return (number % slots).to(tl.float64), tl.minimum(number + 1, slots).to(tl.float64)  # slot, filled


@triton.jit
def average_sgd(mean, gradient, count):
    """The mean of ``count`` gradients from that of all but the last; exact where all are equal."""
    weight = div_rn(count * 0.0 + 1.0, count)
    return mean + (gradient - mean) * weight


@triton.jit
def lion_constants(beta1, beta2, step):
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2


@triton.jit
def lion(grad, states, constants, FLAGS: tl.constexpr):
    beta1, one_minus_beta1, beta2, one_minus_beta2 = constants
    update = beta1 * states[0] + one_minus_beta1 * grad
    exp_avg = beta2 * states[0] + one_minus_beta2 * grad
    return tl.where(update > 0, 1.0, tl.where(update < 0, -1.0, update)), (exp_avg,)  # a NaN stays one


@triton.jit
def nadam_momentum(beta1, decay, step):
    return beta1 * (1.0 - 0.5 * int_pow(decay, step))


@triton.jit
def nadam_constants(beta1, beta2, eps, decay, step, mu_product):
    momentum = nadam_momentum(beta1, decay, step)
    mu_product = mu_product * momentum
    following = nadam_momentum(beta1, decay, step + 1.0)
    root = sqrt_rn(1.0 - int_pow(beta2, step))
    grad_factor = (1.0 - momentum) / (1.0 - mu_product) * root
    exp_avg_factor = following / (1.0 - mu_product * following) * root
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps * root, grad_factor, exp_avg_factor), (mu_product,)


@triton.jit
def nadam(grad, states, constants, FLAGS: tl.constexpr):
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, grad_factor, exp_avg_factor = constants
    exp_avg = beta1 * states[0] + one_minus_beta1 * grad
    exp_avg_sq = beta2 * states[1] + one_minus_beta2 * (grad * grad)
    direction = div_rn(grad_factor * grad + exp_avg_factor * exp_avg, sqrt_rn(exp_avg_sq) + eps)
    return direction, (exp_avg, exp_avg_sq)
