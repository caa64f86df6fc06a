"""A recipe's conversation form as a chat template, and back to plain text.

The template is Jinja as ``tokenizer.apply_chat_template`` runs it. The recipe's strings
stand in it as Jinja string literals, so that none of them can become code.
"""

from __future__ import annotations

import json

from quantkit.recipe import Prompt

CHAT_TEMPLATE = "chat_template.jinja"

# One line, as a line break in a template would be one in the prompt.
_TEMPLATE = (
    "{{%- for message in messages -%}}"
    # The form has no place for another role: the assistant would seem to say its words.
    "{{%- if message['role'] not in ['user', 'assistant'] -%}}"
    "{{{{- raise_exception('the roles of this prompt form are user and assistant, not '"
    " + message['role']) -}}}}{{%- endif -%}}"
    "{{{{- {user} if message['role'] == 'user' else {system} -}}}}"
    "{{{{- {separator} + message['content'].replace('\\n', {newline}) -}}}}"
    "{{%- if not loop.last or add_generation_prompt -%}}{{{{- {turn_end} -}}}}{{%- endif -%}}"
    "{{%- endfor -%}}"
    "{{%- if add_generation_prompt -%}}{{{{- {system} + {separator} -}}}}{{%- endif -%}}"
)


def chat_template(prompt: Prompt) -> str:
    """The Jinja text of ``chat_template.jinja``: user and assistant turns in the model's form.

    It refuses any other role (``raise_exception``, as templates without a system turn do).
    """
    literals = {name: _literal(value) for name, value in prompt.model_dump().items()}
    return _TEMPLATE.format(**literals)


def restore_newlines(prompt: Prompt, text: str) -> str:
    """What the model said, with its newline symbol turned back into line breaks."""
    return text.replace(prompt.newline, "\n") if prompt.newline else text


def _literal(value: str) -> str:
    """A Jinja string literal: JSON's escapes are a subset of Jinja's."""
    return json.dumps(value, ensure_ascii=False)
