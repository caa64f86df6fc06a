"""The loops that numba compiles; :mod:`quantkit.compiled` calls them, and imports none.

A loop takes contiguous arrays, integers and tuples of them, and returns an integer or nothing.
It allocates nothing, and releases the GIL. Scratch space is the caller's.
"""

from numba import njit

#: No memory of numba's runtime, nor a way to be called from Python: what is left is a function
#: that needs nothing else of numba.
loop = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
