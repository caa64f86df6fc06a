"""The options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


ComputeDevice = Annotated[
    DeviceName, typer.Option("--device", help="auto takes CUDA when there is one.")
]
Against = Annotated[
    str, typer.Option("--against", metavar="SOURCE", help="The checkpoint it was made from.")
]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A checkpoint's folder, or a Hub id (owner/name).")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="A recipe's name (see 'recipes'), or a .toml file.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub id.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one recipe value; may be repeated."),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option(
        "--text", help="Evaluation text (.txt), or token ids (.json); may be repeated, for domains."
    ),
]
Checksums = Annotated[
    list[Path] | None,
    typer.Option("--checksums", metavar="DIR", help="More registry entries; may be repeated."),
]
ClaimedRepo = Annotated[
    str | None,
    typer.Option(
        "--repo", metavar="OWNER/NAME", help="What a checkpoint is said to be; held to its entry."
    ),
]
PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", help="Whose signature (PEM) is expected on an output."),
]
SigningKey = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the output with this private key (PEM)."),
]
RequireVerified = Annotated[
    bool,
    typer.Option("--require-verified", help="Stop unless the digests are a current release's."),
]
AllowWithdrawn = Annotated[
    bool,
    typer.Option("--allow-withdrawn", help="Go on with a withdrawn release; the result says so."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
