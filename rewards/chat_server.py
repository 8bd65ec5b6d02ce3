"""Asking a chat model behind HTTP: `POST <url>/chat/completions`, in OpenAI's form. It knows nothing of rewards.

The form of request and answer: https://platform.openai.com/docs/api-reference/chat.
"""

import json
from typing import NamedTuple

from .json_server import Body, Budget, BudgetSpent, Failure, JsonServer, Passing, ServerError

__all__ = ["Body", "Budget", "BudgetSpent", "ChatServer", "Failure", "Passing", "Reply", "ServerError"]
MOST_TOKENS = 10**9  # that a server may say that an answer took


class Reply(NamedTuple):
    """What the model said, and what it cost."""

    text: str
    tokens: int  # of question and answer


class ChatServer(JsonServer[Reply]):
    """A chat model; `url` goes up to and without `/chat/completions`, such as http://localhost:8000/v1."""

    path = "/chat/completions"

    def _read(self, content: bytes, body: Body) -> Reply:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"]["content"]
            text = "" if text is None else text  # a refusal, or thoughts that took all tokens
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            said = self.printable(content[:200].decode("utf-8", "replace"))
            raise Passing(Failure(f"answers with something that is no chat completion: '{said}'")) from None
        usage = answer.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or not 0 <= tokens <= MOST_TOKENS:
            # four characters a token, where the server does not count
            tokens = (len(text) + sum(len(str(message["content"])) for message in body["messages"])) // 4
        self.budget.add(tokens)
        return Reply(text.encode("utf-8", "replace").decode(), tokens)
