"""Numbers on their way from one device to another."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``: in stream order to a GPU, but by waiting to the CPU, where it is read at once."""
    return tensor.to(device, non_blocking=device.type != "cpu")
