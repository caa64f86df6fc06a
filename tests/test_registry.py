"""The registry: the content decides, withdrawn wins, and nothing unproven passes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from quantkit import demonstration
from quantkit.errors import UsageError
from quantkit.registry import Entry, Registry, checksums
from quantkit.releases import ListedFile, Release, parse_entry
from quantkit.resources import demo_model
from quantkit.types import FileDigest, Fingerprint, Verdict


def digest(text: str, name: str = "model.safetensors", weight: bool = True) -> FileDigest:
    raw = text.encode()
    return FileDigest(
        name,
        len(raw),
        hashlib.sha256(raw).hexdigest(),
        hashlib.md5(raw).hexdigest(),
        is_weight=weight,
    )


def release(status: str, *files: FileDigest, by: str = "sha256") -> dict[str, object]:
    return {
        "date": "2023-07-31",
        "status": status,
        "stated_at": f"https://example.org/{status}",
        "files": tuple({"name": each.name, by: getattr(each, by)} for each in files),
    }


def entry(repository: str, *releases: dict[str, object], aliases: tuple[str, ...] = ()) -> Entry:
    return Entry(repository=repository, aliases=aliases, releases=releases)


def status(entries: list[Entry], files: list[FileDigest], *claims: str) -> tuple[str, str | None]:
    verdict = Registry(tuple(entries)).judge(files, claims)
    return verdict.status, verdict.repository


A, B, C = digest("a"), digest("b"), digest("c")
TOKENIZER = digest("t", "tokenizer.json", weight=False)


def test_nothing_known_is_unlisted() -> None:
    assert status([], [A]) == ("unlisted", None)
    assert status([entry("own/x", release("current", B))], [A]) == ("unlisted", None)


@pytest.mark.parametrize("by", ["sha256", "md5"])
def test_a_current_release(by: str) -> None:
    known = [entry("own/x", release("current", A, by=by))]
    assert status(known, [A]) == ("verified", "own/x")
    assert status(known, [A], "own/x") == ("verified", "own/x")


def test_names_play_no_part() -> None:
    renamed = FileDigest("other.safetensors", A.bytes, A.sha256, A.md5, is_weight=True)
    assert status([entry("own/x", release("withdrawn", A))], [renamed])[0] == "withdrawn"
    assert status([entry("own/x", release("current", A))], [renamed])[0] == "verified"


def test_every_digest_that_is_stated_must_match() -> None:
    half = {"name": "w", "md5": A.md5, "sha256": B.sha256}
    listed = release("current", A) | {"files": (half,)}
    assert status([entry("own/x", listed)], [A])[0] == "unlisted"


def test_an_md5_beside_a_sha256_need_not_be_taken() -> None:
    plain = FileDigest(A.name, A.bytes, A.sha256, None, is_weight=True)
    both = {"name": "w", "md5": A.md5, "sha256": A.sha256}
    listed = release("current", A) | {"files": (both,)}
    assert status([entry("own/x", listed)], [plain])[0] == "verified"


def test_an_md5_that_was_not_taken_proves_nothing() -> None:
    plain = FileDigest(A.name, A.bytes, A.sha256, None, is_weight=True)
    known = [entry("own/x", release("current", A, by="md5"))]
    assert status(known, [plain])[0] == "unlisted"


def test_withdrawn_wins_over_every_other_registry() -> None:
    good, bad = entry("own/good", release("current", A)), entry("own/bad", release("withdrawn", A))
    assert status([good, bad], [A], "own/good") == ("withdrawn", "own/bad")
    assert status([bad, good], [A], "own/good") == ("withdrawn", "own/bad")


def test_one_withdrawn_shard_is_enough() -> None:
    known = [entry("own/x", release("withdrawn", A, B))]
    assert status(known, [A, C])[0] == "withdrawn"


def test_a_shard_that_a_good_release_shares_does_not_condemn() -> None:
    known = [entry("own/x", release("withdrawn", A, B), release("current", A, C))]
    assert status(known, [A, C]) == ("verified", "own/x")
    assert status(known, [A, B]) == ("withdrawn", "own/x")


def test_a_shared_tokenizer_does_not_condemn() -> None:
    known = [entry("own/x", release("withdrawn", A, TOKENIZER), release("current", B, TOKENIZER))]
    assert status(known, [B, TOKENIZER]) == ("verified", "own/x")
    assert status([entry("own/y", release("withdrawn", A, TOKENIZER))], [C, TOKENIZER])[0] == (
        "unlisted"
    )


def test_a_strange_weight_beside_good_ones_is_not_verified() -> None:
    known = [entry("own/x", release("current", A, B))]
    assert status(known, [A, C])[0] == "unlisted"
    assert status(known, [A, C], "own/x")[0] == "mismatch"


def test_another_tokenizer_than_the_releases_is_not_verified() -> None:
    other = digest("u", "tokenizer.json", weight=False)
    known = [entry("own/x", release("current", A, TOKENIZER))]
    assert status(known, [A, TOKENIZER])[0] == "verified"
    assert status(known, [A, other], "own/x")[0] == "mismatch"


def test_no_weights_verify_nothing() -> None:
    known = [entry("own/x", release("current", TOKENIZER))]
    assert status(known, [TOKENIZER])[0] == "unlisted"


@pytest.mark.parametrize("claim", ["own/x", "OWN/X", "old/name"])
def test_a_claim_is_held_to_its_entry(claim: str) -> None:
    known = [
        entry("own/x", release("current", A), aliases=("Old/Name",)),
        entry("own/y", release("current", B)),
    ]
    assert status(known, [B], claim) == ("mismatch", "own/x")
    assert status(known, [A], claim) == ("verified", "own/x")
    assert status(known, [B], "own/unknown") == ("verified", "own/y")


def test_superseded_is_said() -> None:
    known = [entry("own/x", release("superseded", A), release("current", B))]
    assert status(known, [A])[0] == "superseded"
    assert status(known, [B])[0] == "verified"


def test_md5_is_taken_only_where_it_can_matter() -> None:
    by_md5 = release("withdrawn", digest("a", "pytorch_model.bin"), by="md5")
    registry = Registry((entry("own/x", by_md5),))
    assert registry.needs_md5("pytorch_model-00001-of-00002.bin", 10)
    assert registry.needs_md5("PYTORCH_MODEL.BIN", 10)
    loud = Registry((entry("own/x", release("withdrawn", digest("a", "MODEL.BIN"), by="md5")),))
    assert loud.needs_md5("pytorch_model.bin", 10)
    assert not registry.needs_md5("model.safetensors", 10)
    assert not Registry((entry("own/x", release("current", A)),)).needs_md5("m.safetensors", 1)


@pytest.mark.parametrize(
    ("stated", "sizes"), [({"bytes": 10}, [10]), ({"least_bytes": 10}, [10, 11]), ({}, [9, 10, 11])]
)
def test_md5_is_taken_only_of_a_file_that_may_be_the_one(
    stated: dict[str, int], sizes: list[int]
) -> None:
    listed = ListedFile(name="pytorch_model.bin", md5="0" * 32, **stated)
    found = Release(status="withdrawn", stated_at="https://example.org", files=(listed,))
    registry = Registry((Entry(repository="own/x", releases=(found,)),))
    assert [n for n in (9, 10, 11) if registry.needs_md5("any.bin", n)] == sizes


@pytest.mark.parametrize("stated", ["true", '"10"', "1e1", "0", "9" * 5000])
def test_a_size_is_a_whole_number(stated: str) -> None:
    text = f"""
        repository = "own/x"
        [[releases]]
        status = "withdrawn"
        stated_at = "https://example.org"
        [[releases.files]]
        name = "a.bin"
        md5 = "{"0" * 32}"
        least_bytes = {stated}
    """
    with pytest.raises(UsageError, match=r"least_bytes.*got|cannot be read as TOML"):
        parse_entry(text, "own")


def test_a_file_has_one_size() -> None:
    with pytest.raises(ValueError, match="keep bytes"):
        ListedFile(name="a.bin", md5="0" * 32, bytes=10, least_bytes=10)


def test_the_withdrawn_release_is_looked_for_from_its_own_size_on() -> None:
    """The parameters of rinna's bilingual 4B, two bytes each: the file cannot be smaller."""
    parameters = 36 * (12 * 2816**2 + 13 * 2816) + 2 * 65536 * 2816 + 2 * 2816
    registry = checksums()
    assert registry.needs_md5("pytorch_model.bin", 2 * parameters)
    assert not registry.needs_md5("pytorch_model.bin", 2 * parameters - 1)


