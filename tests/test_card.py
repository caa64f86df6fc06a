"""The card: valid whatever the source's own card is, and every figure the manifest's."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Converted
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from test_report import FLAGS

from quantkit.card import render_card
from quantkit.frontmatter import read_card
from quantkit.licences import licence_json, licence_of
from quantkit.sourcecard import folded

REPO = "somebody/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def with_card(manifest: dict[str, Any], text: str, repo: str | None = REPO) -> dict[str, Any]:
    """The manifest of a source that came with this card."""
    made = json.loads(json.dumps(manifest))
    licence = licence_json(licence_of(read_card(text).metadata))
    made["source"] |= {
        "card": text, "licence": licence, "repo_id": repo, "revision": COMMIT,
        "status": "unlisted", "name": repo or "model",
    }  # fmt: skip
    return made


def front(card: str) -> dict[str, Any]:
    """The metadata, by a strict reader."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    return dict(yaml.safe_load(found[1]))


FENCES = (
    "intro\n\n```python\n[x](y.md) ![a](b.png)\n```\n\n~~~\n</details>\n~~~\n\n`[i](j)` [k](l.md)"
)
CARDS = {
    "none": "",
    "no front matter": "# A model\n\nwords",
    "plain": "---\nlicense: mit\nlanguage:\n- ja\ntags:\n- gpt_neox\n---\n# A model\n\nwords",
    "one-line list": "---\nlicense: apache-2.0\nlanguage: en\n---\nwords",
    "broken yaml": "---\nlicense: [mit\nlanguage: ja: en\n---\n# A model\n\nwords",
    "a key twice": "---\nlicense: mit\nlicense: gpl\n---\nwords",
    "tabs": "---\nlicense:\tmit\n\ttags: x\n---\nwords",
    "no mapping": "---\n- a\n- b\n---\nwords",
    "unclosed": "---\nlicense: mit\n\n# A model",
    "bomb": "---\na: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n---\nwords",
    "windows": "\ufeff---\r\nlicense: mit\r\n---\r\n# A model\r\n\r\nwords\r\n",
    "numbers": "---\nlicense: 3\nlanguage: [1, {a: b}]\ntags: {x: y}\nd: 2020-01-01\nn: .nan\n"
               "---\nwords",
    "large": "---\nlicense: mit\n---\n" + "Some words of a very long card. [x](y.md)\n\n" * 5000,
    "html": '---\nlicense: mit\n---\n<div align="center"><img width=3 src="logo.png">'
            '<a href=\'doc/x.md\'>x</a></div>\n<script>alert(1)</script>\n</details>\n<!-- open',
    "fold that closes first": "---\nlicense: mit\n---\n</details>\n# Ours now\n<details>\nwords",
    "code that is none": "`\n\n</details>\n\n# Ours now\n\n`",
    "code that is no fence": "```a``` words\n\n</details>\n\n# Ours now\n",
    "code in html": "<div>\n```\n</details>\n\n# Ours now\n```\n</div>",
    "a comment in html": "<div>\n```\n<!--\n```\n</div>\n\nwords",
    "another line's end": "`a\u2028```\u2028</details>\u2028# Ours now`",
    "hidden": "words\n\n<!-- gone -->seen\n\n<?php\n\n<style>\n\n<textarea>\n\n<![CDATA[ x",
    "right to left": "---\nlicense: mit\nlanguage: [ar, he]\n---\n# نموذج لغوي\n\n"
                     "مرحبا \u202eabc\u202c",
    "japanese": "---\nlicense: mit\nlanguage: ja\n---\n# 日本語モデル\n\n表｜です。「こんにちは」",
    "fences": f"---\nlicense: mit\n---\n{FENCES}",
    "open fence": "---\nlicense: mit\n---\nwords\n\n````\ncode that nobody ends\n```\n",
    "model-index": """---
license: mit
model-index:
- name: model
  results:
  - task: {type: text-generation}
    dataset: {type: ai2_arc, name: ARC, config: ARC-Challenge}
    metrics: [{type: acc_norm, value: 28.07, name: normalized accuracy}]
    source: {url: "https://example.org/leaderboard", name: A Leaderboard}
  - task: {type: text-generation}
    dataset: {type: mmlu, name: MMLU}
    metrics: [{type: acc, value: 23.12}]
    source: {url: "javascript:alert(1)"}
  - task: {type: text-generation}
    metrics: [{type: acc, value: 1}]
  - words
---
words""",
    "model-index of another kind": "---\nlicense: mit\nmodel-index: {results: 3}\n---\nwords",
    "jinja": "---\nlicense: mit\n---\n{{ manifest }} {% raw %} {# x #}",
    "other licence": "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\nwords",
}  # fmt: skip


