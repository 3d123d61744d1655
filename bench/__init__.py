"""Interleaved timings of whole optimizer steps against torch.optim and the paper's recipe: ``python -m bench``."""