# files


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "entry.toml").write_text(text)
    return folder


GOOD = """
repository = "own/x"
[[releases]]
date = "2023-07-31"
status = "current"
stated_at = "https://example.org"
[[releases.files]]
name = "pytorch_model.bin"
md5 = "0123456789abcdef0123456789abcdef"
"""


def test_built_in_and_own_entries_together(tmp_path: Path) -> None:
    found = {each.repository for each in checksums([write(tmp_path / "mine", GOOD)]).entries}
    assert {"own/x", "rinna/bilingual-gpt-neox-4b-instruction-sft"} <= found


def test_the_two_releases_of_the_bilingual_model_are_known() -> None:
    (found,) = (
        each
        for each in checksums().entries
        if each.named("rinna/bilingual-gpt-neox-4b-instruction-sft")
    )
    assert {(each.date, each.status, each.files[0].md5) for each in found.releases} == {
        ("2023-07-31", "withdrawn", "edf190a323c0ae63f71476700fb0b462"),
        ("2023-08-02", "current", "de72aa5b66beee7b65783c96f687d186"),
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('status = "current"', 'status = "fine"', "status"),
        ('stated_at = "https://example.org"\n', "", "stated_at"),
        ("0123456789abcdef0123456789abcdef", "0123", "md5"),
        ("md5 = ", "sha256 = ", "SHA-256, 64 hex digits, got 32, the length of MD5"),
        ('status = "current"', 'status = "current"\nkind = "whim"', "kind"),
        ('date = "2023-07-31"', 'date = "July"', "date"),
        ('"https://example.org"', '"an address"', "stated_at"),
        ('status = "current"', 'status = "current"\nreason = "two\\nlines"', "printable line"),
        ('[[releases.files]]\nname = "pytorch_model.bin"\n', "", "releases"),
        (GOOD[GOOD.index("[[releases.files]]") :], "", "states no file"),
        (GOOD[GOOD.index("[[releases.files]]") :], "[releases.fingerprint]", "states no file"),
        ("0123456789abcdef0123456789abcdef", "0123456789ABCDEF0123456789ABCDEF", "md5"),
        ('md5 = "0123456789abcdef0123456789abcdef"', "", "neither md5 nor sha256"),
        ('name = "pytorch_model.bin"', 'name = "x"\nmd6 = "y"', "md6"),
        ('repository = "own/x"', "repository = ", "TOML"),
    ],
)
def test_a_bad_entry_names_file_and_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    folder = write(tmp_path / "mine", GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        checksums([folder])
    assert "entry.toml" in str(caught.value)
    assert words in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder; give the folder that holds the entries"):
        checksums([tmp_path / "none"])


def test_two_entries_of_one_repository_in_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", GOOD)
    (folder / "second.toml").write_text(GOOD.replace("own/x", "OWN/X"))
    with pytest.raises(UsageError, match=r"has an entry in entry\.toml already"):
        checksums([folder])


def test_every_entry_that_is_built_in_states_its_sources() -> None:
    """An address for each release; withdrawn ones with a kind and a reason; no invented names."""
    for each in checksums().entries:
        for known in each.releases:
            assert known.stated_at.startswith("https://") or each.repository == "quantkit/demo"
            if known.status == "withdrawn":
                assert known.kind, each.repository
                assert known.reason, each.repository
                assert known.files, each.repository


def test_the_kinds_of_reason_are_kept() -> None:
    kinds = {release.kind for each in checksums().entries for release in each.releases}
    assert {"licence", "corrupt-upload", "leak", "relicensed", "mistaken-upload"} <= kinds


def test_a_claim_whose_digests_nobody_published_is_no_mismatch() -> None:
    open_ = release("current", B) | {"unpublished": ("*.bin",)}
    known = [entry("own/x", open_)]
    weights = digest("a", "pytorch_model.bin")
    verdict = Registry(tuple(known)).judge([weights], ["own/x"])
    assert verdict.status == "unlisted"
    assert "nobody published a digest of pytorch_model.bin" in verdict.reason
    assert status(known, [A], "own/x")[0] == "mismatch", "what is listed is held to it"


def test_a_near_miss_names_the_file() -> None:
    known = [entry("own/x", release("current", A, B, TOKENIZER))]
    verdict = Registry(tuple(known)).judge([A, digest("c", "model-2.safetensors")], [])
    assert verdict.status == "unlisted"
    assert "but for model-2.safetensors" in verdict.reason
    other = digest("u", "tokenizer.json", weight=False)
    assert "but for tokenizer.json" in Registry(tuple(known)).judge([A, B, other], []).reason
    claimed = Registry(tuple(known)).judge([A, B, other], ["own/x"])
    assert claimed.status == "mismatch"
    assert "tokenizer.json differs" in claimed.reason


COMMIT = "9092a8ae57da39f15b76b309b4f71ff11b6ef01a"


@pytest.mark.parametrize(
    ("stated", "claimed", "condemned"),
    [
        (COMMIT[:12], COMMIT, True),
        (COMMIT, COMMIT[:7], True),
        (COMMIT, COMMIT[:6], False),
        (COMMIT[:7], "1" * 40, False),
        (COMMIT, None, False),
        (None, COMMIT, False),
    ],
)
def test_a_revision_condemns_as_far_as_both_go(
    stated: str | None, claimed: str | None, condemned: bool
) -> None:
    bad = release("withdrawn", A) | {"revision": stated}
    registry = Registry((entry("own/x", bad, release("current", C)),))
    found = registry.judge([B], ["own/x"], None, claimed)
    assert found.status == ("withdrawn" if condemned else "mismatch")
    assert registry.judge([B], ["own/y"], None, claimed).status == "unlisted", "nobody claims it"
    if condemned:
        assert found.evidence == "the revision it claims to be"
        assert registry.judge([A], ["own/x"], None, claimed).evidence == "the digest of a file"


def test_the_revision_of_a_good_release_condemns_nothing() -> None:
    registry = Registry((entry("own/x", release("current", A) | {"revision": COMMIT}),))
    assert registry.judge([A], ["own/x"], None, COMMIT).status == "verified"


FOUND = Fingerprint("1" * 64, "2" * 64, "3" * 64)


def by_fingerprint(status: str, *parts: str, **more: object) -> dict[str, object]:
    stated = {part: getattr(FOUND, part) for part in parts}
    return release(status) | {"fingerprint": stated, **more}


@pytest.mark.parametrize(
    ("bad", "good", "condemned"),
    [
        ("tensors", "tensors", False),
        ("tensors", "values", True),
        ("values", "tensors", False),
        ("values", "values", False),
        ("values", "matrices", True),
        ("matrices", "values", False),
        ("matrices", "matrices", False),
    ],
)
def test_the_closer_fingerprint_decides(bad: str, good: str, condemned: bool) -> None:
    releases = (by_fingerprint("withdrawn", bad), by_fingerprint("current", good))
    found = Registry((entry("own/x", *releases),)).judge([A], [], FOUND)
    expected = "unlisted" if good == "matrices" else "verified"
    assert found.status == ("withdrawn" if condemned else expected)


@pytest.mark.parametrize(("part", "status"), [("values", "verified"), ("matrices", "unlisted")])
def test_matrices_alone_are_no_identity(part: str, status: str) -> None:
    registry = Registry((entry("own/x", by_fingerprint("current", part)),))
    assert registry.judge([A], [], FOUND).status == status


def test_a_verdict_says_all_that_its_release_states() -> None:
    stated = {"kind": "licence", "reason": "its data was not free", "advice": "use the next"}
    known = entry("own/x", release("current", B), release("withdrawn", A) | stated)
    registry = Registry((entry("own/w", release("current", C)), known))
    expected = Verdict(
        "withdrawn", "own/x", "2023-07-31", stated["reason"], "https://example.org/withdrawn",
        stated["advice"], stated["kind"], "the digest of a file",
    )  # fmt: skip
    assert registry.judge([A], iter(["own/x"])) == expected
    assert registry.judge([digest("d")], iter(["own/x"])).status == "mismatch"


def test_the_files_of_a_good_release_are_spared_whatever_they_are_close_to() -> None:
    good = [release("current", A), release("superseded", B)]
    registry = Registry((entry("own/x", by_fingerprint("withdrawn", "matrices"), *good),))
    assert registry.judge([A], [], FOUND).status == "verified"
    assert registry.judge([C], [], FOUND).status == "withdrawn"
    assert registry.judge([A, C], [], FOUND).status == "withdrawn"


def test_what_is_near_a_release_is_told() -> None:
    by_matrices = by_fingerprint("current", "matrices", date="2024-05")
    registry = Registry((entry("own/x", by_matrices),))
    found = registry.judge([A], [], FOUND)
    assert found.reason.startswith(
        "it is own/x, release of 2024-05 by the matrices' fingerprint (the same weights under "
        "other names), but for model.safetensors: "
    )
    assert found.stated_at == "https://example.org/current"
    shared = Registry((entry("own/x", release("current", A, TOKENIZER)),))
    assert shared.judge([B, TOKENIZER], []) == Verdict("unlisted")
    half = shared.judge([A, B, digest("u", "tokenizer.json", weight=False)], []).reason
    assert "release of 2023-07-31, but for model.safetensors, tokenizer.json: " in half


def test_one_other_file_of_a_listed_name_is_enough() -> None:
    listed = release("current", A)["files"]
    registry = Registry((entry("own/x", by_fingerprint("current", "tensors", files=listed)),))
    shard = digest("b", "model-2.safetensors")
    assert registry.judge([shard], [], FOUND).status == "verified"
    assert registry.judge([shard, B], [], FOUND).status == "unlisted"


def test_shards_may_change_names() -> None:
    first, second = digest("a", "1.safetensors"), digest("b", "2.safetensors")
    swapped = [digest("b", "1.safetensors"), digest("a", "2.safetensors")]
    assert status([entry("own/x", release("current", first, second))], swapped)[0] == "verified"


def test_what_is_good_again_is_told_by_its_good_release() -> None:
    """The withdrawn release, listed first, has the same files; its standing is not theirs."""
    known = [entry("own/x", release("withdrawn", A), release("current", A, TOKENIZER))]
    assert status(known, [A])[0] == "verified"
    withdrawn = [entry("own/x", release("withdrawn", A), release("current", B) | {"date": "2024"})]
    assert Registry(tuple(withdrawn)).judge([C], []).reason == ""
    assert status([entry("own/x", release("withdrawn", A))], [C], "own/x")[0] == "mismatch"


def test_unpublished_files_excuse_no_others() -> None:
    partly = release("current", A, TOKENIZER) | {"unpublished": ("*.bin",)}
    registry = Registry((entry("own/x", partly),))
    weights = digest("b", "pytorch_model.bin")
    found = registry.judge([A, weights, TOKENIZER, digest("v", "vocab.txt", False)], ["own/x"])
    assert found.status == "unlisted"
    assert found.reason.endswith("nobody published a digest of pytorch_model.bin")
    assert found.stated_at == "https://example.org/current"
    assert registry.judge([digest("c"), weights], ["own/x"]).status == "mismatch"
    other = digest("u", "tokenizer.json", weight=False)
    assert registry.judge([weights, other], ["own/x"]).status == "mismatch"


def test_a_mismatch_is_told_beside_the_nearest_release() -> None:
    first, second = digest("a", "1.safetensors"), digest("b", "2.safetensors")
    far, near = release("superseded", C), release("current", first, second)
    strange = digest("d", "3.safetensors")
    for releases in ((far, near), (near, far)):
        found = Registry((entry("own/x", *releases),)).judge([first, strange], ["own/x"])
        assert found.status == "mismatch"
        assert "(3.safetensors differs; known: 1.safetensors, 2.safetensors, model" in found.reason
        assert found.stated_at == releases[-1]["stated_at"]
        assert "download it again" in found.advice


def test_the_demos_own_registry_withdraws_its_model(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "notes.txt").write_text("somebody's")
    folder = demonstration._write_registry(tmp_path / "registry", demo_model())
    known = checksums([folder])
    release = next(
        r for e in known.entries for r in e.releases if r.reason.startswith("an example")
    )
    assert release.status == "withdrawn"
    assert (folder / "notes.txt").read_text() == "somebody's"
