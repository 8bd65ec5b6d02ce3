"""What `make audit` says of pip-audit's answers, and its exit status. The tool itself asks the network."""

import audit
import pytest


def pin(name: str, *vulnerabilities: dict) -> str:
    import json

    return json.dumps({"name": name, "version": "1.0", "vulns": list(vulnerabilities)})


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (f'{{"dependencies": [{pin("a")}, {pin("b")}]}}', 0, "ok, 0 of 2 pins"),
        (
            f'{{"dependencies": [{pin("a")}, {pin("b", {"id": "PYSEC-1", "fix_versions": ["1.1"]})}]}}',
            1,
            "b 1.0: PYSEC-1, mended in 1.1",
        ),
        (f'{{"dependencies": [{pin("b", {"id": "PYSEC-1", "fix_versions": []})}]}}', 1, "mended in no version yet"),
        (f'{{"dependencies": [{pin("a")}, {{"name": "torch", "skip_reason": "x"}}]}}', 0, "not looked at: torch"),
        ('{"dependencies": [{"name": "torch", "skip_reason": "x"}]}', 3, "knows none of the pins"),
        ("", 3, "could not be asked, so nothing is known of the pins (Connection refused)"),
        ("[]", 3, "could not be asked"),
    ],
)
def test_each_answer_has_its_status(capsys, answer, status, says):
    assert audit.tell(answer, "Traceback\nERROR:pip_audit._cli:Connection refused\n") == status
    assert says in capsys.readouterr().out
