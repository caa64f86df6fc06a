"""GPTQ folders open in the libraries that people use, in environments built here.

transformers 5 with optimum and GPTQModel, GPTQModel by itself, and AutoGPTQ 0.7.1 on
transformers 4.44.2. Logits must be those of our own decoded weights. An environment that
is there already may be named (``QUANTKIT_GPTQMODEL_PYTHON``, ``QUANTKIT_AUTOGPTQ_PYTHON``).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from oracle import environments
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import quantkit
from quantkit.gate.decoding import decode_gptq
from quantkit.resources import demo_model

pytestmark = pytest.mark.oracle

GPTQMODEL = (
    "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "numpy<2.3", "optimum==2.3.0",
    "gptqmodel==7.6.0", "sentencepiece==0.2.3", "protobuf",
)  # fmt: skip
AUTOGPTQ = (
    "torch==2.13.0", "transformers==4.44.2", "datasets==2.21.0", "peft==0.12.0",
    "accelerate==0.34.2", "numpy<2", "pyarrow<17", "sentencepiece", "protobuf", "setuptools",
    "wheel",
)  # fmt: skip

SCRIPT = """
import json, os, sys
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
import torch
how, jobs = sys.argv[1], json.load(open(sys.argv[2]))
for folder, ids, out in jobs:
    if how == "transformers":
        from transformers import AutoModelForCausalLM
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, device_map="cpu", dtype=torch.float16, output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "mismatched_keys")), info
    elif how == "gptqmodel":
        from gptqmodel import BACKEND, GPTQModel
        model = GPTQModel.load(
            folder, device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH).model
    else:
        from auto_gptq import AutoGPTQForCausalLM
        model = AutoGPTQForCausalLM.from_quantized(
            folder, device="cpu", use_triton=False, disable_exllama=True,
            disable_exllamav2=True, torch_dtype=torch.float32).model
    with torch.inference_mode():
        logits = [model(torch.tensor([each])).logits[0].float() for each in ids]
    torch.save({"logits": logits, "head": model.get_output_embeddings().weight.float()}, out)
"""

#: Every Linear of a width that AutoGPTQ takes: it knows no modules left as they are.
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt_neox": ("gpt_neox", {}),
    "llama-tied": ("llama", {"intermediate_size": 128}),
    "llama-untied": ("llama", {"intermediate_size": 128, "tie_word_embeddings": False}),
    "opt": ("opt", {}),
    "mistral": ("mistral", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-without-c_proj": ("gpt2", {}),
}
#: Shapes with modules left as they are, which AutoGPTQ has no way to be told of.
LEFT = {"gpt2-without-c_proj": ('method.ignore=["c_proj"]',)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[int]]]]:
    """Converted folders by name, with ids to ask them; 2, 3, 4 and 8 bits among them."""
    root = tmp_path_factory.mktemp("gptq")
    draw = random.Random(0)
    windows = [[draw.randrange(96) for _ in range(32)] for _ in range(16)]
    (root / "ids.json").write_text(json.dumps(windows))
    made = {}
    for name, (model_type, changes) in SHAPES.items():
        for bits in (2, 3, 4, 8) if name == "gpt_neox" else (4,):
            source = root / f"{name}-{bits}-source"
            _write(source, model_type, changes)
            out = root / f"{name}-{bits}"
            quantkit.convert(
                source, "gptq-4bit-g128", out, calibration=root / "ids.json", no_gate=True,
                set=["method.group_size=32", f"method.bits={bits}", "calibration.packing=apart",
                     f"method.desc_act={'true' if name == 'mistral' else 'false'}",
                     *LEFT.get(name, ())],
            )  # fmt: skip
            made[f"{name}-{bits}"] = (out, windows[:2])
    return made


def _write(folder: Path, model_type: str, changes: dict[str, object]) -> None:
    own = dict(tiny.CONFIGS[model_type])
    tiny.CONFIGS[model_type] |= changes
    try:
        model = tiny.build(model_type, torch.float16)
        tiny.write_source(folder, model_type, torch.float16)
        if model_type == "gpt2":  # neither GPTQModel nor AutoGPTQ adds the prefix on load
            tiny.write_state(folder, model.state_dict(), "safetensors")
    finally:
        tiny.CONFIGS[model_type] = own
    for file in ("spiece.model", "tokenizer_config.json"):  # GPTQModel opens nothing without one
        shutil.copy(demo_model() / file, folder / file)


def decoded_logits(folder: Path, source: Path, ids: list[list[int]]) -> list[torch.Tensor]:
    """Of the source's model in float32 with our decoded weights, rounded to float16, in place."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    stored = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    for name, module in model.named_modules():
        if f"{name}.qweight" in stored:
            parts = {
                part: stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")
            }
            weight = decode_gptq(parts, settings).half().float()
            module.weight.data = weight if isinstance(module, torch.nn.Linear) else weight.T
    with torch.inference_mode():
        return [model(torch.tensor([each])).logits[0] for each in ids]


