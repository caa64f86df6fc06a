"""GPTQ over a whole model, one layer in memory.

Each layer is run to gather its modules' Hessians, quantized, and run again as it now is, so
that the next layer sees what it will be given. With ``true_sequential`` each group of modules
is calibrated after those before it were quantized, on what they then give; outputs that are
final are kept, so that no module is run twice for it. With ``error_feedback`` some windows
also go through the unquantized model, and weights make good a share of the difference. A
finished layer is on the disk; a rerun takes it up, runs it for its outputs, and goes on with
the next: the same bytes as one undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.activations import Activations
from quantkit.calibration import Calibration
from quantkit.checkpoint import read_tensor
from quantkit.devices import tensor_cores
from quantkit.elements import from_torch
from quantkit.errors import NonFiniteError
from quantkit.finished import FinishedLayers
from quantkit.formats import Gptq, Write
from quantkit.heap import large_blocks_return
from quantkit.kernels.gptq import make_good, quantize
from quantkit.kernels.hessian import Factor, Order, factorize
from quantkit.layer import Layer
from quantkit.methods import GptqMethod
from quantkit.modulewise import ModuleReport, report_of
from quantkit.observing import (
    FEEDBACK_EVERY,
    Shared,
    advance,
    gather,
    shared_inputs,
    side_by_side,
)
from quantkit.plans import Plan, TensorPlan
from quantkit.shell import Load
from quantkit.skeleton import build_empty, parse_config
from quantkit.source import Source
from quantkit.sweep import Sweep
from quantkit.types import Digested, Event, Listener

#: Columns of a model's widest weight from which a CUDA device multiplies as TF32. Narrower ones
#: are sooner done than their kernels are launched, and rounding's share of a sum is larger there.
TENSOR_CORES_FROM = 4096


@dataclass(frozen=True)
class Calibrated:
    """Where the quantized weights lie, and how each module came out.

    ``source`` are the digests of what they were made from.
    """

    modules: tuple[ModuleReport, ...]
    source: Digested
    _layers: FinishedLayers
    _home: Mapping[str, int]

    def writes(self, item: TensorPlan) -> Iterator[Write]:
        """The output tensors that stand for one weight."""
        names = [each.name for each in item.outputs]
        tensors = self._layers.tensors(self._home[item.source.name], names)
        yield from (Write(name, 0, from_torch(tensors[name])) for name in names)


def calibrate(
    plan: Plan,
    source: Source,
    form: Gptq,
    calibration: Calibration,
    folder: Path,
    identity: Mapping[str, Any],
    digests: Digested,
    *,
    device: str,
    listener: Listener,
) -> Calibrated:
    """Quantize every weight that ``plan`` says, into ``folder``.

    ``identity`` is all that the result depends on beside the source, whose ``digests`` these
    are; layers that ``folder`` holds from an earlier run of the same are taken up.
    """
    model = build_empty(parse_config(source.folder, source.config), "float32", with_buffers=True)
    files = [each.sha256 for each in digests.files]
    layers = FinishedLayers(folder, {**identity, "source": files})
    home: dict[str, int] = {}
    reports: list[ModuleReport] = []
    resumed = 0
    load, windows = _loader(plan, source, model), side_by_side(calibration.windows)
    feedback = form.method.error_feedback > 0
    sweep = Sweep(model, load, windows, folder, device=device, to_logits=False)
    with large_blocks_return(), tensor_cores(allowed=_on_tensor_cores(plan, device)), sweep:
        some = range(0, len(windows), FEEDBACK_EVERY)
        states = sweep.copy_states(some) if feedback else None
        for layer in sweep.layers():
            items = _items(plan, layer)
            home |= {each.source.name: layer.index for each in items.values()}
            tell = _counter(listener, layer.index, len(sweep.names), windows)
            recorded = layers.found(layer.index)
            if recorded is not None:
                if states is not None:
                    advance(layer, states)
                _take_up(layer, items, form, layers.tensors(layer.index))
                resumed += 1
                found = [ModuleReport(**each) for each in recorded["modules"]]
                tell(len(windows))
            else:
                if resumed and resumed == layer.index:
                    listener(Event("resume", message=f"{resumed} layers are finished; going on"))
                found = _quantize_layer(layer, items, form, layers, states, tell)
            reports += found
            del layer  # before the next is built
    if resumed == len(sweep.names):
        listener(Event("resume", message="all layers were finished; writing the files"))
    return Calibrated(tuple(reports), digests, layers, home)


def _on_tensor_cores(plan: Plan, device: str) -> bool:
    """Whether a model is so wide that TF32 is worth what it loses."""
    widest = max(each.shape[1] for each in plan.with_action("quantize") if each.shape is not None)
    return device == "cuda" and widest >= TENSOR_CORES_FROM


def _counter(
    listener: Listener, index: int, layers: int, batches: Sequence[Sequence[object]]
) -> Callable[[int], None]:
    """A function that is told how many batches a layer has seen, and tells of windows in all."""
    ends = [0, *accumulate(map(len, batches))]
    return lambda done: listener(
        Event("calibrate", index * ends[-1] + ends[done], layers * ends[-1], "windows")
    )


def _loader(plan: Plan, source: Source, model: Any) -> Load:
    """Weights by their names in memory, straight from the source."""
    records = {each.memory: each.source for each in plan.tensors if each.memory}
    ties = {str(tied): str(own) for tied, own in model.all_tied_weights_keys.items()}
    ties |= {own: tied for tied, own in ties.items()}  # either may be what is stored
    stamps = source.checkpoint.stamps

    def load(names: Sequence[str]) -> Mapping[str, Tensor]:
        held = {name: records.get(name) or records[ties[name]] for name in names}
        return {
            name: read_tensor(source.folder, record, stamps[record.file])
            for name, record in held.items()
        }

    return load


def _items(plan: Plan, layer: Layer) -> dict[str, TensorPlan]:
    """What is to be quantized in ``layer``, by the module's name inside it."""
    inside = f"{layer.name}."
    return {
        each.memory.removeprefix(inside).removesuffix(".weight"): each
        for each in plan.with_action("quantize")
        if each.memory is not None and each.memory.startswith(inside)
    }


