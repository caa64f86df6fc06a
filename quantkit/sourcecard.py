"""The source's own card, fit to stand folded on another page.

Relative links and pictures point to the source's repository at its commit; where that is
not known they lose their target. Code is left alone. Nothing in the text can end the fold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

#: Where a repository's pages are, whatever endpoint this machine talks to.
SITE = "https://huggingface.co"

_FENCE = re.compile(r"^ {0,3}(`{3,}+(?![^\n]*`)|~{3,})")
# Every repeat below has an end, and no text has two ways to match: a card, hostile or only long,
# must not keep a reader busy.
_INLINE_CODE = re.compile(r"(?<!`)(`{1,50})(?!`)[^\n]{1,2000}?(?<!`)\1(?!`)")
_TARGET = (
    r"(?:<(?P<angled>[^<>\n]{0,2000})>"
    r"|(?P<target>[^\s()<>]{0,2000}(?:\([^\s()]{0,500}\)[^\s()<>]{0,500}){0,5}))"
)
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]{0,500}\](?:\([^()]{0,500}\))?+){0,1000}+)\]"
    rf"\(\s{{0,20}}{_TARGET}(?P<title>\s{{1,20}}(?:\"[^\"]{{0,500}}\"|'[^']{{0,500}}'))?\s{{0,20}}\)"
)
# No more than a title may follow: "[May]: we released ..." is text.
_REFERENCE = re.compile(
    r"(?m)^(?P<label> {0,3}\[[^\]\n]{1,200}\]:[ \t]{0,20}(?:\n[ \t]{0,20})?)"
    r"(?:<(?P<angled>[^<>\n]*+)>|(?P<target>[^\s<]\S*+))(?=[ \t]*+(?:[\"'(]|$))"
)
_UNQUOTED = re.compile(
    r"(?i)(<(?:img|a|source|video)\b[^<>]{0,1000}?\s(?:src|href)\s{0,5}=\s{0,5})"
    r"([^\"'<>\s]{1,2000})"
)
_ATTRIBUTE = re.compile(
    r"(?i)(<(img|a|source|video)\b[^<>]{0,1000}?\s(?:src|href)\s{0,5}=\s{0,5})([\"'])"
    r"([^\"'<>]{0,2000})\3"
)
_FOLD_TAG = re.compile(r"(?i)<(?=/?(?:details|summary)\b)")
# A whole tag, an address, or a comment without a tag in it: each ends here where browsers end it.
_TAG = re.compile(
    r"(?i)<(?:!--[^<>]*-->|[a-z][a-z0-9+.-]*+[:@][^\s<>\"']*+>|(?P<end>/?)(?P<name>[a-z][a-z0-9-]*+)"
    r"(?:\s(?:[^<>\"'\n]|\"[^\"<>\n]*+\"|'[^'<>\n]*+')*+)?/?>)"
)
#: Elements whose content is text, or goes by rules of its own.
_OPAQUE = ("iframe", "math", "noembed", "noframes", "noscript", "plaintext", "script", "select",
           "style", "svg", "template", "textarea", "title", "xmp")  # fmt: skip
_SCHEME = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_HARMLESS = ("http:", "https:", "mailto:", "//")


def folded(body: str, repo_id: str | None, revision: str | None) -> str:
    """``body`` with its links resolved, its code blocks closed, and no way out of a fold.

    A comment that nobody closed hides all that follows; nothing of ours does, as the fold is the
    last thing on the page.
    """
    resolve = _resolver(repo_id, revision)
    pieces = [
        (text if is_code else _resolve_links(text, resolve), is_code)
        for text, is_code in _pieces(body)
    ]
    page = "".join(text for text, _ in pieces).strip()
    return page if _nests(pieces) else _FOLD_TAG.sub("&lt;", page)


def _nests(pieces: Sequence[tuple[str, bool]]) -> bool:
    """Whether the card's own folds are sure to be balanced: else they might end ours.

    A fold is sure if it opens where a line begins (no list or quotation can end it then) and no
    other tag ends or hides it. One in what looks like code never is: other readers may see no
    code there.
    """
    if any(is_code and _FOLD_TAG.search(text) for text, is_code in pieces):
        return False
    page = "".join(text.replace("<", " ") if is_code else text for text, is_code in pieces)
    opened: list[str] = []
    counts: Counter[str] = Counter()
    for begin in re.finditer(r"(?i)<(?=[a-z/!?])", page):
        at = begin.start()
        tag = _TAG.match(page, at)
        name = tag and (tag["name"] or "").lower()
        if tag is None or name in _OPAQUE:
            return False
        if name and not tag["end"]:
            if name == "details" and page[max(at - 1, 0) : at] not in ("", "\n"):
                return False
            opened.append(name)
            counts[name] += 1
        elif name and counts[name]:
            while (last := opened.pop()) != name:
                counts[last] -= 1
                if last == "details":
                    return False
            counts[name] -= 1
        elif name == "details":
            return False
    return not counts["details"]


def _pieces(body: str) -> Iterator[tuple[str, bool]]:
    """``(text, whether it is code)``; a fence that nobody closed is closed."""
    held: list[str] = []
    fence = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", body):
        found = _FENCE.match(line)
        if not fence and found:
            yield from _inline("".join(held))
            held, fence = [line], found[1]
        elif fence and found and found[1].startswith(fence) and not line[found.end() :].strip():
            yield "".join([*held, line]), True
            held, fence = [], ""
        else:
            held.append(line)
    if fence:
        text = "".join(held)
        yield f"{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}\n", True
    else:
        yield from _inline("".join(held))


def _inline(text: str) -> Iterator[tuple[str, bool]]:
    at = 0
    for found in _INLINE_CODE.finditer(text):
        yield text[at : found.start()], False
        yield found[0], True
        at = found.end()
    yield text[at:], False


def _resolve_links(text: str, resolve: Callable[[str, bool], str | None]) -> str:
    def link(found: re.Match[str]) -> str:
        image = bool(found["image"])
        inner = _resolve_links(found["text"], resolve) if "](" in found["text"] else found["text"]
        address = resolve(found["angled"] or found["target"] or "", image)
        if address is None:
            return inner
        return f"{found['image']}[{inner}]({address}{found['title'] or ''})"

    def attribute(found: re.Match[str]) -> str:
        address = resolve(found[4], found[2].lower() != "a")
        return f"{found[1]}{found[3]}{address or '#'}{found[3]}"

    def reference(found: re.Match[str]) -> str:
        target = found["angled"] or found["target"] or ""
        return f"{found['label']}{resolve(target, _looks_like_a_picture(target)) or '#'}"

    quoted = _UNQUOTED.sub(r'\1"\2"', text)
    return _ATTRIBUTE.sub(attribute, _REFERENCE.sub(reference, _LINK.sub(link, quoted)))


def _looks_like_a_picture(target: str) -> bool:
    return target.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"))


def _resolver(repo_id: str | None, revision: str | None) -> Callable[[str, bool], str | None]:
    """Target -> address; ``None`` where it leads nowhere or runs something."""

    def resolve(target: str, is_file: bool) -> str | None:
        if target.startswith("#"):
            return target
        if _SCHEME.match(target):
            return target if target.lower().startswith(_HARMLESS) else None
        if repo_id is None:
            return None
        if target.startswith("/"):
            return f"{SITE}{target}"
        kind, path = "resolve" if is_file else "blob", target.removeprefix("./")
        path = quote(path, safe="/%#?=&+:@,;~!$'*")
        return f"{SITE}/{repo_id}/{kind}/{revision or 'main'}/{path}"

    return resolve