#: What these leave open takes in the end of the fold, behind which nothing of ours stands.
SWALLOWS = ("html", "code in html", "a comment in html", "hidden")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_valid_whatever_the_sources_own_is(demo_nf4: Converted, name: str) -> None:
    card = render_card(with_card(demo_nf4.manifest, CARDS[name]))
    data = front(card)
    assert data["base_model"] == REPO
    assert data["base_model_relation"] == "quantized"
    assert data["pipeline_tag"] == "text-generation"
    assert {"quantkit", "bitsandbytes", "nf4", "4-bit"} <= set(data["tags"])
    parsed = ModelCard(card)
    assert parsed.data.to_dict()["base_model"] == REPO
    assert parsed.data.eval_results
    assert "# Ours now" not in card.partition("<details>")[0]
    if name in ("plain", "windows", "large", "html", "japanese", "fences"):
        assert data["license"] == "mit"
    if name in ("none", "broken yaml", "a key twice", "bomb"):
        assert "license" not in data
    if "broken" in name or "twice" in name:
        assert "Its metadata could not be read" in card
    ours = card.partition("<details>")[0]
    assert "## Where it came from" in ours
    assert card.count("\n---\n") == 1 + (name == "unclosed")


@pytest.mark.parametrize("name", CARDS)
def test_nothing_in_the_sources_card_leaves_its_fold(demo_nf4: Converted, name: str) -> None:
    """The end of the fold is where a Markdown reader sees it as one."""
    card = render_card(with_card(demo_nf4.manifest, CARDS[name]))
    if "<details>" not in card:
        assert not read_card(CARDS[name]).body
        return
    assert card.endswith("\n\n</details>\n")
    tokens = MarkdownIt("commonmark", {"html": True}).parse(read_card(card).body)
    blocks = [each.content for each in tokens if each.type == "html_block"]
    if name not in SWALLOWS:
        assert blocks[-1].strip() == "</details>"
    assert sum(each.count("<details") for each in blocks) == 1
    assert sum(each.count("</details") for each in blocks) <= 1


@pytest.mark.parametrize(
    "opening",
    ["<!-- <details> -->", "\\<details>", "- <details>", "> <details>", "[r]: x<details>",
     "<div>\n<details>\n</div>", '<a title="\n<details>\n">x</a>', "words <details words",
     "<textarea>\n<details>\n</textarea>", "<svg>\n<details>\n</svg>", "`<details>`"],
)  # fmt: skip
def test_a_fold_that_does_not_stay_open_closes_none_of_ours(opening: str) -> None:
    """To a browser it is none, or something else ends it: its end would be that of ours."""
    made = folded(f"{opening}\n\n</details>\n\n# Ours now", REPO, COMMIT)
    assert "</details" not in made


def test_the_sources_own_folds_stay() -> None:
    body = (
        '<!-- a note -->\n<div align="center"><br></div>\n\n'
        "<details open>\n<summary>1 < 2</summary>\n\n<https://x.y> <s>\n\n```\na <b\n```\n\n"
        "<details><summary>a</summary>b</details>\n</details>"
    )
    assert folded(body, REPO, COMMIT) == body


@pytest.mark.parametrize("end", [r"\n", r"\r"])
@pytest.mark.parametrize("key", ["license", "license_name"])
def test_a_licence_on_lines_of_its_own_begins_none_of_ours(
    demo_nf4: Converted, key: str, end: str
) -> None:
    """A carriage return ends a line in Markdown, as a line feed does."""
    stated = {"license": "other"} | {key: f"x{end}{end}# Theirs"}
    lines = "".join(f'{name}: "{value}"\n' for name, value in stated.items())
    card = render_card(with_card(demo_nf4.manifest, f"---\n{lines}---\nwords"))
    tokens = MarkdownIt("commonmark").parse(read_card(card).body)
    assert [each.tag for each in tokens if each.type == "heading_open"].count("h1") == 1


def test_a_prompt_form_with_blank_lines_stays_inside_its_backticks(demo_nf4: Converted) -> None:
    changed = json.loads(json.dumps(demo_nf4.manifest))
    changed["recipe"]["prompt"] = {
        "user": "# Q`s", "system": "# A", "separator": ":\n\n", "turn_end": "\n\n", "newline": "\n"
    }  # fmt: skip
    card = render_card(changed)
    assert r"turns are `# Q's:\n\n…`, joined by `\n\n`" in card
    assert r"`# A:\n\n`. A line break" in card


