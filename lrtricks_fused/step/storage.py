"""The dtypes that parameters and their states are stored in, said once: every backend has kernels for these pairs."""

import torch

# Of each dtype of parameters, those that the states may have; the first is the default.
STATE_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16),
    torch.float64: (torch.float64,),
    torch.bfloat16: (torch.float32, torch.bfloat16),
    torch.float16: (torch.float32, torch.float16),
}
# Those of them that there are kernels for; the others are staged (staged.py).
PAIRS = [
    (dtype, state_dtype)
    for dtype, state_dtypes in STATE_DTYPES.items()
    for state_dtype in state_dtypes
    if (dtype, state_dtype) != (torch.float32, torch.bfloat16)
]
# Of each dtype of parameters, those that the gradients may have.
GRAD_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64,),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float16: (torch.float16, torch.float32),
}
DTYPE_CODES = {dtype: code for code, dtype in enumerate(STATE_DTYPES)}  # csrc/core/dtype.h
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which a step of parameters of this dtype is computed: double for double, else float."""
    return torch.float64 if dtype == torch.float64 else torch.float32
