"""The report: one page that stands alone, looked at in a real browser, wide and narrow."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Converted
from PIL import Image

import quantkit
from quantkit.errors import UsageError
from quantkit.gate.degeneration import degenerate
from quantkit.report import make_plots, render_report, write_report

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip

#: What the browser is asked to measure on a copy of the page: what is wider than the
#: window, pictures without pixels, and boxes of one grid that lie over each other.
PROBE = """<script>
window.addEventListener("load", () => {
  const box = (e) => e.getBoundingClientRect();
  const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const boxes = [...document.querySelectorAll(".box")].map(box);
  let overlaps = 0;
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => { overlaps += over(a, b); }));
  const wide = [...document.querySelectorAll("body *")]
    .filter((e) => box(e).right > innerWidth + 1).length;
  document.title = JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, wide, overlaps,
    missing: [...document.images].filter((i) => !i.naturalWidth).length,
    images: document.images.length,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def page(demo_nf4: Converted) -> Path:
    return demo_nf4.folder / "report" / "report.html"


def run(browser: str, profile: Path, width: int, dark: bool, *more: str) -> str:
    # preferredColorScheme: 0 is dark, 1 light
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    asked = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},3000"]
    done = subprocess.run(
        [*asked, scheme, *more], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500, 360], ids=["desktop", "tablet", "phone"])
