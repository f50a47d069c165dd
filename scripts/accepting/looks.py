"""The steps that look at the host and start nothing: what the doctor says, and its release."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from agent.config import Config, Tee
from agent.errors import AgentError, describe
from agent.releases.measurement import SnpMeasurements
from agent.releases.store import open_releases
from agent.releases.tdx_measurement import TdxMeasurements
from scripts.accepting.command import Command
from scripts.accepting.report import Result, Step

_RESULTS = {"ok": Result.PASSED, "warn": Result.WARNED, "error": Result.FAILED}


def doctor(run: Command) -> list[Step]:
    """Every line of `enclave-agent doctor`."""
    began = time.monotonic()
    done = run("doctor", "-o", "json")
    try:
        lines = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip()[-400:]
        return [Step("doctor", Result.FAILED, said or "says nothing", "see its words")]
    took = time.monotonic() - began
    steps = [
        Step(f"doctor: {one['what']}", _RESULTS[one["state"]], one["detail"], one["mend"])
        for one in lines
    ]
    return [*steps, Step("doctor", Result.PASSED, f"{len(lines)} lines", took_s=took)]


def tee(config: Config) -> Step:
    """That the configuration asks for a real one."""
    if config.tee in (Tee.SEV_SNP, Tee.TDX):
        return Step("tee configured", Result.PASSED, str(config.tee))
    found = f"tee: {config.tee}"
    return Step("tee configured", Result.FAILED, found, "set tee: sev-snp or tee: tdx")


def release(config: Config, repo: str, tag: str) -> Step:
    """That a release resolves, is here, and will be measured as it promises."""
    return _timed(f"release {repo} {tag}", lambda: asyncio.run(_release(config, repo, tag)))


async def _release(config: Config, repo: str, tag: str) -> str:
    releases = open_releases(
        config.releases, state_dir=config.state_dir, firmware_dir=config.qemu.firmware_dir
    )
    try:
        found = await releases.resolve(repo, tag)
        image = releases.local(found) or await releases.fetch(found)
        vcpus = found.demand.vcpus
        if config.tee is Tee.TDX:
            platforms = config.attestation.tdx.platforms
            await TdxMeasurements(platforms).check_image(found, image, vcpus)
            return "predicted RTMR1 and RTMR2 are the manifest's; a platform is endorsed for it"
        await SnpMeasurements().check_image(found, image, vcpus)
        return f"predicted launch digest is the manifest's: {found.snp_measurement}"
    finally:
        await releases.close()


def config_file(path: Path, read: Callable[[], Config]) -> tuple[Step, Config | None]:
    """That it is right, and what it says."""
    try:
        config = read()
    except AgentError as error:
        return Step("configuration", Result.FAILED, describe(error), "mend the file"), None
    return Step("configuration", Result.PASSED, str(path)), config


def _timed(what: str, work: Callable[[], str]) -> Step:
    began = time.monotonic()
    try:
        found = work()
    except AgentError as error:
        took = time.monotonic() - began
        return Step(what, Result.FAILED, describe(error), f"code {error.code}", took)
    return Step(what, Result.PASSED, found, took_s=time.monotonic() - began)
