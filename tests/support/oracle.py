"""The update rules in float64 numpy, from the papers: the oracle that shares no code with the package.

Each is written as its paper prints it (spec 1.2), so that only a same reading of the paper can make both wrong alike.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy
from numpy import sqrt


@dataclass
class Settings:
    """Hyper-parameters by the names of torch.optim; what a rule does not read stays at its default."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    alpha: float = 0.99
    eps: float = 1e-8
    centered: bool = False
    amsgrad: bool = False
    grad_weight: float = 1.0
    momentum_window: int | None = None
    momentum_decay: float = 4e-3


def sgd(g, s, h, t):
    """SGDM with learning rate dropout: m_1 = g_1, m_t = mu m + (1 - dampening) g."""
    if h.momentum_window is not None:  # Eq. 10, over the gradients there are
        s["gradients"] = [*s.get("gradients", []), g]
        return numpy.mean(s["gradients"][-h.momentum_window :], axis=0)
    if h.momentum == 0:
        return g
    s["momentum_buffer"] = g if t == 1 else h.momentum * s["momentum_buffer"] + (1 - h.dampening) * g
    return g + h.momentum * s["momentum_buffer"] if h.nesterov else s["momentum_buffer"]


def adam(g, s, h, t):
    """Kingma & Ba, Algorithm 1; Reddi et al., Algorithm 2 on the uncorrected second moment."""
    beta1, beta2 = h.betas
    s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * g**2
    v = s["exp_avg_sq"]
    if h.amsgrad:
        v = s["max_exp_avg_sq"] = numpy.maximum(s["max_exp_avg_sq"], v)
    return s["exp_avg"] / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + h.eps)


def rmsprop(g, s, h, t):
    """Spec 1.2: v = a v + (1-a) g^2; centered subtracts the squared mean; momentum accumulates g / (sqrt v + eps)."""
    s["square_avg"] = h.alpha * s["square_avg"] + (1 - h.alpha) * g**2
    v = s["square_avg"]
    if h.centered:
        s["grad_avg"] = h.alpha * s["grad_avg"] + (1 - h.alpha) * g
        v = v - s["grad_avg"] ** 2
    step = g / (sqrt(v) + h.eps)
    if h.momentum == 0:
        return step
    s["momentum_buffer"] = h.momentum * s["momentum_buffer"] + step
    return s["momentum_buffer"]


def radam(g, s, h, t):
    """Liu et al., Algorithm 2, with eps added to the root of the uncorrected v and threshold 5, as torch.optim."""
    beta1, beta2 = h.betas
    s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * g**2
    m_hat = s["exp_avg"] / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return m_hat
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return m_hat * r * math.sqrt(1 - beta2**t) / (sqrt(s["exp_avg_sq"]) + h.eps)


def adabelief(g, s, h, t):
    """Zhuang et al., Algorithm 2: s = b2 s + (1-b2) (g-m)^2 + eps."""
    beta1, beta2 = h.betas
    s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * g
    s["exp_avg_var"] = beta2 * s["exp_avg_var"] + (1 - beta2) * (g - s["exp_avg"]) ** 2 + h.eps
    m_hat, s_hat = s["exp_avg"] / (1 - beta1**t), s["exp_avg_var"] / (1 - beta2**t)
    return m_hat / (sqrt(s_hat) + h.eps)


def lion(g, s, h, t):
    """Chen et al., Algorithm 2: update before the momentum, by its sign."""
    beta1, beta2 = h.betas
    update = numpy.sign(beta1 * s["exp_avg"] + (1 - beta1) * g)
    s["exp_avg"] = beta2 * s["exp_avg"] + (1 - beta2) * g
    return update


def nadam(g, s, h, t):
    """Dozat 2016 with torch.optim's schedule of the momentum."""
    (beta1, beta2), mu = h.betas, lambda t: h.betas[0] * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))
    s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * g**2
    product = math.prod(mu(j) for j in range(1, t + 1))
    m_hat = mu(t + 1) * s["exp_avg"] / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
    return m_hat / (sqrt(s["exp_avg_sq"] / (1 - beta2**t)) + h.eps)


RULES = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adam,
    "RMSprop": rmsprop,
    "RAdam": radam,
    "AdaBelief": adabelief,
    "Lion": lion,
    "NAdam": nadam,
}


class Oracle:
    """One parameter trained by a rule with the masks it is given."""

    def __init__(self, name, param, settings):
        """Start from the numpy array ``param``."""
        self.rule, self.settings = RULES[name], settings
        self.param, self.t = numpy.array(param, dtype=numpy.float64), 0
        self.state = defaultdict(lambda: numpy.zeros_like(self.param))  # every state begins as zeros

    def step(self, grad, keep):
        """w <- w - lr keep * direction; weight decay in the gradient, or in the direction if decoupled."""
        h = self.settings
        self.t += 1
        g = numpy.asarray(grad, dtype=numpy.float64) * h.grad_weight * (-1 if h.maximize else 1)
        if not h.decoupled_weight_decay:
            g = g + h.weight_decay * self.param
        direction = self.rule(g, self.state, h, self.t)
        if h.decoupled_weight_decay:
            direction = direction + h.weight_decay * self.param
        self.param = numpy.where(keep, self.param - h.lr * direction, self.param)
