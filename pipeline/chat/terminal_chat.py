"""Talk to the base, the SFT model and the trained policy side by side: `python -m pipeline.chat runs/tiny/ppo`.

Under each answer stands what every reward of the run says of it, without normalization or clipping, as in the exams.
Everything is read from the run folder's config.yaml.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline import cli
from pipeline.chat.speakers import Answer, Run, answer, load_run
from pipeline.config import check
from pipeline.errors import UserError
from pipeline.safety.commands import Parser
from pipeline.watching.terminal import visible
from rewards import RewardError, log_name_of, text_of

HELP = """\
A line is a prompt; \\n in it is a line break. A command begins with /:
  /example [N]     the next held-out prompt (or the Nth) and its columns,
                   so that every reward can score
  /greedy          the likeliest token each time
  /temperature T   sampled; 1 is the model's own distribution
  /new             forget the conversation
  /help            this list
  /quit            leave; so do Ctrl-D and Ctrl-C (Ctrl-C first stops an answer)"""
COLUMN = 22  # of the screen; with less for each speaker, answers stand one below the other
PROMPT = "you> "


class Chat:
    """A conversation with everyone at once; `say` takes one line of the user."""

    def __init__(self, run: Run, console: Console, temperature: float | None = None):
        self.run, self.console = run, console
        self.temperature = run.temperature if temperature is None else temperature
        self.turn = self.example = 0
        self.explained: set[str] = set()  # reasons for a missing score that were given already
        self.before, self.after = ("", "")
        if not run.conversational:
            self.before, self.after = frame_of([row["prompt"] for row in run.rows])
        self.forget()

    def forget(self) -> None:
        """Starts a new conversation."""
        self.histories: list[list[dict]] = [[] for _ in self.run.speakers]

    def greet(self) -> None:
        """Says who is here and which rewards judge."""
        run = self.run
        names = [speaker.name for speaker in run.speakers]
        self._print(f"{run.folder}: {', '.join(names[:-1])} and {names[-1]} on {run.base}")
        if run.rewards:
            rewards = ", ".join(f"{log_name_of(reward)} (weight {weight:g})" for reward, weight in run.rewards)
            self._print(f"Rewards: {rewards}")
        if self.before or self.after:
            self._print(f"As in the data, a line is sent as {self.before + 'LINE' + self.after!r}.")
        self._print(f"{self._how()}, at most {run.max_tokens} tokens. /example takes a held-out prompt, /help helps.")

    def say(self, line: str) -> bool:
        """Does what `line` asks for; False when it asks to leave. What the user did wrong is said in one sentence."""
        try:
            if line.startswith("/"):
                return self._command(*line.split(maxsplit=1))
            if line.strip():
                self._ask(self._prompts(line.strip().replace("\\n", "\n")), {})
        except (UserError, RewardError) as error:
            self._print(f"error: {error}", style="red")
        return True

    def _command(self, name: str, rest: str = "") -> bool:
        if name in ("/quit", "/exit", "/q"):
            return False
        if name == "/help":
            self._print(HELP)
        elif name == "/greedy":
            self.temperature = 0.0
            self._print(self._how())
        elif name == "/temperature":
            self.temperature = temperature_of(rest)
            self._print(self._how())
        elif name == "/new":
            self.forget()
            self._print("A new conversation.")
        elif name == "/example":
            self._example(rest)
        else:
            raise UserError(f"there is no command {name}; /help lists them (a blank before the / makes it a prompt)")
        return True

    def _how(self) -> str:
        return f"Sampled at temperature {self.temperature:g}" if self.temperature else "Greedy"

    def _example(self, rest: str) -> None:
        rows = self.run.rows
        if not rows:
            raise UserError(f"there is no example: {self.run.no_rows}")
        number = self.example % len(rows) + 1
        if rest:
            number = int(rest) if rest.isdecimal() else 0
            check(1 <= number <= len(rows), "/example", rest, f"a number from 1 to {len(rows)}")
        self.example = number
        row = rows[number - 1]
        prompt = row["prompt"]
        self._print(text_of(prompt).strip(), style="bold")
        if self.run.conversational:
            self.histories = [list(prompt) for _ in self.run.speakers]
        self._ask([prompt] * len(self.run.speakers), row)

    def _prompts(self, line: str) -> list:
        """The prompt for each speaker: the line in the data's frame, or the speaker's own conversation so far."""
        if self.run.conversational:
            return [[*history, {"role": "user", "content": line}] for history in self.histories]
        line = line.removeprefix(self.before.strip()) if self.before.strip() else line
        line = line.removesuffix(self.after.strip()) if self.after.strip() else line
        return [self.before + line.strip() + self.after] * len(self.run.speakers)

    def _ask(self, prompts: list, row: dict) -> None:
        answers, reasons = answer(self.run, prompts, row, self.temperature, self.run.seed + self.turn)
        self.turn += 1
        if self.run.conversational:
            spoken = [[{"role": "assistant", "content": each.text}] for each in answers]
            self.histories = [[*prompt, *turn] for prompt, turn in zip(prompts, spoken, strict=True)]
        self.console.print(side_by_side([s.name for s in self.run.speakers], answers, self.console.width))
        for reason in reasons:
            if reason not in self.explained:
                self.explained.add(reason)
                self._print(f"- {reason}{'' if row else ' /example brings a prompt with its columns.'}", style="dim")

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(visible(text), style=style, overflow="fold"))


def frame_of(prompts: Sequence[str]) -> tuple[str, str]:
    """What stands before and after every prompt of the data, if line breaks are part of it.

    >>> frame_of(["animal: fox =>\\n", "animal: owl | time: dusk =>\\n"])
    ('', ' =>\\n')
    >>> frame_of(["\\n\\nHuman: Hi?\\n\\nAssistant:", "\\n\\nHuman: Why?\\n\\nAssistant:"])
    ('\\n\\nHuman: ', '\\n\\nAssistant:')
    """
    if len(set(prompts)) < 2:
        return "", ""
    before = os.path.commonprefix(list(prompts))
    after = os.path.commonprefix([prompt[::-1] for prompt in prompts])[::-1]
    # Up to a blank only: that all prompts begin with W, or end with a question mark, is chance.
    before, after = re.sub(r"\S*$", "", before), re.sub(r"^\S*", "", after)
    return before if "\n" in before else "", after if "\n" in after else ""


def side_by_side(names: Sequence[str], answers: Sequence[Answer], width: int) -> Table:
    """The answers in columns, or one below the other where columns would be too narrow; nothing wider than `width`."""
    heads = [Text(name, style="bold") for name in names]
    texts, scores = [], []
    for each in answers:
        parts = [Text(visible(each.text.strip("\n")) or "(nothing)", overflow="fold")]
        if not each.finished:
            parts.append(Text(f"(cut at {each.tokens} tokens)", style="dim"))
        texts.append(Group(*parts))
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(overflow="fold", style="dim")
        grid.add_column(justify="right", no_wrap=True)
        for name, score in each.scores.items():
            grid.add_row(Text(visible(name)), "-" if score is None else f"{score:.3f}")
        scores.append(grid)
    table = Table.grid(padding=(0, 2), expand=True)
    if width // len(heads) >= COLUMN:
        for _ in heads:
            table.add_column(ratio=1, overflow="fold")
        rows = [heads, texts, scores] if any(each.scores for each in answers) else [heads, texts]
    else:
        rows = [[cell] for three in zip(heads, texts, scores, strict=True) for cell in three]
    for row in rows:
        table.add_row(*row)
    return table


def temperature_of(text: str) -> float:
    """A temperature from 0 (greedy) up, or a `UserError`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    check(0 <= value < float("inf"), "temperature", text, "a number from 0 (greedy) up, such as 0.7")
    return value


