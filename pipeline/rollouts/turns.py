"""Games of several turns in TRL's trainers: noted as they are played, for rewards that pay by turns, and for exams.

TRL plays them (tools, `environment_factory`). What is added: each game begins with a seed that belongs to the run, the
step and the row, so that a resumed run plays the same games; after every turn it is noted where the turn ends and what
the environment has paid by then; and held-out games can be played without leaving a trace in the training.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from trl.chat_template_utils import parse_response

from pipeline.errors import UserError
from pipeline.models.lockstep import in_lockstep
from pipeline.models.structure import eval_mode
from pipeline.rollouts import environments
from pipeline.rollouts.own_loop import no_rewards
from pipeline.rollouts.row_prompts import RowPrompts
from pipeline.rollouts.scoring import Scoring, weigh
from rewards.asking import columns_of
from rewards.mixture import every_in
from rewards.turns import Environment, Turn, worth_of


class Game(NamedTuple):
    """A game that was played for an exam."""

    prompt: list[dict]  # with what the environment said at the beginning
    prompt_ids: list[int]
    completion_ids: list[int]
    own: list[int]  # of each completion token: 1 = the policy sampled it, 0 = a tool or the template wrote it
    messages: list[dict]
    turns: list[Turn]


class Turns(RowPrompts):
    """Mixed into PPOTrainer."""

    environments: list[Any] | None  # TRL's: of the rollout that is being made, one a row
    turns: list[list[Turn]] | None = None  # of the rollout that is being made, of each row; None: one turn each
    _rounds: list[list[tuple]] | None = None  # in a loop over turns: what each environment was after each round

    def __init__(self, *args: Any, **kwargs: Any):
        factory, tools, funcs = (kwargs.get(key) for key in ("environment_factory", "tools", "reward_funcs"))
        rows = kwargs.get("train_dataset")
        environments.check(
            kwargs["args"], next(iter(rows or ()), None), environments.factories_of(factory), bool(tools)
        )
        if factory is not None and funcs is no_rewards:
            kwargs["reward_funcs"] = []  # TRL takes what the environment pays
        with warnings.catch_warnings():  # docs/turns.md says that it may change
            warnings.filterwarnings("ignore", "You are using 'environment_factory'")
            super().__init__(*args, **kwargs)
        self._exam_pool: dict[str | None, list[Any]] = {}
        self._keep_one_reward_of_environments()

    def _keep_one_reward_of_environments(self) -> None:
        """Where the rewards name what the environment pays, TRL's own asking for it goes."""
        if not any(isinstance(part, Environment) for reward in self.reward_funcs for part in every_in(reward)):
            return
        kept = [i for i, reward in enumerate(self.reward_funcs) if not _is_trls(reward)]
        for name in ("reward_funcs", "reward_func_names", "reward_processing_classes"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])
        self.reward_weights = self.reward_weights[kept]

    # ------------------------------------------------------------ a rollout
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self.turns = None
        if self.environment_factories is not None:
            inputs = self._with_seeds(inputs)
        return super()._generate_and_score_completions(inputs)

    def _with_seeds(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the seeds of their games: those of one prompt in a rollout play the same one."""
        mode, group = ("train", self.num_generations) if self.model.training else ("eval", self.num_generations_eval)
        first = self.accelerator.process_index * len(inputs)
        made_from = (self.args.seed, mode, self.state.global_step)
        return [
            environments.seeded(row, self._probe_of(row), *made_from, (first + i) // (group or 1))
            for i, row in enumerate(inputs)
        ]

    def _name_of(self, row: Mapping[str, Any]) -> str | None:
        """Of the row's environment in TRL's table."""
        name = row.get("environment") if self._multi_environment else None
        if name not in self.environment_factories:
            raise UserError(
                f"a row's column environment is {name!r}: there are {', '.join(self.environment_factories)}"
            )
        return name

    def _probe_of(self, row: Mapping[str, Any]) -> Any:
        return self._environment_pool[self._name_of(row)][0]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self._rounds is not None:  # the tools have answered, and nobody has gone on
            self._rounds.append(self._standing())
        return super()._generate_single_turn(*args, **kwargs)

    def _tool_call_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._rounds = []
        try:
            found = super()._tool_call_loop(*args, **kwargs)
        finally:
            rounds, self._rounds = self._rounds, None
        masks, completions = found[:2]
        self.turns = [
            turns_of(mask, messages, [each[row] for each in rounds if each])
            for row, (mask, messages) in enumerate(zip(masks, completions, strict=True))
        ]
        return found

    def _standing(self) -> list[tuple[float | None, Any]]:
        """What each environment has paid so far, and a copy of it, where a reward asks for that."""
        worths = any(map(environments.asks_worth, self.reward_funcs))
        copies = any(map(environments.asks_copies, self.reward_funcs))
        return [
            (worth_of(one) if worths else None, _copied(one) if copies else None) for one in self.environments or ()
        ]

    def _asks(self, completions: Sequence[Any], completion_ids: Sequence[list[int]]) -> Scoring:
        """Stands between TRL's loop over rewards and the rewards, for this rollout."""
        names, tokenizer = self.reward_func_names, self._tokenizer
        asked = (self.reward_funcs, names, tokenizer, completions, completion_ids, self.turns)
        return Scoring(*asked, around=partial(in_lockstep, self.model))

    # ------------------------------------------------------------ held-out games
    @torch.no_grad()
    def play(
        self, rows: Sequence[Mapping[str, Any]], temperature: float, first: int = 0
    ) -> tuple[list[Game], list[Any]]:
        """Plays the games of `rows`, by the adapter that speaks, at `temperature` (0: greedy).

        Everything is as in a rollout, but the environments are others, and nothing is logged, counted or gathered.
        Draws from torch's global generator. `first`: the number of the first row, which its seed is made of.

        Returns:
            the games, and their environments as they are at the end; both one a row, the latter until the next call.

        Raises:
            UserError: an environment's reset fails.
        """
        found = self._begin_games(rows)
        was = {name: getattr(self, name, None) for name in (*found, "turns")}
        vars(self).update(found)
        try:
            with eval_mode(self.model), self._temperature(temperature):
                return self._play(rows, first), list(self.environments or ())
        finally:
            vars(self).update(was)

    def _play(self, rows: Sequence[Mapping[str, Any]], first: int) -> list[Game]:
        asked = self._prompts_of(rows, first)
        prompts = copy.deepcopy(asked)  # TRL writes the turns behind them
        ids = self._tokenize_prompts(prompts)[0]
        completion_ids, _ = self._generate_single_turn(ids, None, {}, 1)
        tools = [self._tools_of(row) for row in rows]
        said = [
            [parse_response(self._tokenizer, completion, prefix=prompt, tools=known)]
            for prompt, completion, known in zip(ids, completion_ids, tools, strict=True)
        ]
        masks, messages, completion_ids, *_ = self._tool_call_loop(prompts, ids, completion_ids, said, None, None, {})
        games = zip(asked, ids, completion_ids, masks, messages, self.turns or (), strict=True)
        return [Game(*game) for game in games]

    def _tools_of(self, row: Mapping[str, Any]) -> list[Callable]:
        return self.tools if self.environment_factories is None else self._env_tools[self._name_of(row)]

    def _prompts_of(self, rows: Sequence[Mapping[str, Any]], first: int) -> list[list[dict]]:
        """The prompts, with what the environments, which begin here, say at the beginning; as TRL puts it there."""
        prompts: list[list[dict]] = []
        for i, row in enumerate(rows):
            prompt = row.get("prompt") or [{"role": "user", "content": ""}]
            if self.environments:
                made_from = (self.args.seed, "held out", first + i)
                opening = environments.begin(self.environments[i], row, self._multi_environment, *made_from)
                if isinstance(opening, str):
                    prompt = [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + opening}]
            prompts.append(prompt)
        return prompts

    def _begin_games(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Environments of their own for `rows`, made once and used again, and their tools, by TRL's names."""
        if self.environment_factories is None:
            named: list[str | None] = [None] * len(rows)
            instances: list[Any] = []
        else:
            named, instances, taken = [self._name_of(row) for row in rows], [], {}
            for name in named:
                pool = self._exam_pool.setdefault(name, [])
                place = taken[name] = taken.get(name, -1) + 1
                if place == len(pool):
                    pool.append(self.environment_factories[name]())
                instances.append(pool[place])
        tools = [[*self._standalone_tools, *(_methods(instances[i]) if instances else ())] for i in range(len(rows))]
        waits = inspect.iscoroutinefunction
        return {
            "environments": instances or None,
            "_batch_environments": named,
            "_sync_tool_dicts": [{tool.__name__: tool for tool in of if not waits(tool)} for of in tools],
            "_async_tool_dicts": [{tool.__name__: tool for tool in of if waits(tool)} for of in tools],
        }

    @contextmanager
    def _temperature(self, temperature: float) -> Iterator[None]:
        before = self.generation_config
        self.generation_config = copy.deepcopy(before)
        if temperature:
            self.generation_config.temperature = temperature
        else:
            self.generation_config.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50)
        try:
            yield
        finally:
            self.generation_config = before

    def paid(
        self, rows: Sequence[Mapping[str, Any]], games: Sequence[Game], played: Sequence[Any]
    ) -> list[tuple[list[float], list[float]]]:
        """What the rewards of the training say of games: the score by each reward, NaN where it has none, and what is
        paid at each token, weights included, as in training but for the KL and penalties.

        Args: played: the environments as `play` gave them.
        """
        messages, ids = [game.messages for game in games], [game.completion_ids for game in games]
        turns = [game.turns for game in games]
        scoring = Scoring(self.reward_funcs, self.reward_func_names, self._tokenizer, messages, ids, turns)
        question = columns_of(rows) | {"prompts": [game.prompt for game in games], "completions": messages}
        each = scoring.ask(question | ({"environments": list(played)} if played else {}))
        weights, found = self.reward_weights.cpu(), []
        instant = scoring.instant(weights, max(map(len, ids)))
        for i, (score, game) in enumerate(zip(weigh(each, weights)[0].tolist(), games, strict=True)):
            own = torch.tensor(game.own)
            tokens = torch.zeros(len(own)) if instant is None else instant[i, : len(own)] * own
            tokens[int(own.nonzero()[-1])] += score - tokens.sum().item()
            found.append((each[i].tolist(), tokens.tolist()))
        return found