def test_carried_metadata(demo_nf4: Converted) -> None:
    data = front(render_card(with_card(demo_nf4.manifest, CARDS["plain"])))
    assert data["language"] == ["ja"]
    assert "gpt_neox" in data["tags"]
    data = front(render_card(with_card(demo_nf4.manifest, CARDS["other licence"])))
    assert (data["license"], data["license_name"]) == ("other", "mine")
    assert data["license_link"] == f"https://huggingface.co/{REPO}/blob/{COMMIT}/LICENSE"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[a](b.md)", f"[a](https://huggingface.co/{REPO}/blob/{COMMIT}/b.md)"),
        ("![a](./b.png)", f"![a](https://huggingface.co/{REPO}/resolve/{COMMIT}/b.png)"),
        ('![a](b.png "t")', f'![a](https://huggingface.co/{REPO}/resolve/{COMMIT}/b.png "t")'),
        ("[![a](b.png)](c.md)", f"[![a](https://huggingface.co/{REPO}/resolve/{COMMIT}/b.png)]"
                                f"(https://huggingface.co/{REPO}/blob/{COMMIT}/c.md)"),
        ("[a](#part)", "[a](#part)"),
        ("[a](/rinna)", "[a](https://huggingface.co/rinna)"),
        ("[a](https://x.y/z)", "[a](https://x.y/z)"),
        ("[a](//x.y/z)", "[a](//x.y/z)"),
        ("[a](javascript:alert(1))", "a"),
        ("[a](日本.md)", f"[a](https://huggingface.co/{REPO}/blob/{COMMIT}/"
                       "%E6%97%A5%E6%9C%AC.md)"),
        ('<img src="b.png">', f'<img src="https://huggingface.co/{REPO}/resolve/{COMMIT}/b.png">'),
        ("<a href='b.md'>", f"<a href='https://huggingface.co/{REPO}/blob/{COMMIT}/b.md'>"),
        ('<a href="javascript:x">', '<a href="#">'),
        ("<a href=javascript:x>", '<a href="#">'),
        ("[r]: b.png", f"[r]: https://huggingface.co/{REPO}/resolve/{COMMIT}/b.png"),
        ("```[a](b)``` [c](#c)\n[a](b.md)",
         f"```[a](b)``` [c](#c)\n[a](https://huggingface.co/{REPO}/blob/{COMMIT}/b.md)"),
        ("[r]:\n<b c.md> 't'", f"[r]:\nhttps://huggingface.co/{REPO}/blob/{COMMIT}/b%20c.md 't'"),
        ("[r]: <javascript:x>", "[r]: #"),
        ("[2024/05]: We released it.", "[2024/05]: We released it."),
        ("[^1]: See [x](#x)", "[^1]: See [x](#x)"),
        ("`[a](b)` and\n```\n[a](b)\n```", "`[a](b)` and\n```\n[a](b)\n```"),
    ],
)  # fmt: skip
def test_links_lead_to_the_source(given: str, expected: str) -> None:
    assert folded(given, REPO, COMMIT) == expected


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "!!binary x", "[1, 2"]
)
def test_metadata_that_its_reader_trips_over_is_none(value: str) -> None:
    card = read_card(f"---\na: {value}\n---\nwords")
    assert (card.metadata, card.body) == ({}, "words")
    assert card.problem.startswith("not YAML")


def test_metadata_with_half_a_character_is_none() -> None:
    """It would be found out when the manifest is written, after all the work."""
    card = read_card('---\nlicense: other\nlicense_name: "\\ud800"\n---\nwords')
    assert (card.metadata, card.body) == ({}, "words")
    assert card.problem.startswith("a value that JSON cannot hold")


def test_metadata_of_many_keys_takes_no_time() -> None:
    import time

    text = "---\n" + "".join(f"k{n}: 1\n" for n in range(9000)) + "---\n"
    begun = time.perf_counter()
    assert len(read_card(text).metadata) == 9000
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    ("stated", "licence", "name"),
    [
        ("mit", "mit", ""),
        ("[mit, MIT]", "mit", ""),
        ("[apache-2.0, cc-by-nc-4.0]", "other", "apache-2.0, cc-by-nc-4.0"),
        ("[mit, cc-by-nd-4.0]", "cc-by-nd-4.0", ""),
    ],
)
def test_of_several_licences_none_is_left_out(stated: str, licence: str, name: str) -> None:
    found = licence_of(read_card(f"---\nlicense: {stated}\n---\n").metadata)
    assert (found.id, found.name) == (licence, name)


