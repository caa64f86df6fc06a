"""The verbs. Each parses, calls the function of the same name, and shows what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import quantkit
from quantkit.cli.benchmarks import eval_
from quantkit.cli.listing import listing
from quantkit.cli.options import (
    Against,
    AllowWithdrawn,
    AsJson,
    Checksums,
    ClaimedRepo,
    ComputeDevice,
    DeviceName,
    Overrides,
    PublicKey,
    RecipeName,
    RequireVerified,
    Revision,
    SigningKey,
    Source,
    Texts,
)
from quantkit.cli.publication import publish
from quantkit.cli.rows import checked_json, converted_json
from quantkit.cli.session import session, settled
from quantkit.errors import GateError, QuantkitError

app = typer.Typer(
    name="quantkit",
    help="Turn a checkpoint you can prove into a quantized repository you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 source not verified or withdrawn, "
    "4 gate failed, 130 interrupted (143 by SIGTERM).",
)


app.add_typer(listing, name="checksums")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"quantkit {quantkit.__version__}")
        raise typer.Exit


@app.command()
def convert(
    source: Source,
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    revision: Revision = None,
    device: ComputeDevice = DeviceName.auto,
    text: Texts = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="What GPTQ calibrates on: .txt, .jsonl or ids (.json)."),
    ] = None,
    checksums: Checksums = None,
    require_verified: RequireVerified = False,
    allow_withdrawn: AllowWithdrawn = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Save without judging; recorded as not run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output, if quantkit made it.")
    ] = False,
    sign: SigningKey = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Verify, quantize, judge and save a checkpoint."""
    again = "interrupted; nothing was saved: run the same command again, it takes up what is done"
    with session(as_json=as_json, interrupted=again) as display:
        try:
            manifest = quantkit.convert(
                source,
                recipe,
                out,
                revision=revision,
                device=device.value,
                text=text or None,
                calibration=calibration,
                checksums=checksums or (),
                require_verified=require_verified,
                allow_withdrawn=allow_withdrawn,
                no_gate=no_gate,
                overwrite=overwrite,
                sign=sign,
                set=set_ or (),
                listener=display.listener,
            )
        except GateError as error:  # a result too
            raise GateError(str(error), converted_json(source, out, error.found)) from None
        settled()
        display.converted(source, out, manifest)


@app.command()
def plan(
    source: Source,
    recipe: RecipeName,
    revision: Revision = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show every tensor's fate and every file's size; writes nothing."""
    with session(as_json=as_json) as display:
        made = quantkit.plan(
            source, recipe, revision=revision, set=set_ or (), listener=display.listener
        )
        display.planned(made)


@app.command()
def verify(
    path_or_repo: Annotated[
        str, typer.Argument(metavar="PATH_OR_REPO", help="A checkpoint, or quantkit's output.")
    ],
    revision: Revision = None,
    repo: ClaimedRepo = None,
    public_key: PublicKey = None,
    checksums: Checksums = None,
    require_verified: RequireVerified = False,
    allow_withdrawn: AllowWithdrawn = False,
    as_json: AsJson = False,
) -> None:
    """Digest a checkpoint or an output and hold it to the registry and its manifest."""
    with session(as_json=as_json) as display:
        found = quantkit.verify(
            path_or_repo,
            revision=revision,
            repo=repo,
            public_key=public_key,
            checksums=checksums or (),
            require_verified=require_verified,
            allow_withdrawn=allow_withdrawn,
            listener=display.listener,
        )
        display.verified(found)


@app.command()
def check(
    dir: Annotated[
        str, typer.Argument(metavar="DIR", help="A quantized folder or Hub id, whoever made it.")
    ],
    against: Against,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Whose thresholds; else those of the format."),
    ] = None,
    revision: Revision = None,
    device: ComputeDevice = DeviceName.auto,
    text: Texts = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write DIR/report: a page, plots, JSON."),
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Judge any quantized folder against its source; writes only --report."""
    with session(as_json=as_json) as display:
        found = quantkit.check(
            dir,
            against,
            recipe=recipe,
            revision=revision,
            device=device.value,
            text=text or None,
            report=report,
            set=set_ or (),
            listener=display.listener,
        )
        display.checked(found)
        if found["gate"]["status"] == "failed":
            raise GateError(f"{dir}: gate failed", checked_json(found))
        if found["gate"]["status"] == "not_run":
            reasons = "; ".join(f"{k}: {why}" for k, why in found["gate"]["reasons"].items())
            said = f"{dir}: not judged, so not passed: {reasons}"
            raise QuantkitError(said, checked_json(found))


@app.command()
def check_tokenizer(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder with a spiece.model.")],
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to check besides the built-in corpus.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what transformers makes of a folder's tokenizer with its sentencepiece model."""
    with session(as_json=as_json) as display:
        found = quantkit.check_tokenizer(path, text=text, listener=display.listener)
        display.tokenizer(found)
        if found["status"] != "passed":
            raise GateError(f"{path}: the tokenizer failed", found)


@app.command()
def compare(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Quantized folders or Hub ids, of one source."),
    ],
    against: Against,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Whose windows are taken.")
    ] = "bnb-nf4",
    revision: Revision = None,
    device: ComputeDevice = DeviceName.auto,
    text: Texts = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="A PNG to write: size against KL divergence.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure several quantizations of one source in one pass over it; writes only --plot."""
    with session(as_json=as_json) as display:
        found = quantkit.compare(
            folders,
            against,
            recipe=recipe,
            revision=revision,
            device=device.value,
            text=text or None,
            plot=plot,
            set=set_ or (),
            listener=display.listener,
        )
        display.compared(found)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that are built in, or print one's file: a beginning for your own."""
    from quantkit.recipe import recipe_text

    with session(as_json=as_json) as display:
        chosen = [quantkit.load_recipe(name)] if name else quantkit.recipes()
        display.recipes(chosen, recipe_text(name) if name else "")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")] = Path(
        "demo-output"
    ),
    as_json: AsJson = False,
) -> None:
    """Do the main job on a small model that the project made; nothing is downloaded."""
    with session(as_json=as_json) as display:
        shown = quantkit.demo(out, listener=display.listener)
        settled()
        display.demonstrated(shown)


app.command()(publish)
app.command("eval")(eval_)
