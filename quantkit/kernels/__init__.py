"""Arithmetic: arrays or tensors in, the same out. No files, names, settings or printing.

:mod:`~quantkit.kernels.fourbit` (NF4 and FP4), :mod:`~quantkit.kernels.int8` (rows of
LLM.int8) and :mod:`~quantkit.kernels.nested` (double quantization's absmax) take and give
numpy's arrays, each in two functions that invert each other up to rounding. What they
return is, bit for bit, what bitsandbytes 0.50.2 returns on CPU; :mod:`~quantkit.kernels.cuda`
is the same on a device, :mod:`~quantkit.kernels.casting` changes data types. GPTQ takes
torch's tensors: :mod:`~quantkit.kernels.hessian`, :mod:`~quantkit.kernels.gptq`,
:mod:`~quantkit.kernels.grid`, and :mod:`~quantkit.kernels.rounding` in three forms. Loops
(:mod:`~quantkit.kernels.loops`) are compiled at the first call on a machine and kept
(:mod:`quantkit.compiled`); they release the GIL, and bitsandbytes' formats run on the caller's
thread alone.
"""
