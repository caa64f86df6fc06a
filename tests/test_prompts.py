"""A recipe's conversation form renders to the letter, through transformers' own renderer."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from quantkit.prompts import chat_template, restore_newlines
from quantkit.recipe import Prompt, load_recipe
from quantkit.snippet import _restored

CONVERSATION = [
    {"role": "user", "content": "日本のおすすめの観光地を教えてください。"},
    {"role": "assistant", "content": "どの地域の観光地が知りたいですか？"},
    {"role": "user", "content": "渋谷の観光地を教えてください。"},
]


def render(prompt: Prompt, messages: list[dict[str, str]], *, opening: bool = True) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=chat_template(prompt),
        add_generation_prompt=opening,
    )
    return rendered[0]


@pytest.mark.parametrize(
    ("recipe", "line"),
    [("rinna-3.6b-ppo-nf4", "<NL>"), ("rinna-3.6b-ppo-gptq", "<NL>"), ("rinna-4b-sft-nf4", "\n")],
)
def test_the_cards_example_to_the_letter(recipe: str, line: str) -> None:
    prompt = load_recipe(recipe).prompt
    assert prompt is not None
    assert render(prompt, CONVERSATION) == line.join(
        [
            "ユーザー: 日本のおすすめの観光地を教えてください。",
            "システム: どの地域の観光地が知りたいですか？",
            "ユーザー: 渋谷の観光地を教えてください。",
            "システム: ",
        ]
    )


@pytest.mark.parametrize("recipe", ["rinna-3.6b-ppo-nf4", "rinna-4b-sft-nf4"])
def test_newlines_inside_an_utterance_go_there_and_back(recipe: str) -> None:
    prompt = load_recipe(recipe).prompt
    assert prompt is not None
    said = "一つ目\n二つ目\n\n最後"
    rendered = render(prompt, [{"role": "user", "content": said}], opening=False)
    assert rendered == "ユーザー: " + said.replace("\n", prompt.newline)
    assert restore_newlines(prompt, rendered) == "ユーザー: " + said


@pytest.mark.parametrize(
    ("newline", "back"),
    [("<NL>", "a\nb"), ("\n", "a\nb"), ("\\", "a\nb"), ("😀", "a\nb"), ("", "ab")],
)
def test_a_newline_of_any_letters_comes_back_also_by_the_cards_code(
    newline: str, back: str
) -> None:
    prompt = Prompt(user="u", system="s", separator=": ", turn_end="\n", newline=newline)
    said = "a\nb".replace("\n", newline)
    assert restore_newlines(prompt, said) == back
    assert eval(_restored(prompt.model_dump()), {"said": said}) == back


def test_the_gates_prompts_are_the_templates() -> None:
    prompt = load_recipe("rinna-3.6b-ppo-nf4").prompt
    assert prompt is not None
    message = {"role": "user", "content": "一行目\n二行目"}
    assert prompt.render("一行目\n二行目") == render(prompt, [message])


@pytest.mark.parametrize("role", ["system", "tool", "User", ""])
def test_another_role_is_refused_not_put_into_the_assistants_mouth(role: str) -> None:
    prompt = load_recipe("rinna-3.6b-ppo-nf4").prompt
    assert prompt is not None
    with pytest.raises(TemplateError, match=f"user and assistant, not {role}$"):
        render(prompt, [{"role": role, "content": "答えは短く。"}, *CONVERSATION])


def test_a_recipes_text_never_becomes_code() -> None:
    hostile = Prompt(
        user="{{ 1 + 1 }}'\"", system="{% raw %}\\", separator='" + x + "', turn_end="\n",
        newline="{#",
    )  # fmt: skip
    rendered = render(hostile, [{"role": "user", "content": "a\nb"}])
    assert rendered == '{{ 1 + 1 }}\'"" + x + "a{#b\n{% raw %}\\" + x + "'
