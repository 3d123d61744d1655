"""The fused step in Triton, for NVIDIA and AMD GPUs: twin of ``csrc/cuda``. Installed as part of lrtricks_fused."""
