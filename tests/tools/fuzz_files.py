"""Good files of every kind that the fuzzer breaks: data, run folders, verdicts, chat templates."""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml
from conftest import build_tokenizer

Files = dict[str, bytes]


WORDS = ("fox", "owl", "newt", "hare", "wren", "mole")


def files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def rows_of(rng: random.Random, kind: str) -> list[dict]:
    def text(role: str, words: str):
        return [{"role": role, "content": words}] if messages else words

    messages = rng.random() < 0.3
    rows = []
    for word in WORDS:
        row = {"prompt": text("user", f"say {word} =>\n")}
        if kind == "sft":
            row["completion"] = text("assistant", f"It is {word}.")
        elif kind == "preference":
            row |= {"chosen": text("assistant", f"It is {word}."), "rejected": text("assistant", "No, “é” \t!")}
        else:
            row |= {"facts": [word, "x"], "number": 3, "ratio": 0.5, "yes": True, "none": None}
        rows.append(row)
    return rows


def kind_of(rng: random.Random) -> str:
    return rng.choice(("sft", "preference", "prompts"))


def answers(rng: random.Random) -> Files:
    """Rows with answers and completions, and a JSON Schema."""
    said = [
        "<think>2 + 2</think><answer>4</answer>",
        "So $x = \\boxed{\\frac{1}{2}}$.",
        "9 * 8 = 72\n#### 72",
        '{"name": "fox", "legs": 4}',
        "The answer is (B).",
    ]
    right = ["4", "\\frac{2}{4}", "#### 72", "fox", "1,000"]
    right = rng.choice(
        (right, [[text, "owl"] for text in right], [{"text": [text]} for text in right], [4, 0, 72, 1, 9])
    )
    letters = rng.choice((("A", "(B)", "c."), (0, 1, 3)))
    times = {"keyword": "answer", "frequency": rng.randint(1, 3), "relation": "at least"}
    rows = [
        {"prompt": "say it =>\n", "said": text, "answer": answer, "letter": rng.choice(letters)}
        | {"instruction_id_list": ["punctuation:no_comma", "keywords:frequency"], "kwargs": [{}, times]}
        for text, answer in zip(said, right, strict=True)
    ]
    rng.shuffle(rows)
    schema = {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/name"}, "legs": {"type": "integer", "minimum": 0}},
        "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
        "required": ["name"],
    }
    return {"prompts.jsonl": lines(rows), "schema.json": json.dumps(schema).encode()}


def jsonl(rng: random.Random) -> Files:
    kind = kind_of(rng)
    content = lines(rows_of(rng, kind))
    return rng.choice(({f"{kind}.jsonl": content}, {f"{kind}.jsonl.gz": gzip.compress(content, mtime=0)}))


def plain_json(rng: random.Random) -> Files:
    kind = kind_of(rng)
    rows = rows_of(rng, kind)
    return {f"{kind}.json": json.dumps(rng.choice((rows, {"data": rows}))).encode()}


def csv_rows(rng: random.Random) -> Files:
    import csv

    stream, suffix = io.StringIO(), rng.choice(("csv", "tsv", "csv.gz"))
    writer = csv.writer(stream, delimiter="\t" if suffix == "tsv" else ",")
    writer.writerow(("prompt", "completion"))
    writer.writerows((f"say {word}, =>\n", f'It is "{word}".') for word in WORDS)
    content = stream.getvalue().encode()
    return {f"sft.{suffix}": gzip.compress(content, mtime=0) if suffix.endswith("gz") else content}


def parquet(rng: random.Random) -> Files:
    kind, stream = kind_of(rng), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(rng, kind)), stream)
    return {f"{kind}.parquet": stream.getvalue()}


