"""`scripts/acceptance`, dry and against an agent that only seems to be there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.accepting.deeds import Wish, deeds
from scripts.accepting.report import Result, Step, markdown

CHECKOUT = Path(__file__).resolve().parents[2]
WISH = Wish("probe", None, "v1", "v2", "127.0.0.1:8443")
Answer = tuple[int, str]
ACCEPTED = json.dumps({"verdict": {"accepted": True, "checks": [], "simulated": False}})
GOOD: dict[str, Answer] = {
    "attest": (0, ACCEPTED),
    "status": (0, json.dumps({"status": "running"})),
    "gpus": (0, json.dumps({"gpus": [{"bdf": "0000:18:00.0", "state": "free"}]})),
}


def agent(answers: dict[str, Answer], asked: list[str]) -> Callable[..., object]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        asked.append(words[0])
        status, text = answers.get(words[0], (0, "done\n"))
        return subprocess.CompletedProcess(words, status, text, "" if status == 0 else text)

    return run


def proven(answers: dict[str, Answer]) -> tuple[dict[str, Step], list[str]]:
    asked: list[str] = []
    steps = deeds(agent(GOOD | answers, asked), WISH, dry_run=False)  # type: ignore[arg-type]
    return {step.what: step for step in steps}, asked


def run_script(home: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    report = home / "report.md"
    config = home / "agent.yaml"
    if not config.exists():
        config.write_text(
            f"tee: sev-snp\nstate_dir: {home}/state\nrun_dir: {home}/run\n"
            f"qemu: {{firmware_dir: {home}}}\nreleases: {{source: {home}}}\n"
        )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.accepting",
            "--config",
            config,
            "--report",
            report,
            *words,
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, report.read_text() if report.exists() else ""


def test_a_dry_run_looks_at_this_host_and_says_what_it_would_do(short_dir: Path) -> None:
    done, report = run_script(short_dir, "--dry-run", "--next-tag", "v2")
    assert "Traceback" not in done.stderr
    for deed in ("deploy", "attested with a fresh nonce", "update", "rollback", "gpus free again"):
        assert f"| {deed} | planned |" in report
    assert "| tee configured | passed | sev-snp |" in report
    assert "doctor: qemu for sev-snp" in report
    assert done.returncode == (1 if "FAILED" in report else 0)
    assert not (short_dir / "state").exists()  # nothing was started, nothing was written
    assert not (short_dir / "run").exists()


def test_what_is_wrong_in_the_configuration_ends_it(short_dir: Path) -> None:
    (short_dir / "agent.yaml").write_text("tee: sgx\n")
    done, report = run_script(short_dir, "--dry-run")
    assert done.returncode == 1
    assert "| configuration | FAILED |" in report
    assert "tee:" in report


def test_without_a_tag_nothing_is_begun(short_dir: Path) -> None:
    done, report = run_script(short_dir)
    assert (done.returncode, report) == (2, "")
    assert "--tag is needed" in done.stderr


def test_a_host_where_all_goes_well_passes_every_step() -> None:
    steps, asked = proven({})
    assert {step.result for step in steps.values()} == {Result.PASSED}
    assert asked[0] == "deploy"
    assert asked[-3:] == ["stop", "delete", "gpus"]


def test_after_a_failure_only_what_cleans_up_is_done() -> None:
    steps, asked = proven({"attest": (1, "not attested")})
    assert steps["attested with a fresh nonce"].result is Result.FAILED
    assert steps["update"].result is Result.SKIPPED
    assert asked == ["deploy", "attest", "delete", "gpus"]


@pytest.mark.parametrize(
    ("answers", "what", "text"),
    [
        (
            {"attest": (0, ACCEPTED.replace('"simulated": false', '"simulated": true'))},
            "attested with a fresh nonce",
            "NOT CONFIDENTIAL",
        ),
        (
            {"attest": (0, '{"verdict": {"checks": [{"code": "chain", "passed": false}]}}')},
            "attested with a fresh nonce",
            "not accepted: chain",
        ),
        ({"attest": (0, "nonsense")}, "attested with a fresh nonce", "no verdict"),
        ({"status": (0, '{"status": "degraded"}')}, "running", "degraded"),
        ({"deploy": (3, "gpus_insufficient")}, "deploy", "status 3: gpus_insufficient"),
        (
            {"gpus": (0, '{"gpus": [{"bdf": "0000:18:00.0", "state": "quarantined"}]}')},
            "gpus free again",
            "0000:18:00.0 quarantined",
        ),
    ],
)
def test_what_is_not_as_it_must_be_fails_with_what_was_found(
    answers: dict[str, Answer], what: str, text: str
) -> None:
    steps, _ = proven(answers)
    assert steps[what].result is Result.FAILED
    assert text in steps[what].found
    assert steps[what].mend
    report = markdown(list(steps.values()), config="c", tee="sev-snp", dry_run=False)
    assert report.startswith("# Acceptance of ")
    assert "FAILED" in report.splitlines()[0]
