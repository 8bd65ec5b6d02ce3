"""`make test-trackers`: the tests of trackers against trackio, Weights & Biases and MLflow themselves.

They want older versions of some libraries than constraints.txt pins, so they live in an environment of their own,
.venv-trackers, which has what they want and finds all else in the packages of this Python. Arguments go to pytest. The
exit status is pytest's, or 2 where they do not install.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-trackers"
PYTHON = VENV / "bin" / "python"
PACKAGES = ("mlflow", "trackio", "wandb")
TESTS = ("tests/watching/test_boards.py", "tests/watching/test_trackers.py")


def install() -> bool:
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    asked = [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    # Behind its own, so that pip leaves alone what fits and sets a version of its own before what does not.
    (own / "plumbline.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*pip, *PACKAGES]).returncode == 0


def main(arguments: list[str]) -> int:
    print(f"Installing {', '.join(PACKAGES)} into {VENV.name} (a few minutes the first time)", flush=True)
    if not install():
        print("test-trackers: FAILED, the trackers do not install; pip's reason stands above")
        return 2
    return subprocess.run(
        [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *TESTS, *arguments], cwd=ROOT
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
