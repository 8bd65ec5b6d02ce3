"""A language model as the judge, behind any server that speaks OpenAI's chat completions."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from .base import Reward, RewardError, choice, number
from .chat_server import Budget, BudgetSpent, ChatServer, Failure, Reply, ServerError
from .reply_cache import CacheError, Remembering, ReplyCache
from .rubric import Question, Rubric, RubricError
from .text import Texts, text_of

RUBRIC = "How well the answer does what the task asks: right, complete, clear, and no longer than needed."
KEY_VARIABLE = "JUDGE_API_KEY"
# What the names of such variables end in; the pipeline strikes out the values of all of these (docs/judge-reward.md).
_NAME_OF_A_KEY = re.compile(r"([A-Z0-9]+_)*(API_?KEY|TOKEN|SECRET)")
SEVERAL = 0.7  # temperature of several votes
MOST_VOTES = 1000
_OURS = ("messages", "stream", "n")  # settings of a request that are not for `body`
_NO_SCHEMA = (400, 422)  # how servers refuse a response_format that they do not know

logger = getLogger(__name__)


class Asked(NamedTuple):
    """One verdict that is wanted of the judge."""

    row: int
    question: Question
    read: Callable[[str, str], float | None]  # of reply and what was shown
    seed: int
    swapped: bool  # the row's own answer came second


class Judge(Reward):
    """The marks that a language model gives, from 0 (worst) to 1 (best); docs/judge-reward.md.

        {name: judge, url: "http://localhost:8000/v1", model: Qwen/Qwen2.5-7B-Instruct, rubric: "Is it polite?"}
        {name: judge, url: ..., model: ..., against: sft_answer}
        {name: judge, url: ..., model: ..., scale: [1, 5], rubric: [{name: right, description: ..., weight: 2}, ...]}

    A verdict must be JSON with every value on the scale; one that is not is left out, and a row without any scores
    None. The share of these is logged as `judge/unreadable`, that of questions without an answer as `judge/failed`.

    Options:
        url: the server's address up to and without `/chat/completions`. model: its name there.
        rubric (a general one): in words, or a list of criteria, each with name, description and weight (1).
        scale ([1, 10]): the lowest and the highest mark; linear to 0 and 1.
        reference (none): a column with a good answer, which the judge sees beside the one to mark.
        against (none): a column with another answer to the prompt. The judge then says which one is better, asked in
            both orders: 1 the completion, 0 the other, 0.5 a tie. A row without another answer scores None.
        reasons (true): the judge gives a short reason before the verdict; without, it costs less, and a small model
            keeps to the form more often.
        votes (1): verdicts for each question; their mean counts.
        temperature (0; 0.7 with several votes).
        key_variable (JUDGE_API_KEY): the environment variable with the key, if the server wants one.
        at_once (8): requests under way, in each process. timeout (60): seconds. retries (5): further tries, with
            pauses that double, or as long as the server says (Retry-After).
        cache (true): a file with what was answered, so that nothing is asked twice, also by a resumed run; true is
            judge.sqlite in ~/.cache/plumbline (or XDG_CACHE_HOME), false keeps it in memory alone.
        max_requests, max_tokens (none): what a run may spend; it stops with a checkpoint before a step for which what
            is left may be too little. Several processes share it in equal parts.
        answer_tokens (256): the longest answer of the judge.
        json_schema (auto): whether the server is told the form of the verdict (`response_format`); auto: if it can.
        body (none): what else a request has, such as {reasoning_effort: low}.

    Raises:
        RewardError: also where the server refuses, or answers none of the questions of a call.
    """

    def __init__(
        self,
        url: str,
        model: str,
        rubric: Any = RUBRIC,
        scale: Sequence[float] = (1, 10),
        reference: str | None = None,
        against: str | None = None,
        reasons: bool = True,
        votes: int = 1,
        temperature: float | None = None,
        key_variable: str | None = None,
        at_once: int = 8,
        timeout: float = 60,
        retries: int = 5,
        cache: bool | str = True,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        answer_tokens: int = 256,
        json_schema: bool | str = "auto",
        body: dict[str, Any] | None = None,
        log_name: str = "judge",
    ):
        super().__init__(log_name)
        self._check_texts(model=model, reference=reference, against=against)
        try:
            self.rubric = Rubric(rubric, scale, choice(reasons, "reasons", (True, False), log_name))
        except RubricError as error:
            raise self.error(str(error)) from None
        if reference and against:
            raise self.error("reference and against are two ways to judge; give one of them.")
        self.reference, self.against = reference, against
        self.votes = self._whole(votes, "votes", 1, MOST_VOTES)
        heat = (SEVERAL if self.votes > 1 else 0.0) if temperature is None else temperature
        self.temperature = number(heat, "temperature", log_name)
        if not 0 <= self.temperature <= 2 or (self.votes > 1 and not self.temperature):
            raise self.error(f"temperature is {self.temperature:g}; give 0 to 2, and for several votes more than 0.")
        self._processes = max(1, int(os.environ.get("WORLD_SIZE", "1")))
        limits = {"max_requests": max_requests, "max_tokens": max_tokens}
        least = self._processes  # one for each
        limits = {k: v if v is None else self._whole(v, k, least) // least for k, v in limits.items()}
        seconds = number(timeout, "timeout", log_name)
        if not 0 < seconds <= 3600:
            raise self.error(f"timeout is {timeout}; give seconds, above 0 and up to 3600.")
        self.server = ChatServer(
            self._address(url),
            self._key(key_variable),
            self._whole(at_once, "at_once", 1),
            seconds,
            self._whole(retries, "retries", 0),
            Budget(**limits),
        )
        self.json_schema = choice(json_schema, "json_schema", ("auto", True, False), log_name)
        self.asked = Remembering(self.server, ReplyCache(self._place(cache)))
        self._check_body(body)
        longest = self._whole(answer_tokens, "answer_tokens", 1)
        self.body = {"model": model, "temperature": self.temperature, "max_tokens": longest} | (body or {})
        self._told: bool | None = None  # whether requests have a response_format; None: not known yet

    # ------------------------------------------------------------ scores
    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        answers = [text_of(completion) for completion in completions]
        if self.against:
            others = self._one_text(prompts, columns, self.against)
            return self._pairs(prompts, answers, others, (False, True), columns.get("log_metric"))
        references: list[str | None] = [None] * len(answers)
        if self.reference:
            references = self._one_text(prompts, columns, self.reference)
        asked = [
            Asked(row, self.rubric.mark(*texts), self.rubric.marked, seed, False)
            for row, texts in enumerate(zip(prompts, answers, references, strict=True))
            for seed in range(self.votes)
        ]
        return self._means(len(answers), self._verdicts(asked, False, columns.get("log_metric")))

    def prefer(self, prompts: Texts, completions_a: Texts, completions_b: Texts, **columns: Any) -> list[float | None]:
        """Which of two completions is better, shown in this order: 1 the first, 0 the second, 0.5 a tie.

        It is what `judges` of an evaluation wants, which asks in both orders.
        """
        first, second = ([text_of(completion) for completion in side] for side in (completions_a, completions_b))
        return self._pairs(prompts, first, second, (False,), None)

    def _pairs(
        self,
        prompts: Texts,
        answers: Sequence[str],
        others: Sequence[str | None],
        orders: Sequence[bool],
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        asked: list[Asked] = []
        same: dict[int, float | None] = {}
        for row, (prompt, answer, other) in enumerate(zip(prompts, answers, others, strict=True)):
            if other is None:
                continue
            if answer.strip() == other.strip():
                same[row] = 0.5
                continue
            for swapped in orders:
                question = self.rubric.compare(prompt, *((other, answer) if swapped else (answer, other)))
                asked += [Asked(row, question, self.rubric.compared, seed, swapped) for seed in range(self.votes)]
        verdicts = self._verdicts(asked, True, log_metric)
        first = [verdict for _, verdict in verdicts if verdict is not None]
        if log_metric is not None and first:
            log_metric(f"{self.__name__}/first", sum(first) / len(first))
        turned = [(one, 1 - won if won is not None and one.swapped else won) for one, won in verdicts]
        by_order = [self._means(len(answers), [x for x in turned if x[0].swapped == swapped]) for swapped in orders]
        # both orders or none: one alone would have the bias of its order in it
        scores = []
        for each in zip(*by_order, strict=True):
            known = [score for score in each if score is not None]
            scores.append(sum(known) / len(known) if len(known) == len(each) else None)
        return [same.get(row, score) for row, score in enumerate(scores)]

    @staticmethod
    def _means(rows: int, verdicts: Sequence[tuple[Asked, float | None]]) -> list[float | None]:
        of_row: list[list[float]] = [[] for _ in range(rows)]
        for asked, verdict in verdicts:
            if verdict is not None:
                of_row[asked.row].append(verdict)
        return [sum(found) / len(found) if found else None for found in of_row]

    def _verdicts(
        self, asked: Sequence[Asked], pairs: bool, log_metric: Callable[[str, float], None] | None
    ) -> list[tuple[Asked, float | None]]:
        """What the judge says, 0 to 1 each; None where its reply cannot be read or there was none."""
        if not asked:
            return []
        self.prepare()
        budget = self.server.budget
        before = (budget.requests, budget.tokens)
        with self._in_words():
            replies = self.asked.ask_all([self._body_of(one, pairs) for one in asked])
        found = [
            (one, one.read(reply.text, one.question.shown) if isinstance(reply, Reply) else None)
            for one, reply in zip(asked, replies, strict=True)
        ]
        failures = [reply for reply in replies if isinstance(reply, Failure)]
        if len(failures) == len(replies):
            raise self._refused(failures[0].reason)
        if failures:
            logger.warning(
                "Reward '%s': %d of %d questions got no answer, and go without a verdict: the judge %s.",
                *(self.__name__, len(failures), len(replies), failures[0].reason),
            )
        if log_metric is not None:
            unread = sum(verdict is None for _, verdict in found) - len(failures)
            log_metric(f"{self.__name__}/unreadable", unread / (len(replies) - len(failures)))
            log_metric(f"{self.__name__}/failed", len(failures) / len(replies))
            log_metric(f"{self.__name__}/requests", float(budget.requests - before[0]))
            log_metric(f"{self.__name__}/tokens", float(budget.tokens - before[1]))
        return found

    # ------------------------------------------------------------ asking
    def prepare(self) -> None:
        """Asks the judge one question, so that a wrong address, key or model shows now, and whether schemas do."""
        if self._told is not None:
            return
        pairs, answer = bool(self.against), Failure("is not asked")
        question = self.rubric.compare("Say 2.", "2", "3") if pairs else self.rubric.mark("Say 2.", "2")
        one = Asked(0, question, self.rubric.marked, 0, False)
        for told in (True, False) if self.json_schema == "auto" else (self.json_schema is True,):
            with self._in_words():
                found = self.server.ask(self._body_of(one, pairs, told))
            if isinstance(found, Reply):
                self._told = told
                return
            answer = found
            if answer.status not in _NO_SCHEMA:
                break
        raise self._refused(answer.reason)

    def _body_of(self, one: Asked, pairs: bool, told: bool | None = None) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": one.question.messages} | ({"seed": one.seed} if self.votes > 1 else {})
        if self._told if told is None else told:
            schema = {"name": "verdict", "strict": True, "schema": self.rubric.schema(pairs)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {key: value for key, value in (body | self.body).items() if value is not None}

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            raise self._refused(str(error)) from None
        except BudgetSpent:
            raise self.error(f"{self._budget()} is spent; raise it and go on where the run was.") from None
        except CacheError as error:
            raise self.error(f"the cache {self.asked.cache.path} {error}; give another cache.") from None

    def _refused(self, reason: str) -> RewardError:
        unset = "status 401" in reason and self._key_variable not in os.environ
        hint = f" ({self._key_variable} is not set, so no key was sent)" if unset else ""
        return self.error(f"the judge {self.body['model']} at {self.server.url} {reason}{hint}.")

    def _budget(self) -> str:
        budget = self.server.budget
        limits = {"max_requests": budget.max_requests, "max_tokens": budget.max_tokens}
        said = ", ".join(f"{key} {limit * self._processes}" for key, limit in limits.items() if limit is not None)
        return f"the budget ({said}; {budget.requests} requests and {budget.tokens} tokens so far)"

    def reason_to_stop(self) -> str | None:
        if self.asked.go_on():
            return None
        return f"Reward '{self.__name__}': {self._budget()} may not do for another step; raise it"

    def state_dict(self) -> dict[str, Any]:
        return {"requests": self.server.budget.requests, "tokens": self.server.budget.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds what the run had spent before."""
        self.server.budget.requests += int(state.get("requests", 0))
        self.server.budget.tokens += int(state.get("tokens", 0))

    # ------------------------------------------------------------ settings
    def _one_text(self, prompts: Texts, columns: dict[str, Any], name: str) -> list[str | None]:
        """The text of each row in a column, of several the first; None where there is none."""
        firsts = [
            x[0] if isinstance(x, list | tuple) and x and isinstance(x[0], str) else x
            for x in self.column(columns, name)
        ]
        texts = self.texts(prompts, columns | {name: firsts}, name)
        return [text if text.strip() else None for text in texts]

    def _whole(self, value: Any, option: str, least: int, most: float = float("inf")) -> int:
        found = number(value, option, self.__name__)
        if found != int(found) or not least <= found <= most:
            end = "up" if most == float("inf") else f"to {most}"
            raise self.error(f"{option} is {value!r:.80}; give a whole number from {least} {end}.")
        return int(found)

    def _check_texts(self, **options: Any) -> None:
        for option, value in options.items():
            if option == "model" or value is not None:
                if not isinstance(value, str) or not value.strip():
                    raise self.error(f"{option} is {value!r:.80}; give a name.")

    def _check_body(self, body: Any) -> None:
        try:
            good = body is None or (isinstance(body, dict) and bool(json.dumps(body, allow_nan=False)))
        except (TypeError, ValueError, RecursionError):
            good = False
        if not good or set(body or ()) & set(_OURS):
            wants = f"give settings of a request, such as {{top_p: 0.9}}, without {', '.join(_OURS)}"
            raise self.error(f"body is {body!r:.80}; {wants}.")

    def _address(self, url: Any) -> str:
        try:
            parts = urlsplit(url)
            secret = "@" in parts.netloc or bool(parts.query)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            httpx2.URL(url)
            (parts.hostname or "").encode("idna")  # as the connection does, with errors of its own
        except (ValueError, AttributeError, TypeError, httpx2.InvalidURL):
            secret = good = False
        if secret:  # not shown
            raise self.error("url has a password or a query in it; put the key into an environment variable.")
        if not good or parts.fragment or not url.isprintable():
            raise self.error(f"url is {url!r:.100}; give an address such as http://localhost:8000/v1.")
        return str(url).removesuffix("/").removesuffix("/chat/completions")

    def _key(self, variable: Any) -> str | None:
        name = KEY_VARIABLE if variable is None else variable
        if not isinstance(name, str) or not _NAME_OF_A_KEY.fullmatch(name):  # not shown: it may be the key itself
            raise self.error("key_variable is not the name of an environment variable such as OPENAI_API_KEY.")
        self._key_variable = name
        key = os.environ.get(name, "").strip()
        if variable is not None and not key:
            raise self.error(f"key_variable is {name}, which is not set in the environment.")
        if not key.isascii() or not key.isprintable():
            raise self.error(f"the key in {name} has characters that no key has.")
        return key or None

    def _place(self, cache: Any) -> Path | None:
        if isinstance(cache, str) and cache.strip():
            return Path(cache).expanduser()
        if choice(cache, "cache", (True, False), self.__name__) is False:
            return None
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plumbline" / "judge.sqlite"
