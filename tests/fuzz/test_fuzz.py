"""A few seconds of what campaign.py does for long: never another error than ours, never code.

200,000 cases a target: ``python tests/fuzz/campaign.py safetensors`` (pickle, index, config).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from fuzz.campaign import run
from fuzz.mutations import SEEDS
from fuzz.targets import CANARY, TARGETS, heard, listen, one_tensor, stop_listening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("QUANTKIT_FUZZ", "300"))

LIMITS = settings(
    max_examples=25, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _listening() -> Iterator[None]:
    listen()
    yield
    stop_listening()


@pytest.mark.parametrize("target", ["safetensors", "pickle", "index", "config"])
def test_mutations(target: str) -> None:
    found = run(target, CASES, seed=2026, seconds=60)
    assert found["code_run"] == 0
    assert 0 < int(str(found["accepted"])) < int(str(found["cases"])), "both ways were gone"


def test_a_few_go_through_transformers() -> None:
    for seed in SEEDS["plan"]:  # the libraries are loaded here, which is not the config's doing
        assert TARGETS["plan"](seed) in (True, False)
    assert run("plan", 12, seed=1)["code_run"] == 0


NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 2**64])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)  # fmt: skip
ENTRIES = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets", "x"]),
    st.sampled_from(["F32", "F16", "BOOL", "I128"]) | st.lists(NUMBERS, max_size=3) | VALUES,
)


@LIMITS
@given(
    st.dictionaries(st.text(max_size=12) | st.just("__metadata__"), ENTRIES | VALUES), st.binary()
)
def test_any_header(header: dict[str, object], data: bytes) -> None:
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    TARGETS["safetensors"](len(raw).to_bytes(8, "little") + raw + data)


@LIMITS
@given(
    st.dictionaries(st.text(max_size=8), VALUES | st.sampled_from(["model-1.safetensors", "../x"]))
)
def test_any_index(weight_map: dict[str, object]) -> None:
    TARGETS["index"](json.dumps({"weight_map": weight_map}).encode("utf-8", "surrogatepass"))


@LIMITS
@given(st.dictionaries(st.sampled_from(["model_type", "vocab_size", "auto_map", "x"]), VALUES))
def test_any_config(config: dict[str, object]) -> None:
    TARGETS["config"](json.dumps(config).encode("utf-8", "surrogatepass"))


@LIMITS
@given(st.binary(max_size=200))
def test_any_pickle(data: bytes) -> None:
    TARGETS["pickle"](b"\x80\x02" + data)
    assert heard == []
    assert not CANARY.exists()


def test_the_alarm_works() -> None:
    """What would be heard, if a pickle were loaded."""
    import pickle

    pickle.loads(b"ccollections\nOrderedDict\n)R.")
    assert heard == ["pickle.find_class"]
    heard.clear()
    assert TARGETS["safetensors"](one_tensor("w"))
