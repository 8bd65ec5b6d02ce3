"""The chat formats of worlds whose rows are messages: role tokens and a template with generation marks.

``<user>Hello.<assistant>Good day.<eos><user>…``: a turn of the assistant ends with the end-of-text token, so that a
model which learns it stops by itself. What stands between the generation marks is what `assistant_only_loss` of TRL
trains on: the assistant's words and their end, never the role tokens or the user.

In a game the assistant calls tools, ``<assistant><call>buy item=rope count=2<eos><tool>sold 2<assistant>…``, and the
response template says how transformers and TRL read the calls back from it.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class ChatFormat(NamedTuple):
    """A chat template, the special tokens that it needs besides pad, bos and eos, and how calls are read back."""

    template: str
    role_tokens: tuple[str, ...]
    response_template: dict[str, Any] | None = None  # of transformers; None: nobody calls tools


TURNS = ChatFormat(
    template=(
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}<user>{{ message.content }}"
        "{%- elif message.role == 'assistant' -%}"
        "<assistant>{% generation %}{{ message.content }}" + EOS + "{% endgeneration %}"
        "{%- else -%}{{ raise_exception('the roles are user and assistant, not ' + message.role) }}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
    ),
    role_tokens=("<user>", "<assistant>"),
)

# Which tools there are is not written out: a model of this size knows them from its training
TOOLS = ChatFormat(
    template=(
        "{%- for message in messages -%}"
        "{%- if message.role in ('user', 'tool') -%}<{{ message.role }}>{{ message.content }}"
        "{%- elif message.role == 'assistant' -%}"
        "<assistant>{% generation %}{{ message.content or '' }}"
        "{%- for call in message.tool_calls or [] -%}"
        "<call>{{ call.function.name }}"
        "{%- for name, value in call.function.arguments.items() %} {{ name }}={{ value }}{% endfor -%}"
        "{%- endfor -%}" + EOS + "{% endgeneration %}"
        "{%- else -%}{{ raise_exception('the roles are user, assistant and tool, not ' + message.role) }}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
    ),
    role_tokens=("<user>", "<assistant>", "<tool>", "<call>"),
    response_template={
        "defaults": {"role": "assistant"},
        "start_anchor": "<assistant>",
        "fields": {
            "tool_calls": {
                "open_pattern": r"<call>(?P<name>\w+)",
                "close_pattern": f"(?=<call>)|{EOS}",
                "repeats": True,
                "content": "kv-lines",
                "content_args": {"line_sep": " ", "kv_sep": "="},
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"close_pattern": EOS, "content": "text"},
        },
    },
)


def write_out(messages: Sequence[dict[str, Any]]) -> str:
    """`messages` as the templates of `TURNS` and `TOOLS` write them."""
    end = {"assistant": EOS}
    return "".join(
        f"<{message['role']}>{message.get('content') or ''}{_calls(message)}{end.get(message['role'], '')}"
        for message in messages
    )


def _calls(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return "".join(
        f"<call>{call['name']}" + "".join(f" {name}={value}" for name, value in call["arguments"].items())
        for call in calls
    )


def without_tokens(text: str, tokens: Sequence[str]) -> list[str]:
    """The pieces of `text` between special tokens, none of them empty."""
    return [piece for piece in re.split("|".join(map(re.escape, tokens)), text) if piece]
