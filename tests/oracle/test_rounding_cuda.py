"""GPTQ's loop for CUDA, in Triton's interpreter: the codes of the one in torch.

Triton is put into a folder of its own here, or found in ``QUANTKIT_TRITON_FOLDER``. On a card
``tests/gpu`` holds the compiled loop to the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle

TRITON = "triton==3.7.1"

SCRIPT = """
import json, sys
import torch
from quantkit.kernels import rounding, rounding_cuda
from quantkit.kernels.grid import Grid
from quantkit.kernels.rounding import Block

ROWS = 20

def block(groups, known):
    random = torch.Generator().manual_seed(len(groups))
    count = len(groups)
    scales = (torch.rand(ROWS, 6, generator=random) * 0.02 + 0.005).half().float()
    return Block(
        torch.randn(ROWS, count, generator=random) * 0.05,
        (torch.randn(count, count, generator=random) * 0.1).triu().fill_diagonal_(1.0),
        torch.rand(count, generator=random) + 0.1,
        torch.tensor(groups), scales, torch.full_like(scales, 8.0), known)

found = []
for bits, group, sym, search, groups, known in json.loads(sys.argv[1]):
    grid = Grid(bits, group, sym, search, static=known, least_zero=1)
    one, other = block(groups, known), block(groups, known)
    wanted, made = rounding.round_block(one, grid), rounding_cuda.round_block(other, grid)
    found.append([
        bool(torch.equal(wanted[0], made[0])),
        bool(torch.equal(one.scales, other.scales)),
        bool(torch.equal(one.zero_points, other.zero_points)),
        float((wanted[1] - made[1]).abs().max()),
        float((wanted[2] / made[2] - 1).abs().max()),
    ])
print(json.dumps(found))
"""

#: bits, group size, sym, search, each column's group, known
CASES = [
    (4, 16, True, True, [1] * 16 + [2] * 16, False),
    (3, 32, False, True, [4] * 32, False),
    (2, 16, True, False, [0] * 16 + [5] * 16, False),
    (8, 16, False, False, [3] * 16, False),
    (4, 32, True, True, [0, 5, 5, 1, 2] * 4 + [3] * 4, True),
]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if folder := os.environ.get("QUANTKIT_TRITON_FOLDER"):
        return Path(folder)
    made = tmp_path_factory.mktemp("triton")
    words = ["install", "--quiet", "--no-deps", "--target", str(made), TRITON]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return made


def test_the_loop_for_cuda_gives_the_codes_of_torch(triton: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"PYTHONPATH": f"{triton}:{root}", "TRITON_INTERPRET": "1"}
    words = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    done = subprocess.run(words, env=env, check=True, capture_output=True, text=True)
    for case, (*same, errors, losses) in zip(CASES, json.loads(done.stdout), strict=True):
        assert all(same), case
        assert errors < 1e-5, case
        assert losses < 1e-5, case  # by itself: max() passes over what is no number
