"""``quantkit demo``: the main job on a small model that the project made itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.digests import digest_file
from quantkit.errors import WithdrawnError
from quantkit.given import expanded
from quantkit.inspection import verify
from quantkit.pipeline import convert
from quantkit.resources import demo_model
from quantkit.types import AnyPath, Event, Listener, silent
from quantkit.verb import verb

RECIPE = "bnb-nf4"

_WITHDRAWN = """\
repository = "quantkit/demo"

[[releases]]
date = "2026-01-01"
status = "withdrawn"
reason = "an example: this registry of your own says so"
stated_at = "registry/withdrawn.toml"
advice = "nothing to do, this is how a refusal looks"

[[releases.files]]
name = "pytorch_model.bin"
sha256 = "{sha256}"
"""


@verb
def demo(out: AnyPath = "demo-output", *, listener: Listener = silent) -> dict[str, Any]:
    """Convert the demo model into ``out/model``, then show a refusal.

    The second run reads the same model against a registry in which its digest is
    withdrawn; it stops before anything is written.
    """
    folder = expanded(out)
    model = demo_model()
    held_out = model / "heldout.txt"
    listener(Event("demo", message="1. convert, verify, judge, save"))
    manifest = convert(
        model, RECIPE, folder / "model", text=held_out, overwrite=True, listener=listener
    )
    listener(Event("demo", message="2. the saved folder against its manifest"))
    checked = verify(folder / "model")
    listener(Event("demo", message="3. the same model, withdrawn in a registry of your own"))
    registry = _write_registry(folder / "registry", model)
    try:
        convert(model, RECIPE, folder / "refused", text=held_out, checksums=[registry])
    except WithdrawnError as error:
        refusal = str(error)
    else:
        raise AssertionError("the withdrawn demo model was converted")
    return {
        "source": str(model),
        "out": str(folder / "model"),
        "manifest": manifest,
        "verified": checked["status"],
        "refusal": refusal,
    }


def _write_registry(folder: Path, model: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    digest = digest_file(model / "pytorch_model.bin").sha256
    (folder / "withdrawn.toml").write_text(_WITHDRAWN.format(sha256=digest), encoding="utf-8")
    return folder
