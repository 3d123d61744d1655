"""Times steps on a GPU, unattended: ``python -m bench.gpu``; bench/gpu_day.sh runs it among all that a GPU is for."""
