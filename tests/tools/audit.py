"""`make audit`: the pins of constraints.txt against the list of known vulnerabilities, by pip-audit.

pip-audit lives in an environment of its own, .venv-audit, since nothing else needs it. It asks PyPI's vulnerability
service about each pin by name and version; nothing else leaves the machine. The exit status is 0 when no pin has a
known vulnerability, 1 when one has, 2 when pip-audit does not install, and 3 when the service cannot be asked.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-audit"
PINS = ROOT / "constraints.txt"
FOUND, NOT_INSTALLED, NOT_ASKED = 1, 2, 3


def install() -> bool:
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit>=2.10,<3"]
    return subprocess.run(pip).returncode == 0


def ask(arguments: list[str]) -> subprocess.CompletedProcess:
    """pip-audit about the pins as they stand: nothing is resolved, downloaded or installed for it."""
    command = [VENV / "bin" / "python", "-m", "pip_audit", "--requirement", PINS, "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def tell(answer: str, reason: str) -> int:
    """Prints what pip-audit's JSON `answer` says, or why there is none; the exit status."""
    try:
        rows = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (reason.strip().splitlines() or ["it said nothing"])[-1]
        last = re.sub(r"^\w+:[\w.]+:", "", last)[:200]
        print(f"audit: the vulnerability service could not be asked, so nothing is known of the pins ({last})")
        return NOT_ASKED
    bad = [row for row in rows if row.get("vulns")]
    for row in bad:
        for known in row["vulns"]:
            fixed = ", ".join(known.get("fix_versions") or []) or "no version yet"
            print(f"audit: {row['name']} {row['version']}: {known['id']}, mended in {fixed}")
    skipped = [row["name"] for row in rows if "skip_reason" in row]
    checked = len(rows) - len(skipped)
    if not checked:
        print("audit: the vulnerability service knows none of the pins, so nothing is known of them")
        return NOT_ASKED
    if skipped:
        print(f"audit: unknown to the vulnerability service, so not looked at: {', '.join(skipped)}")
    print(f"audit: {'FAILED' if bad else 'ok'}, {len(bad)} of {checked} pins with a known vulnerability")
    return FOUND if bad else 0


def main(arguments: list[str]) -> int:
    if not install():
        print("audit: pip-audit does not install; pip's reason stands above")
        return NOT_INSTALLED
    done = ask(arguments)
    return tell(done.stdout, done.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
