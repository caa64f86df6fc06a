"""Formats: names, layouts and the ``quantization_config`` of what is written.

A format knows no arithmetic (that is :mod:`quantkit.kernels`) and no files.

    base.py    the protocol
    bnb.py     bitsandbytes: nf4, fp4, int8
    gptq.py    GPTQ, 2 to 8 bits
    plain.py   no quantization
"""

from quantkit.formats.base import Encoder, Format, Write
from quantkit.formats.bnb import Bnb
from quantkit.formats.gptq import Gptq
from quantkit.formats.plain import Plain
from quantkit.methods import BnbMethod, GptqMethod, Method

__all__ = ["Encoder", "Format", "Gptq", "Write", "format_of"]


def format_of(method: Method) -> Format:
    """The format that a recipe's ``[method]`` asks for."""
    if isinstance(method, BnbMethod):
        return Bnb(method)
    return Gptq(method) if isinstance(method, GptqMethod) else Plain(method)