@pytest.fixture(scope="module")
def python_gptqmodel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("QUANTKIT_GPTQMODEL_PYTHON"):
        return Path(named)
    python = environments.make(tmp_path_factory.mktemp("gptqmodel"))
    environments.lend_torch(python, GPTQMODEL)
    environments.install(python, *GPTQMODEL)
    return python


@pytest.fixture(scope="module")
def python_autogptq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("QUANTKIT_AUTOGPTQ_PYTHON"):
        return Path(named)
    python = environments.make(tmp_path_factory.mktemp("autogptq"))
    environments.lend_torch(python, AUTOGPTQ)
    environments.install(python, *AUTOGPTQ)
    wanted = ("auto-gptq==0.7.1", "torch==2.13.0", "numpy<2")
    environments.install(python, "--no-build-isolation", *wanted, BUILD_CUDA_EXT="0")
    return python


def opens_alike(python: Path, how: str, folders: dict, tmp_path: Path) -> None:
    jobs = [(str(f), ids, str(tmp_path / f"{name}.pt")) for name, (f, ids) in folders.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [python, "-c", SCRIPT, how, tmp_path / "jobs.json"], capture_output=True, text=True,
        check=False, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (folder, ids) in folders.items():
        got = torch.load(tmp_path / f"{name}.pt")
        assert float(got["head"].abs().max()) > 0, f"{name}: the head is zeros"
        wanted = decoded_logits(folder, folder.with_name(f"{folder.name}-source"), ids)
        for ours, theirs in zip(wanted, got["logits"], strict=True):
            worst = float((ours - theirs).abs().max() / ours.abs().max())
            assert worst < 1e-2, (how, name, worst)


def test_transformers_with_optimum(python_gptqmodel: Path, folders: dict, tmp_path: Path) -> None:
    others = {name: each for name, each in folders.items() if name != "gpt2-4"}
    assert "gpt2-without-c_proj-4" in others
    opens_alike(python_gptqmodel, "transformers", others, tmp_path)


def one(root: Path, model_type: str, *sets: str) -> dict[str, tuple[Path, list[list[int]]]]:
    """A converted folder of its own, as ``folders`` has them."""
    out, ids = root / model_type, root / "ids.json"
    _write(root / f"{model_type}-source", model_type, {})
    draw = random.Random(0)
    windows = [[draw.randrange(96) for _ in range(32)] for _ in range(16)]
    ids.write_text(json.dumps(windows))
    quantkit.convert(
        root / f"{model_type}-source", "gptq-4bit-g128", out, calibration=ids, no_gate=True,
        set=["calibration.packing=apart", *sets],
    )  # fmt: skip
    return {model_type: (out, windows[:2])}


def test_layers_that_optimum_has_to_be_told_of(python_gptqmodel: Path, tmp_path: Path) -> None:
    """MPT's lie in ``transformer.blocks``, which is none of the names that it looks under."""
    tiny.CONFIGS["mpt"] = {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4}
    made = one(tmp_path, "mpt", "method.group_size=32")
    opens_alike(python_gptqmodel, "transformers", made, tmp_path)


@pytest.mark.parametrize(
    ("sets", "seen"),
    [
        (["method.group_size=-1", "method.sym=false"], "mistral"),
        (["method.group_size=16"], "qGroup"),
    ],
)
def test_what_the_plan_says_of_kernels_is_so(
    python_gptqmodel: Path, tmp_path: Path, sets: list[str], seen: str
) -> None:
    """When this fails, it is mended there."""
    made = one(tmp_path, "mistral", *sets)
    with pytest.raises(AssertionError, match=seen):
        opens_alike(python_gptqmodel, "transformers", made, tmp_path)


def test_what_the_plan_says_of_gpt2_is_so(
    python_gptqmodel: Path, folders: dict, tmp_path: Path
) -> None:
    """transformers 5.23 initializes ``c_proj.weight``; when this fails, it is mended there."""
    with pytest.raises(AssertionError, match=r"module\.c_proj\.weight"):
        opens_alike(python_gptqmodel, "transformers", {"gpt2-4": folders["gpt2-4"]}, tmp_path)


def test_gptqmodel(python_gptqmodel: Path, folders: dict, tmp_path: Path) -> None:
    opens_alike(python_gptqmodel, "gptqmodel", folders, tmp_path)


def test_autogptq(python_autogptq: Path, folders: dict, tmp_path: Path) -> None:
    whole = {name: each for name, each in folders.items() if name.rpartition("-")[0] not in LEFT}
    opens_alike(python_autogptq, "autogptq", whole, tmp_path)
