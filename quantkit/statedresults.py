"""What a source's own card states in its model-index, fit to stand apart on ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.sourcecard import SITE

#: How many are taken from one card; leaderboards have written hundreds into some.
_MOST = 64


def stated_results(stated: Mapping[str, Any], repo_id: str | None) -> list[dict[str, Any]]:
    """A model-index of the source's own figures, each attributed; unfit ones are left out.

    ``stated`` is the metadata of the card of ``repo_id``. The figures are of the weights before
    they were quantized, measured by whoever the card says.
    """
    if repo_id is None:
        return []
    said = f"the card of {repo_id}, of the weights before quantization"
    own = {"name": said, "url": f"{SITE}/{repo_id}"}
    results = [
        {**each, "source": _attribution(each) or own}
        for each in _results(stated.get("model-index"))
    ]
    return [{"name": f"{repo_id} (the source)", "results": results[:_MOST]}] if results else []


def _results(index: object) -> Iterator[dict[str, Any]]:
    """Every result that huggingface_hub would read."""
    for entry in index if isinstance(index, list) else []:
        found = entry.get("results") if isinstance(entry, Mapping) else None
        yield from (each for each in (found if isinstance(found, list) else []) if _is_sound(each))


def _is_sound(result: object) -> bool:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        _, read = model_index_to_eval_results([{"name": "source", "results": [result]}])
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    texts = [
        text for each in read for text in (each.task_type, each.dataset_type, each.metric_type)
    ]
    return bool(read) and all(isinstance(text, str) for text in texts)


def _attribution(result: Mapping[str, Any]) -> dict[str, str] | None:
    """Who measured it, where the card says so with a whole address."""
    said = result.get("source")
    url = said.get("url") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or not str(url).startswith("https://"):
        return None
    return {"name": str(said.get("name") or url), "url": str(url)}
