"""What surrounds every rule: scaling and weight decay before it, the step after it; twin of ``core/update.h``."""

import triton
import triton.language as tl


@triton.jit
def decayed_grad(param, grad, scalars):
    """The gradient that a rule sees: scaled, with coupled weight decay."""
    _, coupled_decay, _, grad_factor = scalars
    grad = grad * grad_factor
    return tl.where(coupled_decay != 0, grad + coupled_decay * param, grad)


@triton.jit
def moved_param(param, direction, scalars):
    """The parameter that a rule's direction leads to, with decoupled weight decay."""
    lr, _, decoupled_decay, _ = scalars
    direction = tl.where(decoupled_decay != 0, direction + decoupled_decay * param, direction)
    return param - lr * direction