def lines(console: Console) -> Iterator[str]:
    """The user's lines until the end of the input; from a pipe each is repeated, so that the output can be read."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                console.print(Text(f"\n{PROMPT}{visible(line.rstrip())}", overflow="fold"))
                yield line.rstrip("\r\n")
        return
    try:
        import readline  # noqa: F401  (gives input() a history and the arrow keys)
    except ImportError:
        pass
    while True:
        try:
            # Not rich's Prompt: it writes the prompt itself, and readline would then wipe it out.
            yield input(f"\n{PROMPT}")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m pipeline.chat", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a PPO, GRPO, RLOO or SFT run, or a checkpoint in it")
    parser.add_argument("--temperature", help="0 is greedy; by default as in the training")
    parser.add_argument("--own_code", action="store_true", help="import rewards of your own that the run names")
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    args = parser.parse_args(argv)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a pipe may bring any bytes
    temperature = None if args.temperature is None else temperature_of(args.temperature)
    # As in a training run, FORCE_COLOR must not put control characters into a pipe.
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    try:
        chat = Chat(load_run(args.run, args.own_code), console, temperature)
        chat.greet()
        for line in lines(console):
            try:
                if not chat.say(line):
                    break
            except KeyboardInterrupt:
                console.print("(stopped)")
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    cli.launch(main)
