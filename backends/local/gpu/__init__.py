"""The int8 decoder on a CUDA device: Triton kernels that give the CPU's bits.

`steps.GpuSteps` is the one way in. Importing this package imports no triton; `steps` does.
"""
