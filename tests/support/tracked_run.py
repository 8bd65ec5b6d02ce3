"""A short run with a tracker, as a program of its own: trackers read the environment while they are imported, and may
write down the command line. `python tracked_run.py <base> <folder> <tracker> --hub_token <secret>`"""

import os
import subprocess
import sys
from pathlib import Path

from short_runs import prompts_file, run_ppo
from warm import PATH, ROOT

REWARDS = [{"name": "keyword", "column": "facts"}]
SECRET = "hf_" + "Sesame" * 4


def run_tracked(tracker: str, base: Path, folder: Path, env: dict[str, str]) -> Path:
    """Runs two updates of PPO with an exam after each; the run folder. `folder` is where it is started."""
    argv = [sys.executable, __file__, str(base), str(folder), tracker, "--hub_token", SECRET]
    wall = os.pathsep.join([str(ROOT / "tests/support/netguard"), PATH])
    guard = {"PYTHONPATH": wall, "NETGUARD_LOG": str(folder / "network.log")}
    done = subprocess.run(argv, cwd=folder, env=env | guard, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "network.log").exists(), (folder / "network.log").read_text()
    return folder / "ppo"


if __name__ == "__main__":
    _, base_, folder_, tracker_, _, secret_ = sys.argv
    data = prompts_file(Path(folder_))
    settings = {"total_episodes": 8, "report_to": tracker_, "hub_token": secret_, "save_strategy": "no"}
    run_ppo(Path(folder_, "ppo"), Path(base_), data, REWARDS, eval_every=1, **settings)
