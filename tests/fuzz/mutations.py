"""Seeds, words that readers stumble over, and mutations; the same for the same seed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence

from fuzz.targets import CANARY, in_zip, one_tensor

_INTEGERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)

_NUMBERS = [str(each).encode() for each in (*_INTEGERS, -1, -(2**63), 10**30)]
_JSON = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999",
    b'"\\ud800"', b'"\\u0000"', b'"../x"', b'"/etc/passwd"', b'"a/b.safetensors"', b"\xef\xbb\xbf",
    b"[" * 500, b'{"a":' * 500, b'"__metadata__":{}', b'"dtype":"F8_E4M3"', b'"shape":[0]',
    b'"auto_map":{"AutoConfig":"evil.C"}', b'"num_hidden_layers":', b'"vocab_size":', b'"num_labels":',
    b'"chat_template":"{{ x.__class__.__mro__ }}"', b'"model_type":"gpt2"', b"\xff", b"\xed\xa0\x80",
]  # fmt: skip

_RUN = b"cposix\nsystem\nX" + struct.pack("<I", len(f"touch {CANARY}")) + f"touch {CANARY}".encode()
_PICKLE = [
    b"\x80\x02", b"\x80\x05", b"(", b")", b"]", b"}", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"Q",
    b"\x93", b"\x81", b"\x92", b"\x82\x01", b"0", b"1", b"2", b"q\0", b"h\0", b"\x94", b"N", b"\x88",
    b"\x8a\x08" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"X\xff\xff\xff\xff",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cjoblib\nload\n", b"(ios\nsystem\n", _RUN + b"\x85R",
]  # fmt: skip


def _pickle_seed() -> bytes:
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    )
    ordered = b"ccollections\nOrderedDict\n)R"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89"
    )
    return b"\x80\x02" + ordered + b"(" + text("w") + tensor + ordered + b"tRu."


def _header(entries: object, data: int) -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


_CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96,
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float16", "eos_token_id": [2],
}  # fmt: skip

SEEDS: dict[str, list[bytes]] = {
    "safetensors": [
        one_tensor("w"),
        _header({"__metadata__": {"format": "pt"},
                 "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
                 "b": {"dtype": "BOOL", "shape": [], "data_offsets": [12, 13]}}, 13),
        _header({}, 0),
    ],
    "pickle": [_pickle_seed(), in_zip(_pickle_seed()), b"\x80\x02}.", _RUN + b"\x85R."],
    "index": [
        json.dumps({"metadata": {"total_size": 16}, "weight_map": {
            "a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode(),
    ],
    "config": [
        json.dumps(_CONFIG).encode(),
        b' {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages[0].content }}"}',
    ],
    "plan": [json.dumps(_CONFIG).encode(), json.dumps(_CONFIG | {"model_type": "gpt2"}).encode()],
}  # fmt: skip

WORDS: dict[str, Sequence[bytes]] = {
    "safetensors": [*_JSON, *_NUMBERS, *(struct.pack("<Q", each) for each in _INTEGERS)],
    "pickle": [*_PICKLE, b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", *(
        struct.pack("<I", each & 0xFFFFFFFF) for each in _INTEGERS)],
    "index": [*_JSON, *_NUMBERS],
    "config": [*_JSON, *_NUMBERS],
    "plan": [*_JSON, *_NUMBERS],
}  # fmt: skip


class Mutator:
    """Endless cases of one target. What was accepted joins the seeds."""

    def __init__(self, target: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self._seeds = list(SEEDS[target])
        self._words = WORDS[target]
        self._json = target in ("index", "config", "plan")

    def keep(self, data: bytes) -> None:
        if len(self._seeds) < 500 and len(data) < 4096:
            self._seeds.append(data)

    def next(self) -> bytes:
        rng = self._rng
        data = rng.choice(self._seeds)
        if self._json and rng.random() < 0.4:
            return self._with_another_value(data)
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            self._change(changed)
        if changed[8:9] == b"{" and rng.random() < 0.5:  # a header's length, made right again
            self._repair_length(changed)
        return bytes(changed)

    def _change(self, data: bytearray) -> None:
        rng = self._rng
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 40)))
        match rng.randrange(7):
            case 0 if data:
                data[at - 1] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at - 1] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 4:
                data[at:at] = rng.choice(self._words)
            case 5:
                word = rng.choice(self._words)
                data[at : at + len(word)] = word
            case _:
                other = rng.choice(self._seeds)
                cut = rng.randrange(len(other) + 1)
                data[at:] = other[cut:]

    def _repair_length(self, data: bytearray) -> None:
        end = data.rfind(b"}") + 1
        if end > 8:
            data[:8] = (end - 8).to_bytes(8, "little")

    def _with_another_value(self, data: bytes) -> bytes:
        """Valid JSON with one key or value of another kind."""
        rng = self._rng
        try:
            value = json.loads(data)
        except ValueError:
            return data
        if not isinstance(value, dict) or not value:
            return data
        holder = value
        key = rng.choice(list(holder))
        if isinstance(holder[key], dict) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
            key = rng.choice(list(holder))
        holder[key] = rng.choice(
            [None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1.5, "", "x" * 3000, "../a", "a\nb",
             "\u202eevil", "<b>", [], [[[]]], {}, {"a": {}}, [1, "2"], "model-1.safetensors", 300]
        )  # fmt: skip
        if rng.random() < 0.2:
            holder[
                rng.choice(["num_labels", "head_dim", "n_layer", "auto_map", "dtype", "é\0"])
            ] = 9
        lead = b" " if data.startswith(b" ") else b""
        return lead + json.dumps(value, ensure_ascii=rng.random() < 0.8).encode(
            "utf-8", "surrogatepass"
        )
