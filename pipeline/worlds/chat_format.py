"""The chat format of worlds whose rows are messages: two role tokens and a template with generation marks.

``<user>Hello.<assistant>Good day.<eos><user>…``: a turn of the assistant ends with the end-of-text token, so that a
model which learns it stops by itself. What stands between the generation marks is what `assistant_only_loss` of TRL
trains on: the assistant's words and their end, never the role tokens or the user.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class ChatFormat(NamedTuple):
    """A chat template and the special tokens that it needs besides pad, bos and eos."""

    template: str
    role_tokens: tuple[str, ...]


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


def write_out(messages: Sequence[dict[str, str]]) -> str:
    """`messages` as the template of `TURNS` writes them."""
    end = {"user": "", "assistant": EOS}
    return "".join(f"<{message['role']}>{message['content']}{end[message['role']]}" for message in messages)


def without_tokens(text: str, tokens: Sequence[str]) -> list[str]:
    """The pieces of `text` between special tokens, none of them empty."""
    return [piece for piece in re.split("|".join(map(re.escape, tokens)), text) if piece]
