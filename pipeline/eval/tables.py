"""The figures of an evaluation as tables: Markdown for a file, rich for a terminal of 80 columns."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.eval.sharpened import in_words

TABLE = "table.md"
WIDTH, GAP = 80, 2
Block = tuple[str, list[list[str]]]  # title; rows of cells, the first of them the head


def blocks(summary: dict, short: bool = False) -> list[Block]:
    """First the candidates side by side, then each against the reference; greedy and sampled.

    Args:
        short: the ends of the candidates' intervals have one decimal less, so that three fit side by side.
    """
    found: list[Block] = []
    for decoding in ("greedy", "sampled"):
        columns = {name: figures[decoding] for name, figures in summary["candidates"].items() if decoding in figures}
        measures = dict.fromkeys(measure for column in columns.values() for measure in column)
        rows = [[name, *(_figure(column.get(name), short) for column in columns.values())] for name in measures]
        found.append((f"{decoding}, {summary['prompts']} prompts", [["", *columns], *rows]))
    pairs: dict[tuple[str, ...], list[dict]] = {}
    for c in summary["comparisons"]:
        pairs.setdefault((c["candidate"], c["against"], c["decoding"]), []).append(c)
    for (name, against, decoding), mine in pairs.items():
        head = ["", "difference", "p", "p (Holm)", "wins"]
        rows = [[c["measure"], _difference(c), _p(c["p"]), _p(c["p_holm"]), _wins(c["wins"])] for c in mine]
        found.append((f"{name} against {against}, {decoding}", [head, *rows]))
    if judged := [c for c in summary["comparisons"] if c.get("order")]:
        head = ["judge", "of", "first wins", "same in both orders", "missing"]
        rows = [[c["measure"], f"{c['candidate']}, {c['decoding']}", *_order(c["order"])] for c in judged]
        found.append(("does the order count", [head, *rows]))
    return found + (_best_of(summary["best_of"], short) if "best_of" in summary else [])


def legend(summary: dict) -> str:
    """What the tables say, in words."""
    words = [
        f"In brackets: {summary['confidence']:.0%} intervals over prompts.",
        f"perplexity: under {summary['perplexity_model']}.",
    ]
    if summary["comparisons"]:
        words += [
            f"kl: to {summary['reference']}, nats a completion.",
            f"p: two-sided paired permutation tests (of judges: sign tests); Holm corrects for the {summary['tests']} "
            "tests of this evaluation.",
            "wins: share of prompts on which it has the better score, a tie half.",
        ]
    if any(c.get("order") for c in summary["comparisons"]):
        words.append(
            "first wins: share of a judge's verdicts for the answer shown first; 50%: the order does not count."
        )
    words += [in_words(policy, summary["reference"], it) for policy, it in summary.get("sharpened", {}).items()]
    if best := summary.get("best_of"):
        formula = " + ".join(f"{number(weight, 2)} {name}" for name, weight in best["weights"].items())
        words.append(
            f"score: {formula}, which chooses the best of n. kl at most: log n - (n-1)/n nats a completion, a bound."
        )
    return " ".join(words)


def markdown(summary: dict) -> str:
    """All tables and the legend."""
    parts = []
    for title, (head, *rows) in blocks(summary):
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (head, *rows)]
        lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
        parts.append(f"**{_cell(title)}**\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, _cell(legend(summary))]) + "\n"


def show(summary: dict, console: Console | None = None) -> None:
    """All tables on the terminal; what is wider than 80 columns goes on below."""
    console = console or Console(soft_wrap=False)
    for title, cells in blocks(summary, short=True):
        for part in fit(cells, WIDTH):
            style = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0), "pad_edge": False}
            table = Table(title=Text(title), title_justify="left", **style)
            head, *rows = part
            for place, column in enumerate(head):
                table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
            console.print()
    console.print(legend(summary), markup=False, highlight=False)


def fit(cells: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """The table cut into tables of whole columns that are at most `width` wide, the first column on each."""
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    groups: list[list[int]] = [[]]
    for place in range(1, len(widths)):
        wide = widths[0] + sum(widths[i] + GAP for i in (*groups[-1], place))
        if groups[-1] and wide > width:
            groups.append([])
        groups[-1].append(place)
    return [[[row[i] for i in (0, *group)] for row in cells] for group in groups]


def samples(worth: float | None, most: int) -> str:
    """How many samples something is worth, of at most `most`."""
    return f">{most}" if worth is None else "<1" if worth < 1 else number(worth, 1)


def _best_of(best: dict, short: bool) -> list[Block]:
    """The curve of best-of-n, and what the candidates are worth on it."""

    def flat(row: dict) -> dict:
        return {"score": row["score"], **row["rewards"], **row["referee"]}

    curve = best["curve"]
    rows = [[f"{p['n']}", number(p["kl"], 2), *(_figure(x, short) for x in flat(p).values())] for p in curve]
    blocks = [
        (f"best of n of {best['candidate']}", [["n", "kl at most", *flat(curve[0])], *rows]),
    ]
    if best["worth"]:
        names = list(next(iter(best["worth"].values()))["referee"])
        of = [
            [who, *(samples(x["samples"], best["samples"]) for x in (found["score"], *found["referee"].values()))]
            for who, found in best["worth"].items()
        ]
        blocks.append((f"worth so many samples of {best['candidate']}", [["by", "score", *names], *of]))
    return blocks


def number(value: float | None, decimals: int = 3) -> str:
    """With so many decimals, fewer for large numbers."""
    if value is None:
        return "–"
    size = abs(value)
    text = f"{value:.{decimals if size < 10 else decimals - 1 if size < 100 else 1}f}"
    return text if float(text) else text.removeprefix("-")


def _figure(figure: dict | None, short: bool) -> str:
    if figure is None:
        return "–"
    return number(figure["value"]) + _interval(figure, 2 if short else 3)


def _difference(comparison: dict) -> str:
    value = comparison["difference"]
    if value is None:
        return ""
    text = number(value)
    return ("+" if value > 0 and float(text) else "") + text + _interval(comparison)


def _interval(found: dict, decimals: int = 3) -> str:
    if found["low"] is None:
        return ""
    return f" [{number(found['low'], decimals)}, {number(found['high'], decimals)}]"


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _wins(wins: dict | None) -> str:
    return "" if wins is None else f"{wins['rate']:.0%} [{wins['low']:.0%}, {wins['high']:.0%}]"


def _order(order: dict) -> list[str]:
    if order["first"] is None:
        return ["", "", str(order["missing"])]
    ends = "" if order["low"] is None else f" [{order['low']:.0%}, {order['high']:.0%}]"
    return [f"{order['first']:.0%}{ends}", f"{order['agree']:.0%}", str(order["missing"])]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
