"""The models that scale.py measures on, and a record of what was measured."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from bnb import Run
from models import SIZES, make_model, make_source, model_folder
from scale_report import Record, parameters

#: The container that a size is published in.
CONTAINERS = {"3.6B": "torch"}


def container_of(args: argparse.Namespace) -> str:
    return str(args.container or CONTAINERS.get(args.model, "safetensors"))


def source_folder(args: argparse.Namespace) -> Path:
    return model_folder(args.work, args.model, container_of(args))


def source_of(args: argparse.Namespace) -> Path:
    return make_model(args.work, args.model, container_of(args))


def truncated(args: argparse.Namespace, layers: int) -> Path:
    """The model's first layers alone, all else as in the whole model."""
    folder = args.work / f"{args.model}-{layers}-layers-{container_of(args)}"
    size = SIZES[args.model] | {"num_hidden_layers": layers}
    return make_source(folder, size, container_of(args))


def weight_bytes(folder: Path) -> int:
    """What its weight files take."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def record_of(
    args: argparse.Namespace, piece: str, run: Run, floor: float, how: str, **more: Any
) -> Record:
    return Record(
        piece=piece,
        model=args.model,
        container=container_of(args),
        parameters=parameters(SIZES[args.model]),
        source_bytes=more.pop("source_bytes"),
        output_bytes=more.pop("output_bytes", 0),
        seconds=run.seconds,
        cpu=run.cpu,
        peak=run.peak,
        floor=floor,
        how=how,
        **more,
    )


def total_layers(args: argparse.Namespace) -> int:
    return int(SIZES[args.model]["num_hidden_layers"])


def whole_bytes(args: argparse.Namespace) -> int:
    """Of the model's weights in fp16, with its old masks."""
    size = SIZES[args.model]
    masks = total_layers(args) * 2048**2 if "mask" in size else 0
    return 2 * parameters(size) + masks


def write_ids(args: argparse.Namespace, windows: int, length: int) -> Path:
    draw, vocabulary = random.Random(0), SIZES[args.model]["vocab_size"]
    ids = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(windows)]
    path = Path(args.work) / f"scale-ids-{args.model}-{windows}x{length}.json"
    path.write_text(json.dumps(ids))
    return path