@torch.inference_mode()
def _quantize_layer(
    layer: Layer,
    items: Mapping[str, TensorPlan],
    form: Gptq,
    layers: FinishedLayers,
    states: Activations | None,
    tell: Callable[[int], None],
) -> list[ModuleReport]:
    reports: dict[str, ModuleReport] = {}
    writes: list[Write] = []
    for shared in _gathered(layer, tuple(items), form.method, states, tell):
        with tensor_cores(allowed=False):  # a factorization wants all bits
            for name, report, stored in _rounded(layer, shared, items, form):
                reports[name] = report
                writes += stored
    outputs = [output for each in items.values() for output in each.outputs]
    found = [reports[name] for name in items]
    layers.add(layer.index, outputs, writes, {"modules": [asdict(each) for each in found]})
    return found


def _rounded(
    layer: Layer, shared: Shared, items: Mapping[str, TensorPlan], form: Gptq
) -> Iterator[tuple[str, ModuleReport, list[Write]]]:
    """Quantize modules with one input, in the layer too; their names, reports and tensors."""
    grids = {
        name: form.grid(items[name].source.name, shared.hessian.shape[0]) for name in shared.modules
    }
    factors = _factors(shared, form.method, {each.group_size for each in grids.values()})
    good = {
        size: make_good(shared.crossed, factor, form.method.error_feedback)
        for size, factor in factors.items()
        if shared.crossed is not None
    }
    for name, grid in grids.items():
        item, factor = items[name], factors[grid.group_size]
        weight = _finite(layer.weight(name), item)
        moved = _moved(shared, name, weight, factor, good.get(grid.group_size), form.method)
        made = quantize(weight, factor, grid, moved)
        del moved
        if not bool(torch.isfinite(made.scales.half()).all()):
            raise NonFiniteError(
                f"{item.source.name}: its scales overflow float16, which is what loaders read; "
                "leave it out (method.ignore)"
            )
        decoded = made.dequantized()
        report = report_of(weight, item, form, made, decoded, factor, shared.tokens)
        weight.copy_(decoded)
        yield name, report, [*form.stored(item.source.name, made)]


def _moved(
    shared: Shared,
    name: str,
    weight: Tensor,
    factor: Factor,
    good: Tensor | None,
    method: GptqMethod,
) -> Tensor | None:
    """How far a weight moves: times ``good``, made once of what is ``crossed``, or by what it
    lacks."""
    if good is not None:
        return weight @ good
    lacking = shared.lacking.pop(name, None)  # let go before the weight is rounded
    return None if lacking is None else make_good(lacking, factor, method.error_feedback)


def _gathered(
    layer: Layer,
    names: Sequence[str],
    method: GptqMethod,
    states: Activations | None,
    tell: Callable[[int], None],
) -> Iterator[Shared]:
    """The Hessians, of all groups in one run or of each in its own; then of modules that never
    run."""
    wanted = shared_inputs(layer, names) if states is None else advance(layer, states, names)
    groups = wanted.groups
    runs = [[group] for group in groups] if method.true_sequential else [groups]
    for at, run in enumerate(filter(None, runs)):

        def progress(done: int, before: int = at * len(layer.windows)) -> None:
            tell((before + done) // len(runs))

        yield from gather(layer, run, wanted, progress)
        if at + 1 < len(runs):
            layer.keep(_flat(groups[: at + 1]), _flat(groups[at + 1 :]))
    for name in names:
        if name not in _flat(groups):
            columns = layer.weight(name).shape[1]
            yield Shared((name,), torch.full((columns, columns), torch.nan), 0)


def _flat(groups: Sequence[Sequence[str]]) -> list[str]:
    return [name for group in groups for name in group]


def _factors(shared: Shared, method: GptqMethod, group_sizes: set[int]) -> dict[int, Factor]:
    """One for each group size; the Hessian is used up by the last."""
    made, last = {}, max(group_sizes)
    for size in sorted(group_sizes):
        hessian = shared.hessian if size == last else shared.hessian.clone()
        made[size] = factorize(hessian, method.damp_percent, _order(method), size)
    return made


def _order(method: GptqMethod) -> Order:
    if method.desc_act:
        return "diagonal"
    return "grouped" if method.group_order else "source"


def _finite(weight: Tensor, item: TensorPlan) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        count = weight.numel() - int(torch.isfinite(weight).sum())
        raise NonFiniteError(
            f"{item.source.name}: {count} values are NaN or infinite; the source is damaged"
        )
    return weight


def _take_up(
    layer: Layer, items: Mapping[str, TensorPlan], form: Gptq, tensors: Mapping[str, Tensor]
) -> None:
    for name, item in items.items():
        layer.weight(name).copy_(form.restored(item.source.name, tensors).dequantized())
