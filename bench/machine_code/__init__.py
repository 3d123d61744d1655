"""Reads the machine code of the CUDA and Triton kernels; ``bench.gpu_model`` prints what it says."""
