"""Proves a host for confidential enclaves; see docs/hardware.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from agent.config_file import load_config
from scripts.accepting import looks
from scripts.accepting.command import Command
from scripts.accepting.deeds import Wish, deeds
from scripts.accepting.report import Step, failed, line, markdown


def main() -> int:
    """0 all passed, 1 something failed; argparse exits with 2 for wrong usage."""
    args = _parse()
    steps: list[Step] = []

    def tell(step: Step) -> None:
        steps.append(step)
        print(line(step), flush=True)

    first, config = looks.config_file(args.config, lambda: load_config(args.config, os.environ))
    tell(first)
    if config is not None:
        run = Command(args.config, args.socket)
        tell(looks.tee(config))
        for step in looks.doctor(run):
            tell(step)
        if args.tag:
            tell(looks.release(config, args.repo or args.deployment, args.tag))
        wish = Wish(args.deployment, args.repo, args.tag or "TAG", args.next_tag, args.listen)
        if args.dry_run or not failed(steps):
            for step in deeds(run, wish, dry_run=args.dry_run):
                tell(step)
        else:
            print("nothing is deployed: mend what failed first", flush=True)
    text = markdown(
        steps,
        config=str(args.config),
        tee=str(config.tee) if config else "unknown",
        dry_run=args.dry_run,
    )
    args.report.write_text(text)
    print(f"report: {args.report}", flush=True)
    return 1 if failed(steps) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="acceptance", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the daemon's configuration")
    parser.add_argument("--socket", type=Path, help="the daemon's socket, if it is elsewhere")
    parser.add_argument("--deployment", default="acceptance", help="its name (%(default)s)")
    parser.add_argument("--repo", help="the release's, if it is not named as the deployment")
    parser.add_argument("--tag", help="what to deploy; needed unless --dry-run")
    parser.add_argument("--next-tag", help="what to update it to")
    parser.add_argument("--listen", default="127.0.0.1:8443", help="ADDR:PORT (%(default)s)")
    parser.add_argument("--report", type=Path, default=Path("acceptance.md"), help="(%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="look, and say what would be done")
    args = parser.parse_args()
    if not args.dry_run and not args.tag:
        parser.error("--tag is needed, or --dry-run")
    return args


if __name__ == "__main__":
    sys.exit(main())