def test_links_of_a_source_without_an_address_lose_their_target() -> None:
    assert folded("[a](b.md) ![p](c.png) [d](https://x.y)", None, None) == "a p [d](https://x.y)"


def test_a_large_card_takes_no_time(demo_nf4: Converted) -> None:
    import time

    hostile = ["[" * 50_000, "`" * 100_001, "`" * 100_000 + "x`", "![" * 30_000,
               "<img " * 40_000, "[a](" * 30_000, "- [" * 60_000,
               "[in progress:\n\n" + "- [a](b.md)\n" * 200, "```\n" * 50_001,
               "[a]:" * 40_000, "(" * 100_000]  # fmt: skip
    begun = time.perf_counter()
    for each in hostile:
        render_card(with_card(demo_nf4.manifest, each))
    assert time.perf_counter() - begun < 10


def test_what_was_measured_stands_in_the_model_index_to_the_last_digit(
    demo_nf4: Converted,
) -> None:
    gate = demo_nf4.manifest["gate"]
    data = front((demo_nf4.folder / "README.md").read_text())
    name, results = model_index_to_eval_results(data["model-index"])
    assert name.startswith("quantkit/demo")
    assert {each.metric_name: each.metric_value for each in results} == {
        "perplexity, quantized": gate["perplexity"]["quantized"],
        "perplexity, source": gate["perplexity"]["reference"],
        "perplexity, quantized / source": gate["perplexity"]["ratio"],
        "KL divergence from the source, mean, nats": gate["kl_divergence"]["mean"],
        "top-1 agreement with the source": gate["top1_agreement"],
    }
    assert {each.dataset_name for each in results} == {"heldout.txt"}


def test_the_sources_own_figures_stand_apart_and_attributed(demo_nf4: Converted) -> None:
    manifest = demo_nf4.manifest
    ours, theirs = front(render_card(with_card(manifest, CARDS["model-index"])))["model-index"]
    assert ours["results"] == front(render_card(manifest))["model-index"][0]["results"]
    assert theirs["name"] == f"{REPO} (the source)"
    values = [each["metrics"][0]["value"] for each in theirs["results"]]
    assert values == [28.07, 23.12], "what is no result is left out"
    assert [each["source"]["url"] for each in theirs["results"]] == [
        "https://example.org/leaderboard", f"https://huggingface.co/{REPO}",
    ]  # fmt: skip
    nameless = front(render_card(with_card(manifest, CARDS["model-index"], repo=None)))
    assert len(nameless["model-index"]) == 1