def turns_of(mask: Sequence[int], messages: Sequence[Mapping[str, Any]], rounds: Sequence[tuple]) -> list[Turn]:
    """The turns of one completion: where each ends, in tokens and messages, and how the environment stood then.

    Args:
        mask: 1 = a token of the policy, 0 = of a tool; the runs of ones are the turns.
        messages: of the completion; a turn is one of the assistant and the answers behind it.
        rounds: after each turn of the longest game of the batch, (worth, copy) of this row's environment.
    """
    ends = [t for t, own in enumerate(mask) if own and (t + 1 == len(mask) or not mask[t + 1])]
    starts = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    # a turn without any token was cut off by the limit
    behind = [*starts[1:], len(messages)][: len(ends)]
    pairs = enumerate(zip(ends, behind, strict=False))
    return [Turn(end, count, *(rounds[k] if k < len(rounds) else ())) for k, (end, count) in pairs]


def _methods(environment: Any) -> list[Callable]:
    """The tools of an environment, as TRL finds them."""
    names = (name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction))
    return [
        getattr(environment, name) for name in names if not (name in ("reset", "get_reward") or name.startswith("_"))
    ]


def _copied(environment: Any) -> Any:
    try:
        return copy.deepcopy(environment)
    except Exception as error:
        raise UserError(
            f"instant: turns with a reward that reads environments wants a copy of each after every turn, and "
            f"{type(environment).__name__} cannot be copied ({type(error).__name__}): let its get_reward pay by turns "
            "({name: environment, instant: turns})"
        ) from error


def _is_trls(reward: object) -> bool:
    """Whether TRL itself added a reward that asks environments."""
    return getattr(reward, "__qualname__", "") == "GRPOTrainer.__init__.<locals>.get_reward"
