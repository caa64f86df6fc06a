"""Formats: names, layouts and the ``quantization_config`` of what is written.

A format knows no arithmetic (that is :mod:`quantkit.kernels`) and no files.

    base.py    the protocol
    bnb.py     bitsandbytes: nf4, fp4, int8
    gptq.py    GPTQ, 2 to 8 bits
    plain.py   no quantization
"""

from quantkit.formats.base import Encoder, Format, Kept, Write
from quantkit.formats.bnb import Bnb
from quantkit.formats.gptq import Gptq
from quantkit.formats.plain import Plain
from quantkit.methods import BnbMethod, GptqMethod, Method, PlainMethod

__all__ = ["Encoder", "Format", "Gptq", "Kept", "Write", "format_of"]


def format_of(method: Method) -> Format:
    """The format that a recipe's ``[method]`` asks for."""
    match method:
        case BnbMethod():
            return Bnb(method)
        case GptqMethod():
            return Gptq(method)
        case PlainMethod():
            return Plain(method)
