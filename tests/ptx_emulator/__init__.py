# SPDX-License-Identifier: Apache-2.0
"""Executes compiled PTX on the CPU, in NumPy: what the interpreter of Triton cannot show.

All threads of a launch are one axis of NumPy vectors. The machine finds accesses that nothing
orders (races), that are misaligned or out of bounds, and reads of memory that nobody wrote; it
counts the sectors of 32 bytes that warps ask for.

Not modelled: time, caches, weak ordering of memory, and the last bits of approximate instructions
(ex2, div.full), which round correctly here and by up to 2 ulp on a GPU.

    values.py      bits and numbers          shadow.py      who touched what, and races
    program.py     text of a kernel          memory.py      memory with bounds
    machine.py     threads, branches, barriers
    arithmetic.py, conversions.py, transfers.py             the instructions
    launches.py    launches of Triton kernels, executed here instead of compiled only
    native.py      launches of CUDA C++ kernels, as nvcc compiles them for sm_80
    tensors.py, inputs.py                                   what both are given
"""
