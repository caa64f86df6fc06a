"""Compiled arithmetic: tensors in, tensors out. No files, names, settings or printing.

Each module holds one format as two functions that invert each other, up to rounding:
:mod:`~quantkit.kernels.fourbit` (NF4 and FP4), :mod:`~quantkit.kernels.int8` (rows of
LLM.int8) and :mod:`~quantkit.kernels.nested` (double quantization's absmax). What they
return is, bit for bit, what bitsandbytes 0.50.2 returns on CPU. Their loops
(:mod:`~quantkit.kernels.loops`) are compiled at the first call on a machine and kept
(:mod:`quantkit.compiled`); they release the GIL, and run on the caller's thread alone.
"""
