"""The tables of docs/scale.md, by the formulas of scale.py: `python -m pipeline.scale 7B 70B --processes 8`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import AutoConfig

from pipeline import cli
from pipeline.errors import UserError
from pipeline.memory import scale
from pipeline.memory.estimate import Architecture, Precision
from pipeline.memory.scale import PRECISIONS, SIZES, Plan, of_stage
from pipeline.safety.commands import Parser

GIB = 2**30
CARDS = (2, 8, 64)  # of the table of ways


def tables(models: dict[str, Architecture], plan: Plan) -> Iterator[str]:
    """Markdown, a line each."""
    yield from _memory_by_role(models, plan)
    yield ""
    yield from _memory_by_launcher(models, plan)
    yield ""
    yield from _time(models, plan)
    yield ""
    yield from _network(models, plan)
    yield ""
    yield from _ways(models, plan)


def _memory_by_role(models, plan) -> Iterator[str]:
    yield f"Memory of one process that runs PPO, GiB ({_run(plan)}):"
    yield ""
    heads = ("base", "policy", "reference", "critic", "reward model", "gradients, optimizer", "training", "sampling")
    yield from _head("model", *heads, "in all")
    for name, precision, model in _each(models):
        found = of_stage("ppo", model, precision, plan)
        each, head = 4 * plan.adapter.parameters(model), 4 * (model.hidden + 1)
        roles = (found.stays["base"], each, each, each + head, each, found.stays["gradients and optimizer"])
        yield _row(
            name, *(_gib(x) for x in (*roles, found.passes["training"], found.passes["generation"], found.total))
        )


def _memory_by_launcher(models, plan) -> Iterator[str]:
    yield f"Memory of one process of {plan.processes}, by stage and launcher, GiB:"
    yield ""
    columns = [(stage, launcher) for stage in ("sft", "reward") for launcher in ("DDP", "ZeRO-2", "FSDP, ZeRO-3")]
    columns += [("ppo", "DDP"), ("ppo", "ZeRO-2"), ("ppo", "FSDP")]
    yield from _head("model", *(f"{stage}, {launcher}" for stage, launcher in columns))
    for name, precision, model in _each(models):
        cells = []
        for stage, launcher in columns:
            found = of_stage(stage, model, precision, plan)
            if (stage, launcher) == ("ppo", "FSDP"):
                size: float | None = scale.shared(found, model, precision, plan.processes)
            else:
                size = scale.under(launcher, found, model, precision, plan)
            cells.append("-" if size is None else _gib(size))
        yield _row(name, *cells)


def _time(models, plan) -> Iterator[str]:
    yield (
        f"Seconds of one PPO update by role, if a process makes {plan.flops:.3g} FLOP/s and reads "
        f"{plan.bandwidth:.3g} bytes/s ({_run(plan)}):"
    )
    yield ""
    first = True
    for name, precision, model in _each(models):
        found = scale.seconds(model, precision, plan)
        if first:
            yield from _head("model", *found, "in all", "PFLOP")
            first = False
        total = sum(found.values())
        work = (total - found["sampling"]) * plan.flops / 1e15
        yield _row(name, *(_digits(x) for x in (*found.values(), total)), _digits(work))


def _network(models, plan) -> Iterator[str]:
    yield (
        f"Bytes that each of {plan.processes} processes sends in a PPO update ({plan.epochs} optimizer steps; SFT: "
        f"one step), and seconds at {plan.network:.3g} bytes/s:"
    )
    yield ""
    heads = (
        "PPO, DDP or ZeRO-2",
        "seconds",
        "PPO, FSDP",
        "seconds",
        "PPO, FSDP, sampled by vLLM",
        "seconds",
        "adapter to vLLM",
        "seconds",
        "SFT, DDP",
        "SFT, FSDP or ZeRO-3",
        "seconds",
    )
    yield from _head("model", *heads)
    for name, precision, model in _each(models):
        each = plan.adapter.parameters(model)
        update = plan.epochs * scale.ddp(2 * each + model.hidden + 1, plan.processes)
        weights, step = scale.vllm(model, plan.adapter), scale.ddp(each, plan.processes)
        fsdp = [update + scale.gathered(model, precision, plan, by_vllm) for by_vllm in (False, True)]
        cells = [x for size in (update, *fsdp, weights) for x in (_bytes(size), _digits(size / plan.network))]
        cells.append(_bytes(step))
        if precision.bits:
            cells += ["-", "-"]
        else:
            step = scale.sharded(model, precision, plan.adapter, plan.processes)
            cells += [_bytes(step), _digits(step / plan.network)]
        yield _row(name, *cells)


def _ways(models, plan) -> Iterator[str]:
    yield (
        f"PPO on {', '.join(map(str, CARDS))} cards: GiB of a process, and seconds of an update with what is sent, "
        f"none of it at the same time ({_run(plan)} on each):"
    )
    yield ""
    heads = ("DDP, bf16", "seconds", "DDP, nf4", "seconds", "FSDP, bf16", "seconds", "sampled by vLLM, seconds")
    yield from _head("cards", "model", *heads)
    for cards in CARDS:
        plan = replace(plan, processes=cards)
        for name, model in models.items():
            cells = []
            for precision in PRECISIONS.values():
                size = scale.of_stage("ppo", model, precision, plan).total
                cells += [_gib(size), _digits(sum(scale.update(model, precision, plan, "DDP").values()))]
            bf16 = PRECISIONS["bf16"]
            found = scale.shared(of_stage("ppo", model, bf16, plan), model, bf16, cards)
            there, by_vllm = (
                sum(scale.update(model, bf16, plan, launcher).values()) for launcher in ("FSDP", "FSDP, vLLM")
            )
            yield _row(str(cards), name, *cells, _gib(found), _digits(there), _digits(by_vllm))


def _each(models) -> Iterator[tuple[str, Precision, Architecture]]:
    for name, model in models.items():
        for kind, precision in PRECISIONS.items():
            yield f"{name} {kind}", precision, model


def _run(plan: Plan) -> str:
    return (
        f"{plan.rows} x {plan.prompt + plan.completion} tokens a micro-batch, {plan.episodes} completions, LoRA rank "
        f"{plan.rank}, gradient checkpointing"
    )


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" + "---:|" * (len(cells) - 1)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _gib(size: float) -> str:
    return _digits(size / GIB)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{_digits(size)} {unit}"
        size /= 1024
    raise AssertionError


def _digits(x: float) -> str:
    """Three digits, but no more places than help: 0.0412, 4.12, 41.2, 412, 4,120."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


# ------------------------------------------------------------ command
def architecture(name: str) -> Architecture:
    """Of a size of `SIZES`, or of the config of a folder or Hub name."""
    if name in SIZES:
        return Architecture.of(SIZES[name])
    try:
        return Architecture.of(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{name} is none of {', '.join(SIZES)}, and no model's config can be read from it "
            f"({str(error).splitlines()[0][:200]})"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m pipeline.scale", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="0.5B, 7B, 70B, a folder or a Hub name (default: those three)")
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value:g}")
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    args = vars(parser.parse_args(argv))
    names = args.pop("models") or list(SIZES)
    args.pop("debug")
    for name, value in args.items():
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; give a number above 0")
    for line in tables({name: architecture(name) for name in names}, Plan(**args)):
        print(line)


if __name__ == "__main__":
    cli.launch(main)
