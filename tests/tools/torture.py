"""Kills each stage at random moments, goes on with `--resume`, and compares the bits at the end. `make torture`

    python tests/tools/torture.py                                      20 kills a case
    python tests/tools/torture.py --kills 3 --cases ppo ilql --processes 1
    python tests/tools/torture.py --launch                             by the commands that a person types (slower)

Cases: SFT, reward model, PPO, REINFORCE and ILQL on one process and on two; PPO on two that share the base out (FSDP
2); PPO with rollouts by a real vLLM server, which lives on, where its environment can be had.
SIGKILL comes at a moment drawn from the measured length of the run, or, for every third kill, while a checkpoint is
being written (the folder is watched from outside). Of two processes both are killed, or one, and the other then as
torchrun does. A run that reaches its end is compared with one that nobody disturbed: weights byte by byte, and the
rows of metrics.jsonl, heldout.jsonl and samples.jsonl but for the clocks. A stage is a fork of this process, which
has the libraries imported, so that most of a cycle is training.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in (".", "tests", "tests/support", "tests/tools")]
ENVIRONMENT = {
    **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
    **{"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)},
}
CLOCKS = ("time/", "seconds", "per_second", "runtime", "preparation_time")
AIMED = 3  # every so many kills comes while a checkpoint is being written
PATIENCE = 300  # seconds: a run that takes longer hangs


class Case(NamedTuple):
    """A stage's script, a recipe of recipes/tiny with `changes` over it, and how it is started.

    Small enough that a run takes seconds, and with everything that has a state of its own.
    """

    script: str
    recipe: str
    changes: dict
    processes: tuple[int, ...] = (1, 2)
    environment: dict[str, str] = {}


COMMON = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 3, "use_cpu": True, "warmup_steps": 2}
SAMPLES = {
    **{"dataset": "prompts.jsonl", "eval_dataset": None, "eval_fraction": 0.25, "eval_samples": 4, "referee": None},
    **{"per_device_train_batch_size": 2, "max_completion_length": 8},
    "rewards": [
        {"name": "keyword", "column": "facts", "instant": True},
        {"name": "learned", "path": "reward/run", "weight": 0.5, "normalize": "running"},
    ],
}
ROLLOUTS = SAMPLES | {"eval_every": 2, "total_episodes": 32, "gradient_accumulation_steps": 2, "num_mini_batches": 2}
PPO = {
    **ROLLOUTS | {"num_iterations": 2, "replay": 1, "critic_learning_rate": 3e-3, "kl_target": 0.05, "kl_horizon": 40},
    **{"num_generations": 1, "baseline": "none"},  # replay has none
}
CASES = {
    "sft": Case(
        "sft", "sft", {"dataset": "sft.jsonl", "max_length": 64, "per_device_train_batch_size": 2, "lora_dropout": 0.1}
    ),
    "reward": Case(
        *("reward", "reward"),
        {"dataset": "pairs.jsonl", "eval_dataset": None, "max_length": 64, "per_device_train_batch_size": 2},
    ),
    "ppo": Case("ppo", "ppo", PPO),
    "reinforce": Case("ppo", "reinforce", ROLLOUTS | {"num_mini_batches": 1}),
    "ilql": Case("ilql", "ilql", SAMPLES | {"dataset": "said.jsonl", "num_train_epochs": 1}),
    "fsdp2": Case("ppo", "ppo", PPO, (2,), {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
    # what a server computes depends in its last bits on what it computes at the same time
    "vllm": Case("ppo", "ppo", PPO | {"replay": 0, "vllm_at_once": 1}, (1,)),
}
FIRST = ("sft", "reward")  # the others stand on what these leave


# ------------------------------------------------------------ the runs
def prepare(folder: Path) -> None:
    """A random Llama, data, and the recipe of each case, in `folder`."""
    from conftest import build_model, build_tokenizer

    folder.mkdir(parents=True)
    build_model(hidden_size=64, num_attention_heads=2, num_key_value_heads=1).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    words = [f"w{i}" for i in range(24)]
    rows = {
        "sft": [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in words],
        "said": [{"prompt": f"say {w} =>\n", "completion": f"It is {w}.", "facts": [w[1:]]} for w in words],
        "pairs": [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in words],
        "prompts": [{"prompt": f"say {w} =>\n", "facts": [w[1:]]} for w in words],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    for name, case in CASES.items():
        tiny = yaml.safe_load((ROOT / "recipes/tiny" / f"{case.recipe}.yaml").read_text())
        settings = tiny | COMMON | case.changes | {"model_name_or_path": "base", "output_dir": f"{name}/run"}
        paths = {"adapter_path": "sft/run", "critic_path": "reward/run", "values_path": "reward/run"}
        settings |= {key: path for key, path in paths.items() if key in settings}
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))


class Run:
    """One start of a case, on one or more processes.

    Args: launch: by the documented command, in place of forks of this process.
    """

    def __init__(self, folder: Path, name: str, processes: int, *flags: str, launch: bool = False):
        self.folder, self.log, self.started = folder, folder / f"{name}.log", time.monotonic()
        self.environment = CASES[name].environment
        argv = [str(ROOT / "recipes" / f"{CASES[name].script}.py"), "--config", f"{name}.yaml", *flags]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        if launch:
            self.pids = [self._fork(self._launch(argv, processes), None)]
        elif processes == 1:
            self.pids = [self._fork(argv, {})]
        else:
            ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} | address for i in range(processes)]
            self.pids = [self._fork(argv, rank) for rank in ranks]
        self.codes: dict[int, int] = {}

    def _launch(self, argv: list[str], processes: int) -> list[str]:
        if processes == 1:
            return [sys.executable, *argv]
        config = ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml"), "--num_processes", str(processes)]
        return [sys.executable, "-m", "accelerate.commands.launch", *config, "--main_process_port", "0", *argv]

    def _fork(self, argv: list[str], env: dict | None) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            os.chdir(self.folder)
            os.environ.update(ENVIRONMENT | self.environment | (env or {}))
            if env is None:
                os.execv(argv[0], argv)
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def alive(self) -> list[int]:
        for pid in [pid for pid in self.pids if pid not in self.codes]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return [pid for pid in self.pids if pid not in self.codes]

    def send(self, signum: int, pids: list[int] | None = None) -> None:
        for pid in self.alive() if pids is None else pids:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                below = psutil.Process(pid).children(recursive=True)  # a launcher's have groups of their own
                os.kill(pid, signum)
                for child in below:
                    with suppress(psutil.NoSuchProcess):
                        child.send_signal(signum)

    def wait(self) -> list[int]:
        """The exit codes. When one process fails, the others are killed, as torchrun does."""
        while alive := self.alive():
            if self.seconds() > PATIENCE or (self.codes and any(self.codes.values())):
                self.send(signal.SIGKILL, alive)
            time.sleep(0.005)
        return [self.codes[pid] for pid in self.pids]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# ------------------------------------------------------------ what came out
def rows_of(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, without what a clock has measured."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [{k: repr(v) for k, v in row.items() if not any(clock in k for clock in CLOCKS)} for row in rows]


def differences(run: Path, wanted: Path) -> dict[str, int]:
    """Bytes of the weights, and rows of the records, in which two runs differ."""
    folders = (wanted, wanted / "critic", wanted / "values")
    weights = sorted(p.relative_to(wanted) for folder in folders for p in folder.glob("*.safetensors"))
    found = {"weights": 0, "rows": 0}
    for name in weights:
        ours, theirs = ((side / name).read_bytes() if (side / name).is_file() else b"" for side in (run, wanted))
        found["weights"] += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    for name in ("metrics.jsonl", "heldout.jsonl", "samples.jsonl", "pairs.jsonl"):
        ours, theirs = rows_of(run / name), rows_of(wanted / name)
        found["rows"] += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return found


def torture(
    folder: Path, name: str, processes: int, kills: int, dice: random.Random, launch: bool = False, flags=()
) -> dict:
    """Kills the case `name` so many times; `folder` is prepared, and what the stage builds on lies in it.

    Returns: kills survived, how many of them hit a checkpoint that was being written, runs that reached their end,
    bytes and rows that differ in all.

    Raises:
        RuntimeError: when a run does not go on.
    """
    run, wanted = folder / name / "run", folder / name / f"undisturbed{processes}"
    first = Run(folder, name, processes, *flags, launch=launch)
    if any(first.wait()):
        raise RuntimeError(f"{name} fails without any kill: see {first.log}")
    length = first.seconds()
    shutil.rmtree(wanted, ignore_errors=True)
    run.rename(wanted)
    result = {"case": name, "processes": processes, "kills": 0, "in a save": 0, "runs": 0, "bytes": 0, "rows": 0}
    pending = False  # a run that was killed and has not come to its end
    while result["kills"] < kills or pending:
        attempt = Run(folder, name, processes, *flags, "--resume", launch=launch)
        if result["kills"] < kills:
            aimed = result["kills"] % AIMED == AIMED - 1
            if strike(attempt, run, aimed, dice.uniform(0, length), dice):
                result["kills"], pending = result["kills"] + 1, True
                result["in a save"] += (run / ".partial").exists()
                continue
        if any(attempt.wait()):
            raise RuntimeError(f"{name} does not go on after {result['kills']} kills: see {attempt.log}")
        found = differences(run, wanted)
        result["bytes"], result["rows"] = result["bytes"] + found["weights"], result["rows"] + found["rows"]
        result["runs"], pending = result["runs"] + 1, False
        keep = folder / name / ("differs" if found["weights"] + found["rows"] else "last")
        shutil.rmtree(keep, ignore_errors=True)
        run.rename(keep)
    shutil.copytree(wanted, run)  # for the next stage
    return result


def strike(attempt: Run, run: Path, aimed: bool, moment: float, dice: random.Random) -> bool:
    """Kills the run after `moment` seconds, or a little into the next checkpoint; False: it was over before."""
    while attempt.seconds() < moment and len(attempt.alive()) == len(attempt.pids):
        time.sleep(0.002)
    if aimed:
        while not (run / ".partial").exists() and len(attempt.alive()) == len(attempt.pids):
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.05))
    alive = attempt.alive()
    if len(alive) < len(attempt.pids):
        return False
    attempt.send(signal.SIGKILL, alive if dice.random() < 0.5 else [dice.choice(alive)])
    return any(code == -signal.SIGKILL for code in attempt.wait())


def import_libraries() -> None:
    """So that the forks need not; nothing here may start threads or touch a device."""
    os.environ.update(ENVIRONMENT)
    import pipeline.report
    import pipeline.stages.ilql
    import pipeline.stages.ppo
    import pipeline.stages.reward_model
    import pipeline.stages.sft  # noqa: F401


@contextmanager
def served(name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """The flags by which the case `name` finds its server, while there is one; none for a case without.

    Raises:
        SystemExit: with the reason, where vLLM's environment cannot be made.
    """
    if name != "vllm":
        yield ()
        return
    import vllm_environment
    from vllm_real import serving

    vllm_environment.command()
    with serving(folder / "base", folder / "server.log") as server:
        yield "--vllm_server", server.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="for each case and number of processes")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--launch", action="store_true", help="by the commands that a person types, not by forks")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/torture")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    import_libraries()
    results = []
    for processes in args.processes:
        folder = args.output / f"processes{processes}"
        prepare(folder)
        asked = [name for name in args.cases if processes in CASES[name].processes]
        for name in dict.fromkeys([*FIRST, *asked]):
            kills = args.kills if name in asked else 0
            dice = random.Random(f"{args.seed} {name} {processes}")
            try:
                with served(name, folder) as flags:
                    result = torture(folder, name, processes, kills, dice, args.launch, flags)
            except SystemExit as reason:
                print(f"{name}: not run, {reason}", flush=True)
                continue
            if kills:
                results.append(result)
                print(", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
            (args.output / "summary.json").write_text(
                json.dumps({"seed": args.seed, "runs": results}, indent=2) + "\n"
            )
    kills, off = (sum(result[key] for result in results) for key in ("kills", "bytes"))
    rows = sum(result["rows"] for result in results)
    print(f"{kills} kills survived, {off} bytes of the weights and {rows} rows of the records differ")
    raise SystemExit(bool(off or rows))


if __name__ == "__main__":
    main()
