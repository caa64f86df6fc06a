"""The story: proven bytes in, one pass, the saved artefact judged, one rename."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.calibration import read_calibration
from quantkit.card import NAME as CARD
from quantkit.card import write_card
from quantkit.clock import Clock
from quantkit.devices import Device, choose_device
from quantkit.digests import digest_file
from quantkit.evaluation import Material, Texts, read_material
from quantkit.execution import Job, Staged, mark_failed, stage
from quantkit.gate import GateReport, gate_not_run
from quantkit.given import expanded, paths_of
from quantkit.manifest import build_manifest
from quantkit.outlook import foretell
from quantkit.planning import make_plan
from quantkit.plans import Plan, summary
from quantkit.provenance import PROVENANCE, write_provenance
from quantkit.quiet import need_current_folder
from quantkit.recipe import Recipe, load_recipe, overrides_of
from quantkit.records import write_manifest
from quantkit.registry import checksums as read_checksums
from quantkit.report import write_report
from quantkit.signing import Signer, open_signer
from quantkit.source import Source, is_hub_id, open_source
from quantkit.staging import check_free, cleaned, commit, held, staging_for
from quantkit.types import AnyPath, Event, Listener, silent
from quantkit.verb import verb
from quantkit.verification import Policy, VerifiedSource, prove, settle


@verb
def plan(
    source: AnyPath,
    recipe: AnyPath,
    *,
    revision: str | None = None,
    set: str | Iterable[str] = (),
    listener: Listener = silent,
) -> Plan:
    """Every tensor's fate and every output file's size; writes nothing."""
    chosen = load_recipe(recipe, set)
    opened = prove(open_source(source, revision, listener, chosen.source.wanted), listener)
    return make_plan(opened, chosen)


@verb
def convert(
    source: AnyPath,
    recipe: AnyPath,
    out: AnyPath,
    *,
    revision: str | None = None,
    device: Device = "auto",
    text: Texts = None,
    calibration: AnyPath | None = None,
    checksums: AnyPath | Iterable[AnyPath] = (),
    require_verified: bool = False,
    allow_withdrawn: bool = False,
    no_gate: bool = False,
    overwrite: bool = False,
    sign: AnyPath | None = None,
    set: str | Iterable[str] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Turn a checkpoint into a quantized repository at ``out``; returns its manifest.

    ``set`` holds ``"key=value"`` overrides of the recipe, ``checksums`` folders of
    registry entries beside the built-in ones, ``text`` the evaluation text, or several (the
    measures are then of all, and of each), ``calibration`` what GPTQ calibrates on instead
    of the recipe's own data, ``sign`` the private key (PEM) to sign the output with.

    Raises:
        UsageError: a bad name or recipe key, or an output that exists.
        SourceError: the source cannot be used.
        VerificationError: its digests forbid going on; nothing is left written.
        GateError: the result is not fit; ``OUT.partial`` stays, to be judged again.
        StorageError: the disk is full, or will not hold the output; the current folder is gone.
    """
    need_current_folder()
    clock, set = Clock(), overrides_of(set)  # each may be an iterator, and is used twice
    texts, checksums = paths_of(text), paths_of(checksums)
    chosen = load_recipe(recipe, set)
    registry, policy = read_checksums(checksums), Policy(allow_withdrawn, require_verified)
    request = _request(
        source=source, recipe=recipe, out=out, revision=revision, device=device, texts=texts,
        calibration=calibration, checksums=checksums, policy=policy, no_gate=no_gate, set=set,
    )  # fmt: skip
    signer = open_signer(expanded(sign)) if sign is not None else None
    where, place = choose_device(device), staging_for(Path(out))
    opened = open_source(source, revision, listener, chosen.source.wanted)
    check_free(place, opened.folder, overwrite=overwrite)
    material = None if no_gate else _material(opened, chosen, texts)
    planned = make_plan(opened, chosen)
    listener(Event("plan", message=summary(planned)))
    calibrating = read_calibration(chosen, calibration, opened, planned, material, listener)
    foretell(planned, chosen, material, calibrating, where, listener)
    job = Job(planned, opened, chosen, registry, policy, calibrating, place, where, listener, clock)
    with held(place), cleaned(place):
        staged = stage(job)
        with clock.measure("verify"):
            verified = settle(opened, staged.converted.source, chosen, registry, policy)
        report = _judge(job, staged, verified, material)
        manifest = build_manifest(job, verified, staged, report, clock.measured(), request)
        if material is not None:
            _report_or_stop(manifest, job, staged)
        _describe(manifest, place.partial, signer)
        listener(Event("save", message=f"saving {place.out}"))
        opened.check_unchanged()
        commit(place, lambda: check_free(place, opened.folder, overwrite=overwrite))
    return manifest


def _judge(
    job: Job, staged: Staged, verified: VerifiedSource, material: Material | None
) -> GateReport:
    """The gate's report; without ``material`` it has not run."""
    with job.clock.measure("gate"):
        if material is None:
            return gate_not_run(staged.ungated)
        from quantkit.gate import gate  # imports torch, which takes longer than many a conversion

        return gate(
            job.place.partial, verified, job.plan, job.recipe, material, job.device, job.listener
        )


def _report_or_stop(manifest: dict[str, Any], job: Job, staged: Staged) -> None:
    """Write the report's page; stop where the gate has failed."""
    manifest["report"] = write_report(manifest, job.place.partial)
    if manifest["gate"]["status"] == "failed":
        mark_failed(job.place, staged, manifest)


def _material(opened: Source, chosen: Recipe, texts: Sequence[Path]) -> Material:
    return read_material(opened.folder, chosen, texts, opened.config.get("vocab_size"))


def _request(
    *,
    source: AnyPath,
    recipe: AnyPath,
    out: AnyPath,
    revision: str | None,
    device: Device,
    texts: Sequence[Path],
    calibration: AnyPath | None,
    checksums: Sequence[AnyPath],
    policy: Policy,
    no_gate: bool,
    set: Sequence[str],
) -> dict[str, Any]:
    """What was asked for, as one would type it on another machine: names without folders."""
    return {
        "source": str(source) if is_hub_id(source) else _last_name(source),
        "revision": revision,
        "recipe": _last_name(recipe),
        "out": _last_name(out),
        "set": [str(each) for each in set],
        "texts": [_last_name(each) for each in texts],
        "calibration": _last_name(calibration) if calibration is not None else None,
        "checksums": [_last_name(each) for each in checksums],
        "device": device,
        "require_verified": policy.require_verified,
        "allow_withdrawn": policy.allow_withdrawn,
        "no_gate": no_gate,
    }


def _last_name(given: AnyPath) -> str:
    """A path's last name, also of ``.``; a link keeps the name that was typed."""
    return Path(os.path.normpath(expanded(given).absolute())).name


def _describe(manifest: dict[str, Any], folder: Path, signer: Signer | None) -> None:
    """The card, the provenance, the manifest that lists them and the report, and a signature."""
    write_card(manifest, folder)
    files = manifest["output"]["files"]
    files += [asdict(digest_file(folder / name, name)) for name in (CARD, *manifest["report"])]
    write_provenance(manifest, folder)
    files.append(asdict(digest_file(folder / PROVENANCE)))
    write_manifest(manifest, folder)
    if signer is not None:
        signer.sign(folder)