def cells(card: str) -> dict[str, list[str]]:
    """Rows of the tables by their first cell."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    rows = (re.split(r"(?<!\\)\|", line[1:-1]) for line in lines)
    return {row[0].strip(): [each.strip() for each in row[1:]] for row in rows}


def test_every_row_of_the_card_is_the_manifests(demo_nf4: Converted) -> None:
    """Not only that a figure occurs somewhere, but that it stands in its own row."""
    card, manifest = (demo_nf4.folder / "README.md").read_text(), demo_nf4.manifest
    gate, rows = manifest["gate"], cells(card)

    limits = manifest["recipe"]["gate"]

    def same(row: str, *values: float, form: str = ".4g", limit: float | None = None) -> None:
        *_, last = rows[row]
        assert last == "" if limit is None else last.split()[-1] == str(limit), row
        rows[row].pop()
        found = [float(each) for each in re.findall(r"[\d.]+(?:e-?\d+)?", " ".join(rows[row]))]
        assert found == [float(f"{each:{form}}") for each in values], row

    measured = gate["perplexity"]
    same("perplexity", measured["reference"], measured["quantized"])
    same("ratio", measured["ratio"], *measured["ratio_interval"], form=".4f",
         limit=limits["max_perplexity_ratio"])  # fmt: skip
    same("KL divergence, mean (nats)", gate["kl_divergence"]["mean"], limit=limits["max_kl_mean"])
    same("KL divergence, 99th percentile", gate["kl_divergence"]["p99"])
    same("noise floor of it: the source in the quantized model's data type",
         gate["noise_floor"]["kl_divergence"]["mean"])  # fmt: skip
    same("top-1 agreement", gate["top1_agreement"], limit=limits["min_top1_agreement"])
    same("greedy tokens agreeing, free-running, 8 prompts", gate["generation"]["token_agreement"])
    same("greedy tokens agreeing, teacher-forced", gate["generation"]["forced_agreement"],
         limit=limits["min_generation_agreement"])  # fmt: skip
    same("worst module's weights, relative error", gate["reload"]["max_weight_error"],
         limit=limits["max_weight_error"])  # fmt: skip
    for file in manifest["source"]["files"]:
        assert rows[file["name"]] == [str(file["bytes"]), f"`{file['sha256']}`"]
    assert rows["this repository"] == [f"{manifest['sizes']['output_bytes'] / 1e9:.3f} GB"]


def test_a_gate_that_did_not_run_is_said_first(demo_nf4: Converted) -> None:
    changed = json.loads(json.dumps(demo_nf4.manifest))
    for key in ("perplexity", "kl_divergence", "noise_floor", "generation", "tokenizer"):
        changed["gate"][key] = None
    changed["gate"] |= {"status": "not_run", "by_text": [], "reasons": {"reload": "--no-gate"}}
    card = render_card(changed)
    body = read_card(card).body.splitlines()
    assert body[0].startswith("# ")
    assert body[2].startswith("> **Not judged.** The gate did not run")
    assert "model-index" not in front(card)


def test_the_command_on_the_card_makes_the_same_folder(demo_nf4: Converted) -> None:
    card = (demo_nf4.folder / "README.md").read_text()
    assert (
        "$ quantkit convert demo-model --recipe bnb-nf4 --text heldout.txt --out bnb-nf4\n" in card
    )


def test_a_recipes_words_stand_on_its_own_models_card_only(demo_nf4: Converted) -> None:
    changed = with_card(demo_nf4.manifest, "", repo="rinna/japanese-gpt-neox-3.6b-instruction-ppo")
    from quantkit.recipe import load_recipe

    recipe = load_recipe("rinna-3.6b-ppo-nf4").model_dump(mode="json")
    changed["recipe"] = recipe
    card = render_card(changed)
    assert "This model tends to repeat itself" in card
    assert "| rinna's average of 4 tasks | 59.86 | https://huggingface.co/rinna/bilingual" in card
    assert "Of the unquantized model, not measured here" in card
    assert front(card)["language"] == ["ja"]
    assert "repetition_penalty=1.1" in card
    assert 'print(said.replace("<NL>", "\\n"))' in card
    changed["source"]["repo_id"] = "somebody/else"
    assert "59.86" not in render_card(changed)


def test_a_withdrawn_release_of_the_same_model_is_told(demo_nf4: Converted) -> None:
    changed = json.loads(json.dumps(demo_nf4.manifest))
    changed["source"]["withdrawn"] = [
        {"repository": "a/b", "release": "2023-07-31", "reason": "its data", "stated_at": "there"}
    ]
    card = render_card(changed)
    assert "The release of 2023-07-31 of a/b was withdrawn: its data" in card
    assert "These weights are not made from it." in card


#: Asked of every card in a frame of its own: what stands outside the folds, and what is broken.
PROBE = """<script>
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    const inside = (e) => e.closest("details") !== null;
    const folds = [...page.querySelectorAll("details")].filter((e) => !inside(e.parentElement));
    return {
      outside: [...page.querySelectorAll("h2")].filter((e) => !inside(e)).map((e) => e.textContent),
      folds: folds.map((e) => ({open: e.open, height: e.offsetHeight})),
      after: folds.length ? page.body.innerText.trim().endsWith("of the unquantized model") : true,
      tables: [...page.querySelectorAll("table")].filter((e) => !inside(e)).length,
    };
  }));
});
</script>"""


def test_looked_at_in_a_browser(demo_nf4: Converted, tmp_path: Path) -> None:
    """Ours is outside the fold and whole; the source's own is inside it, closed, and last."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    names = [each for each in CARDS if read_card(CARDS[each]).body and each != "large"]
    reader = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    frames = []
    for name in names:
        card = render_card(with_card(demo_nf4.manifest, CARDS[name]))
        # the Hub takes scripts out, and so does a sandboxed frame
        page = html.escape(reader.render(read_card(card).body), quote=True)
        frames.append(f'<iframe sandbox="allow-same-origin" srcdoc="{page}"></iframe>')
    (tmp_path / "page.html").write_text(f"<meta charset=utf-8>{PROBE}{''.join(frames)}")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    found = json.loads(html.unescape(re.findall(r"<title>(\[.*?\])</title>", done.stdout)[0]))
    assert len(found) == len(names)
    for name, seen in zip(names, found, strict=True):
        assert seen["outside"] == [
            "Use", "Parity with the source", "Size and memory", "How it was made",
            "Where it came from", "Limitations", "The source's own card",
        ], name  # fmt: skip
        assert len(seen["folds"]) == 1, name
        assert not seen["folds"][0]["open"], name
        assert seen["after"], name
        assert seen["tables"] >= 4, name
