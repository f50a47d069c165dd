"""The steps that use the host: deploy, attest, update, stop, and its GPUs free again."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from scripts.accepting.command import Command
from scripts.accepting.report import Result, Step

_FREE_WITHIN_S = 8 * 90.0  # the budget of a requalification, GPU after GPU
_LOOK_S = 2.0


@dataclass(frozen=True)
class Wish:
    """What is to be deployed."""

    deployment: str
    repo: str | None
    tag: str
    next_tag: str | None
    listen: str


def deeds(run: Command, wish: Wish, *, dry_run: bool) -> Iterator[Step]:
    """One after another; after one that failed only what cleans up is done."""
    failed = False
    for what, words, check in _plan(wish):
        if dry_run:
            yield Step(what, Result.PLANNED, Command.shown(words))
            continue
        if failed and what != "delete":
            yield Step(what, Result.SKIPPED, "a step before it failed")
            continue
        step = _do(run, what, words, check)
        failed = failed or step.result is Result.FAILED
        yield step
    if dry_run:
        yield Step("gpus free again", Result.PLANNED, "enclave-agent gpus -o json")
    else:
        yield _gpus_free(run)


Check = Callable[[str], str | None]
Planned = tuple[str, tuple[str, ...], Check]


def _plan(wish: Wish) -> list[Planned]:
    name = wish.deployment
    repo = ("--repo", wish.repo) if wish.repo else ()
    deploy = ("deploy", name, "--tag", wish.tag, *repo, "--listen", wish.listen, "--wait")
    steps: list[Planned] = [
        ("deploy", deploy, _anything),
        ("attested with a fresh nonce", _attest(name), _accepted),
        ("running", ("status", name, "-o", "json"), _running),
    ]
    if wish.next_tag:
        steps += [
            ("dry run of an update", ("plan", name, "--tag", wish.next_tag), _anything),
            ("update", ("relaunch", name, "--tag", wish.next_tag, "--wait"), _anything),
            ("attested after the update", _attest(name), _accepted),
            ("rollback", ("rollback", name, "--wait"), _anything),
        ]
    return [
        *steps,
        ("stop", ("stop", name, "--wait"), _anything),
        ("delete", ("delete", name, "--wait"), _anything),
    ]


def _attest(name: str) -> tuple[str, ...]:
    """With a nonce that nobody can have had before."""
    return ("attest", name, "--nonce", secrets.token_hex(32), "-o", "json")


def _do(run: Command, what: str, words: tuple[str, ...], check: Check) -> Step:
    began = time.monotonic()
    done = run(*words)
    took = time.monotonic() - began
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-600:]
        return Step(what, Result.FAILED, f"status {done.returncode}: {said}", _MEND, took)
    if (wrong := check(done.stdout)) is not None:
        return Step(what, Result.FAILED, wrong, _MEND, took)
    last = (done.stdout.strip().splitlines() or ["done"])[-1]
    return Step(
        what, Result.PASSED, last[:200] if check is _anything else "as it must be", "", took
    )


_MEND = "see `enclave-agent status`, `logs` and docs/hardware.md"


def _anything(_: str) -> str | None:
    return None


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _accepted(text: str) -> str | None:
    told = _read(text)
    verdict = told.get("verdict", {}) if isinstance(told, dict) else {}
    if verdict.get("simulated"):
        return "SIMULATED — NOT CONFIDENTIAL: this proves nothing of the host"
    if verdict.get("accepted") is True:
        return None
    wrong = [one.get("code", "?") for one in verdict.get("checks", ()) if not one.get("passed")]
    return f"the evidence is not accepted: {', '.join(wrong) or 'no verdict'}"


def _running(text: str) -> str | None:
    told = _read(text)
    status = told.get("status") if isinstance(told, dict) else None
    return None if status == "running" else f"its status is {status}"


def _gpus_free(run: Command) -> Step:
    """Reset and requalified, or why not."""
    began = time.monotonic()
    while True:
        done = run("gpus", "-o", "json")
        told = _read(done.stdout)
        gpus = told.get("gpus", ()) if isinstance(told, dict) else told or ()
        lost = _in(gpus, "quarantined", "unhealthy", "absent")
        kept = _in(gpus, "preparing", "dirty")
        took = time.monotonic() - began
        if done.returncode != 0:
            return Step("gpus free again", Result.FAILED, done.stderr.strip()[-300:], _MEND, took)
        if lost or (kept and took > _FREE_WITHIN_S):
            return Step("gpus free again", Result.FAILED, "; ".join(lost + kept), _MEND, took)
        if not kept:
            free = len(_in(gpus, "free"))
            return Step("gpus free again", Result.PASSED, f"{free} free", took_s=took)
        time.sleep(_LOOK_S)


def _in(gpus: Any, *states: str) -> list[str]:
    return [f"{one['bdf']} {one['state']}" for one in gpus if one["state"] in states]
