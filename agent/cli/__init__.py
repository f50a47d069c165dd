"""The command line: one file a verb, loaded only when that verb is asked for.

The table below is all that `--help` reads, so that it is quick however many verbs there are; a
test holds each line to the verb's own first sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from agent.cli.exits import Exit, json_of
from agent.cli.session import CliSession

_AS_JSON = "agent.cli.as_json"
_FILE = click.Path(path_type=Path, dir_okay=False)

# verb → (module, attribute, first sentence of its help; none: not shown)
VERBS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Run the daemon."),
    "check-config": ("check_config", "check_config", "Check a configuration file."),
    "doctor": ("doctor", "doctor", "Say what this host can and cannot do."),
    "status": ("status", "status", "Show the host, its deployments and what is wrong."),
    "capacity": ("capacity", "capacity", "Show what is free of what."),
    "plan": ("plan", "plan", "Say what an update would be; changes nothing."),
    "lease": ("lease", "lease", "Promise capacity until a time, and give it back."),
    "deploy": ("deploy", "deploy", "Create a deployment and start it."),
    "relaunch": ("relaunch", "relaunch", "Update a deployment to another release or values."),
    "update": ("update", "update", "Watch or steer the update of a deployment."),
    "rollback": ("rollback", "rollback", "Go back to an older revision."),
    "secrets": ("secrets", "secrets", "Show, give and take away a deployment's secrets."),
    "start": ("start", "start", "Start a stopped deployment."),
    "stop": ("stop", "stop", "Stop a deployment; it keeps its place."),
    "delete": ("delete", "delete", "Remove a deployment and its enclaves."),
    "logs": ("logs", "logs", "Show the console of a deployment's enclave."),
    "events": ("events", "events", "Show what happened, in order."),
    "drain": ("drain", "drain", "Admit nothing new on this host."),
    "undrain": ("drain", "undrain", "Admit again."),
    "gpus": ("gpus", "gpus", "Show the GPUs of this host."),
    "attest": ("attest", "attest", "Show what a deployment's evidence is worth."),
    "images": ("images", "images", "Show the images that are kept here."),
    "coordinator-epoch": (
        "coordinator_epoch",
        "coordinator_epoch",
        "Let a coordinator in that was restored from a backup.",
    ),
    "pki": ("pki", "pki", "Make certificates for a small fleet or a test."),
    "restore-store": (
        "restore_store",
        "restore_store",
        "Put the newest backup in the place of a damaged store.",
    ),
    "release": ("release", "release", "Make releases, look at them, bring them here."),
    "support-bundle": (
        "support_bundle",
        "support_bundle",
        "Put what somebody needs who is to help into one file, redacted.",
    ),
    "completion": (
        "completion",
        "completion",
        "Print what a shell needs to complete verbs and names.",
    ),
    "traffic-proxy": ("traffic_proxy", "traffic_proxy", ""),
    "restore-host": ("restore_host", "restore_host", ""),
}


class Verbs(click.Group):
    """A group that imports a verb when it is used."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ever; whether an error is wanted as JSON is known before there is one."""
        ctx.meta[_AS_JSON] = wants_json(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As ever; a failure as JSON where that was asked for, an interrupt as shells tell it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(Exit.INTERRUPTED) from None
        except click.ClickException as error:
            if not ctx.meta[_AS_JSON]:
                raise
            click.echo(json_of(error), err=True)
            raise click.exceptions.Exit(error.exit_code) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module, or None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        loaded: click.Command = getattr(importlib.import_module(f"agent.cli.{module}"), attribute)
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As ever; of a verb that is none with those that may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            known = [name for name, (_, _, text) in VERBS.items() if text]
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=known, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items() if text])


def wants_json(args: Sequence[str]) -> bool:
    """Whether these arguments ask for JSON, `-o json` or `--output=jsonl`, say."""
    for n, one in enumerate(args):
        value = one.partition("=")[2] if one.startswith("--output=") else one.removeprefix("-o")
        if one in ("-o", "--output"):
            value = args[n + 1] if n + 1 < len(args) else ""
        elif value == one:
            continue
        if value.removeprefix("=") in ("json", "jsonl"):
            return True
    return False


@click.group("enclave-agent", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The agent's configuration. [/etc/enclave-agent/agent.yaml]",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="ENCLAVE_AGENT_SOCKET",
    metavar="PATH",
    help="The agent's socket. [as configured; /run/enclave-agent/agent.sock]",
)
@click.option(
    "--url",
    envvar="ENCLAVE_AGENT_URL",
    metavar="https://HOST[:PORT]",
    help="Another host's agent, over mutual TLS. Needs --certificate, --key and --ca.",
)
@click.option(
    "--certificate", type=_FILE, envvar="ENCLAVE_AGENT_CERTIFICATE", metavar="FILE", help="Yours."
)
@click.option("--key", type=_FILE, envvar="ENCLAVE_AGENT_KEY", metavar="FILE", help="Its key.")
@click.option("--ca", type=_FILE, envvar="ENCLAVE_AGENT_CA", metavar="FILE", help="The fleet's.")
@click.option("--host-id", metavar="ID", help="No other host than this one.")
@click.option(
    "--epoch",
    type=click.IntRange(0),
    metavar="N",
    help="The coordinator's, which changes by --url with its certificate need.",
)
@click.version_option(package_name="enclave-agent", prog_name="enclave-agent")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Run confidential enclave VMs on this host and update them blue-green.

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 refused, 4 no such name, 5 agent not
    reachable, 6 timed out waiting, 130 interrupted.
    """
    ctx.obj = CliSession.of(options)


def main() -> None:
    """The console script."""
    cli(prog_name="enclave-agent")