def run_folder() -> Files:
    """What PPO leaves, small."""
    text = "say fox =>\n"
    means = {"keyword": 0.5, "gold": 0.25, "length": 4.0}
    summary = {"algorithm": "ppo", "before": means, "after": means, "kl": 1.5, "heldout": 2, "seed": 0, "seconds": 9.0}
    summary |= {"greedy": {"before": means, "after": means}, "episodes": 8, "tokens": 30, "base": "base"}
    exams = [
        {
            "step": i,
            "episodes": 4 * i,
            "kl": 0.5 * i,
            "score": 0.1 * i,
            "rewards": {"keyword": 0.1},
            "referee": {"gold": 0.3},
        }
        for i in range(3)
    ]
    samples = [
        {"prompt": text, "before": "a b", "after": f"c {i}", "length_before": 2, "length_after": 3}
        | {"scores_before": {"keyword": 0.1 * i}, "scores_after": {"keyword": 0.3}}
        for i in range(3)
    ]
    turn = {"said": "so", "calls": ["buy(item=rope, count=2)"], "answers": ["sold 2"], "paid": 0.5}
    samples[0] |= {"prompt": [{"role": "user", "content": text}], "turns_before": [turn], "turns_after": [turn, turn]}
    numbers = [0.5, -0.25]
    names = ("rewards", "scores", "values", "advantages", "kl", "probs_before", "probs_after")
    tokens = {"prompt": text, "why": "best", "row": 0, "score": 1.0, "score_before": 0.5, "tokens": ["a", ""]}
    tokens |= {"silent": {"1": "<eos>"}, **dict.fromkeys(names, numbers)}
    shift = {
        "token": " a",
        "id": 3,
        "before": 1.0,
        "after": 2.0,
        "change": 1.0,
        "sampled_before": 1,
        "sampled_after": 2,
    }
    shift |= {"example": {"prompt": text, "context": "", "before": 0.1, "after": 0.2}}
    pair = {"prompt": text, "chosen": "a", "rejected": "b", "score_chosen": 1.0, "score_rejected": 0.5}
    config = {"model_name_or_path": "base", "rewards": [{"name": "keyword", "column": "facts"}], "seed": 0}
    config |= {"dataset": "a.jsonl", "output_dir": "runs/x/ppo", "learning_rate": 0.1, "versions": {"torch": "2.13"}}
    metrics = [{"step": i, "epoch": 0.1 * i, "score": 0.1 * i, "kl": 0.2, "time/update": 1.0} for i in range(3)]
    return {
        "x/ppo/summary.json": json.dumps(summary).encode(),
        "x/ppo/heldout.jsonl": lines(exams),
        "x/ppo/samples.jsonl": lines(samples),
        "x/ppo/tokens.jsonl": lines([tokens]),
        "x/ppo/shifts.json": json.dumps(
            {"completions": [2, 2], "positions": 9, "gains": [shift], "losses": []}
        ).encode(),
        "x/ppo/metrics.jsonl": lines(metrics),
        "x/ppo/config.yaml": yaml.safe_dump(config).encode(),
        "x/reward/pairs.jsonl": lines([pair, pair | {"score_chosen": 0.1}]),
        "x/reward/metrics.jsonl": lines(metrics[:2]),
        "x/reward/summary.json": json.dumps(
            {"stage": "reward", "accuracy": 0.5, "heldout_pairs": 2, "calibration_error": 0.1}
            | {"calibration_bins": [{"from": 0.5, "to": 0.55, "pairs": 2, "confidence": 0.52, "accuracy": 0.5}]}
        ).encode(),
    }


def run_with(run: Files, adapter: Files) -> Files:
    found = {Path(name).name: content for name, content in run.items() if name.startswith("x/ppo")}
    return {name: found[name] for name in ("summary.json", "config.yaml")} | adapter


def judging_files(rng: random.Random) -> Files:
    samples = [{"prompt": f"say {w}", "before": f"a {w}", "after": f"b {w}"} for w in WORDS]
    made = {"columns": ["before", "after"], "seed": 0, "identical": 0}
    made["pairs"] = [{"prompt": r["prompt"], "first": r["before"], "second": r["after"]} for r in samples]
    verdicts = [
        {"pair": i + 1, "prompt": r["prompt"], "left": "before", "right": "after", "verdict": "left", "seconds": 1.5}
        for i, r in enumerate(samples[:3])
    ]
    files = {"pairs.json": json.dumps(made).encode(), "verdicts/anna.jsonl": lines(verdicts)}
    return files if rng.random() < 0.7 else {"samples.jsonl": lines(samples)}


def eval_files(rng: random.Random) -> Files:
    recipe = "candidates:\n- base: ../base\n- sft: ../sft\nreference: sft\ndataset: prompts.jsonl\nseed: 0\n"
    rows = [{"mr": f"name[{w}], food[Fish]", "ref": f"{w} has fish."} for w in WORDS] if rng.random() < 0.5 else None
    return {"eval.yaml": recipe.encode(), "prompts.jsonl": lines(rows or rows_of(rng, "prompts"))}


def judge_files(rng: random.Random, cache: bytes) -> Files:
    """Settings of a judge, what its server answers, and the file with what was answered."""
    settings = {"name": "judge", "url": "http://localhost:8000/v1", "model": "m", "scale": [1, 5], "votes": 2}
    settings |= {"rubric": [{"name": "right", "description": "no mistakes", "weight": 2}], "body": {"top_p": 0.9}}
    settings |= {"timeout": 10, "max_requests": 100, "temperature": 0.5, "against": "sft", "json_schema": "auto"}
    verdict = json.dumps({"reason": "It is “so”.", "right": 3})
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    answer = {
        "id": "1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": verdict}}],
        "usage": usage,
    }
    said = rng.choice((verdict, f"Well:\n```json\n{verdict}\n```", f"<think>{verdict}</think>{verdict} {verdict}"))
    files = {"judge.yaml": yaml.safe_dump(settings).encode(), "answer.json": json.dumps(answer).encode()}
    return files | {"reply.txt": said.encode(), "cache.sqlite": cache}


def chat_template() -> Files:
    return {"template.jinja": build_tokenizer().chat_template.encode()}


COMBINED = """
- {name: keyword, column: facts, weight: 2, instant: true}
- {name: gate, condition: {name: length, max: 4, at_least: 0}, rewards: [{name: keyword, wanted: fox}], otherwise: -1}
- {name: product, rewards: [{name: rougeL, column: answer, clip: [0, 1]}, {name: length, max: 9, at_least: -0.5}]}
- {name: mixture, rewards: [{name: repetition, n: 2}, {name: bleu, column: answer}], normalize: running}
"""


def checked_recipe(rng: random.Random) -> Files:
    """A recipe with combined rewards and its data, for `rewards.check`."""
    recipe = {"dataset": "rows.jsonl", "seed": 3, "max_completion_length": 4, "rewards": yaml.safe_load(COMBINED)}
    rows = [row | {"answer": f"It is {word}."} for row, word in zip(rows_of(rng, "prompts"), WORDS, strict=True)]
    return {"ppo.yaml": yaml.safe_dump(recipe, sort_keys=False).encode(), "rows.jsonl": lines(rows)}