def test_the_page_fits_and_its_plots_are_there(
    browser: str, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    probed = tmp_path / "probed.html"
    # headless windows are no narrower than 500: a phone is a frame of its width
    text = page.read_text().replace("</head>", f"{PROBE}</head>")
    probed.write_text(text)
    if width < 500:
        framed = html.escape(text, quote=True)
        probed.write_text(
            f'<body style="margin:0"><iframe style="width:{width}px;height:2900px;border:0" '
            f'srcdoc="{framed}" onload="setTimeout(() => document.title = '
            'this.contentDocument.title, 300)"></iframe></body>'
        )
    dumped = run(
        browser, tmp_path / "profile", width, dark,
        "--virtual-time-budget=3000", "--dump-dom", probed.as_uri(),
    )  # fmt: skip
    titles = re.findall(r"<title>(\{.*?\})</title>", dumped)
    found = json.loads(html.unescape(titles[0]))
    assert found["width"] == width
    assert found["scroll"] <= width, "the page scrolls sideways"
    assert (found["wide"], found["overlaps"], found["missing"]) == (0, 0, 0)
    assert found["images"] == 4
    assert found["dark"] == dark

    shot = tmp_path / "shot.png"
    run(browser, tmp_path / "profile", width, dark, f"--screenshot={shot}", probed.as_uri())
    colors = Image.open(shot).convert("L").resize((64, 64))
    middle = sorted(colors.tobytes())[64 * 32]
    assert (middle < 80) if dark else (middle > 175), "the page follows the scheme"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_stands_alone(page: Path) -> None:
    seen = Links()
    seen.feed(page.read_text())
    assert len(seen.found) == 4
    assert all(each.startswith("data:image/png;base64,") for each in seen.found)
    assert not seen.tags & {"script", "link", "iframe"}
    assert "url(" not in page.read_text()
    assert "@import" not in page.read_text()


def test_it_is_made_from_the_manifest_alone(demo_nf4: Converted, tmp_path: Path) -> None:
    written = json.loads((demo_nf4.folder / "quantkit-manifest.json").read_text())
    names = write_report(written, tmp_path)
    assert names == demo_nf4.manifest["report"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (demo_nf4.folder / name).read_bytes(), name


def test_the_card_shows_the_plots(demo_nf4: Converted) -> None:
    card = (demo_nf4.folder / "README.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card)
    assert sorted(shown) == sorted(each for each in demo_nf4.manifest["report"] if "png" in each)
    assert all((demo_nf4.folder / each).is_file() for each in shown)


def test_what_strangers_wrote_is_text(demo_nf4: Converted) -> None:
    manifest = copy.deepcopy(demo_nf4.manifest)
    manifest["gate"]["generation"]["examples"][0]["prompt"] = "<script>alert(1)</script>"
    manifest["source"]["name"] = '"><img src=x onerror=alert(1)>'
    page = render_report(manifest, {})
    assert "<script>" not in page
    assert "<img src=x" not in page


def test_levels_that_did_not_run_and_numbers_that_are_none(demo_nf4: Converted) -> None:
    manifest = copy.deepcopy(demo_nf4.manifest)
    gate = manifest["gate"]
    gate |= {"noise_floor": None, "generation": None, "reload": None}
    gate["perplexity"] |= {"quantized": "inf", "ratio": "nan", "ratio_interval": None}
    plots = make_plots(manifest)
    assert sorted(plots) == ["divergence.png", "size.png"]
    assert "inf" in render_report(manifest, plots)
    gate |= {"perplexity": None, "kl_divergence": None}
    assert sorted(make_plots(manifest)) == ["size.png"]
    assert "Plots" in render_report(manifest, make_plots(manifest))


def test_the_first_difference_is_marked(demo_nf4: Converted) -> None:
    manifest = copy.deepcopy(demo_nf4.manifest)
    example = manifest["gate"]["generation"]["examples"][0]
    example |= {"reference": "one two", "quantized": "one three"}
    page = render_report(manifest, {})
    assert "one t<mark>wo</mark>" in page
    assert "one t<mark>hree</mark>" in page


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        ([], "empty"),
        ([3], "empty"),
        ([3, 3, 2], "special"),
        ([9, 8, 7, 5, 5, 5, 5, 5, 5, 5], "loop"),
        ([1, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9], "loop"),
        ([9, 8, 7, 6, 5, 4, 10, 11, 12, 13, 14, 5, 5, 5, 5], ""),
        ([9, 8, 7, 9, 8, 7, 6], ""),
        ([7, 7], ""),
    ],
)
def test_degenerate_answers(tokens: list[int], kind: str) -> None:
    assert degenerate(tokens, {2, 3}) == kind


def test_check_writes_a_report_of_its_own(demo_nf4: Converted, tmp_path: Path) -> None:
    """Of a folder that anybody made: page, plots and the figures, and nothing in the folder."""
    before = {path.name for path in demo_nf4.folder.iterdir()}
    place = tmp_path / "new" / "place"
    (place / "report" / "mine").mkdir(parents=True)
    (place / "report" / "results.csv").write_text("somebody's")
    (place / "report" / "loss.png").write_bytes(b"of an earlier report")
    found = quantkit.check(
        demo_nf4.folder, demo_nf4.source, text=demo_nf4.text, report=place,
        set=["evaluation.max_windows=4", "evaluation.new_tokens=4"],
    )  # fmt: skip
    page = (place / "report" / "report.html").read_text(encoding="utf-8")
    record = json.loads((place / "report" / "check.json").read_text(encoding="utf-8"))
    assert record["gate"]["perplexity"] == found["gate"]["perplexity"]
    assert f"{found['gate']['kl_divergence']['mean']:.4g}" in page
    assert "not verified by check" in page
    assert "check.json" in page
    assert (place / "report" / "divergence.png").stat().st_size > 1000
    assert not (place / "report" / "loss.png").exists()
    assert (place / "report" / "mine").is_dir()
    assert (place / "report" / "results.csv").read_text() == "somebody's"
    assert {path.name for path in demo_nf4.folder.iterdir()} == before


def test_a_report_that_cannot_be_written_is_a_usage_error(
    demo_nf4: Converted, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be made"):
        quantkit.check(
            demo_nf4.folder, demo_nf4.source, text=demo_nf4.text, report=tmp_path / "file",
            set=["evaluation.max_windows=1", "evaluation.new_tokens=1"],
        )  # fmt: skip
