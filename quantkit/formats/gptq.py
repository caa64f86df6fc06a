"""GPTQ's checkpoint layout, as AutoGPTQ defined it and its successors read it.

For a module ``M`` with a weight of shape (out, in):

    M.qweight   int32 (in * bits / 32, out)      codes, packed down the input columns
    M.qzeros    int32 (groups, out * bits / 32)  zero points, packed along the outputs
    M.scales    float16 (groups, out)
    M.g_idx     int32 (in,)                      each input column's group

``checkpoint_format`` "gptq" stores each zero point less one, "gptq_v2" as it is. In the
former a zero point of 0 would borrow from its neighbour, so quantkit uses none there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.elements import from_torch
from quantkit.formats.base import Encoder, Kept, Write
from quantkit.kernels.grid import Grid
from quantkit.kernels.packing import CHUNK, pack, unpack
from quantkit.methods import GptqMethod
from quantkit.types import OutputTensor

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.kernels.gptq import Quantized

#: The model types that AutoGPTQ 0.7.1 opens, of those that come without code of their own.
AUTOGPTQ_OPENS = frozenset(
    {
        "bloom", "codegen", "falcon", "gemma", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "llama",
        "mistral", "opt", "qwen2",
    }
)  # fmt: skip

#: A decoder layer's number in a module's name, and what comes after.
_IN_LAYER = re.compile(r"^(?P<layer>.*?\.\d+)\.(?P<inside>.+)$")

#: Where optimum looks for the decoder layers; it opens nothing without them, unless it is told.
_KNOWN_LAYERS = (
    "transformer.h",
    "model.decoder.layers",
    "gpt_neox.layers",
    "model.layers",
    "model.language_model.layers",
)


@dataclass(frozen=True)
class Gptq:
    """GPTQ by ``method``. Its weights are made by a calibration, not in the one pass."""

    method: GptqMethod

    calibrated = True

    def unit(self, shape: tuple[int, int]) -> int:
        return 1

    def encoder(self, weight: str, shape: tuple[int, int], dtype: str, device: str) -> Encoder:
        raise AssertionError(f"{weight}: GPTQ weights come from a calibration")

    def unfit(self, weight: str, shape: tuple[int, int], kind: str) -> str | None:
        rows, columns = shape
        if rows % CHUNK or columns % CHUNK:
            odd = rows if rows % CHUNK else columns
            return f"{rows} x {columns}: loaders pack in {CHUNK}s, and {odd} is no multiple"
        _, group = self._bits_and_group(weight)
        if group == -1 or columns % group == 0:
            return None
        fits = next(each for each in (128, 64, 32) if columns % each == 0)
        return (
            f"{rows} x {columns}: the {columns} input columns are no multiple of group_size "
            f"{group}; {fits} would fit"
        )

    def grid(self, weight: str, columns: int) -> Grid:
        """The grid of one module's weight."""
        bits, group = self._bits_and_group(weight)
        return Grid(
            bits=bits,
            group_size=columns if group == -1 else group,
            sym=self.method.sym,
            search=self.method.scale_search,
            static=self.method.static_groups,
            least_zero=self._stored_less,
        )

    def outputs(self, weight: str, shape: tuple[int, int], dtype: str) -> tuple[OutputTensor, ...]:
        rows, columns = shape
        grid = self.grid(weight, columns)
        groups, packed = columns // grid.group_size, grid.bits
        module = weight.removesuffix(".weight")
        return (
            _int32(f"{module}.qweight", columns * packed // 32, rows),
            _int32(f"{module}.qzeros", groups, rows * packed // 32),
            OutputTensor(f"{module}.scales", "float16", (groups, rows), 2 * groups * rows),
            OutputTensor(f"{module}.g_idx", "int32", (columns,), 4 * columns),
        )

    def stored(self, weight: str, made: Quantized) -> Iterator[Write]:
        """A quantized weight as the tensors that :meth:`outputs` names."""
        bits, _ = self._bits_and_group(weight)
        module = weight.removesuffix(".weight")
        zeros = made.zero_points - self._stored_less
        tensors = {
            "qweight": pack(made.codes.T, bits),
            "qzeros": pack(zeros, bits).T,
            "scales": made.scales.T.half(),
            "g_idx": made.g_idx,
        }
        for name, each in tensors.items():
            yield Write(f"{module}.{name}", 0, from_torch(each))

    def restored(self, weight: str, tensors: Mapping[str, Tensor]) -> Quantized:
        """The inverse of :meth:`stored`, for a layer that an earlier run finished."""
        from quantkit.kernels.gptq import Quantized  # imports torch, which a plan does not need

        bits, _ = self._bits_and_group(weight)
        module = weight.removesuffix(".weight")
        zeros = unpack(tensors[f"{module}.qzeros"].T.contiguous(), bits)
        return Quantized(
            codes=unpack(tensors[f"{module}.qweight"], bits).T,
            scales=tensors[f"{module}.scales"].T.float(),
            zero_points=(zeros + self._stored_less).contiguous(),
            g_idx=tensors[f"{module}.g_idx"],
            loss=float("nan"),
        )

    def quantization_config(self, kept: Kept, quantized: Sequence[str]) -> dict[str, Any]:
        method, left = self.method, kept.in_layers  # loaders replace every other Linear there
        config: dict[str, Any] = {
            "bits": method.bits,
            "checkpoint_format": method.checkpoint_format,
            "damp_percent": method.damp_percent,
            "desc_act": method.desc_act,
            "group_size": method.group_size,
            "lm_head": False,
            "quant_method": "gptq",
            "static_groups": method.static_groups,
            "sym": method.sym,
            "true_sequential": method.true_sequential,
            "meta": {"quantizer": ["quantkit"]},
        }
        if kept.layers and kept.layers not in _KNOWN_LAYERS:
            config["block_name_to_quantize"] = kept.layers
        dynamic: dict[str, dict[str, Any]] = {f"-:^{re.escape(each)}$": {} for each in left}
        for each in self._overridden(quantized):
            bits, group = self._bits_and_group(f"{each}.weight")
            dynamic[f"+:^{re.escape(each)}$"] = {"bits": bits, "group_size": group}
        if dynamic:
            config["dynamic"] = dynamic
        if left:
            config["modules_in_block_to_quantize"] = [[each] for each in _inside(left, quantized)]
        return config

    @property
    def _stored_less(self) -> int:
        """How much less than a zero point is stored for it."""
        return 1 if self.method.checkpoint_format == "gptq" else 0

    def _bits_and_group(self, weight: str) -> tuple[int, int]:
        """The method's, or those of the last override whose pattern is found in the name."""
        bits, group = self.method.bits, self.method.group_size
        for each in self.method.override:
            if re.search(each.pattern, weight.removesuffix(".weight")):
                bits, group = each.bits or bits, each.group_size or group
        return bits, group

    def _overridden(self, modules: Sequence[str]) -> list[str]:
        usual = (self.method.bits, self.method.group_size)
        return [each for each in modules if self._bits_and_group(each) != usual]


def _int32(name: str, *shape: int) -> OutputTensor:
    return OutputTensor(name, "int32", shape, 4 * shape[0] * shape[1])


def _inside(kept: Sequence[str], quantized: Sequence[str]) -> list[str]:
    """optimum's list of modules by their names inside a layer; whole names where layers differ."""
    names = [found["inside"] for each in quantized if (found := _IN_LAYER.match(each))]
    left = {found["inside"] for each in kept if (found := _IN_LAYER.match(each))}
    if left & set(names):
        return list(quantized)
    return list(dict.fromkeys(names))
