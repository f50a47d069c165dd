"""`scripts/simulate-host`, once the environment is there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from simulator.machine import SimulatedHostError, SimulatedMachine
from simulator.profiles import PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate-host", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--profile", choices=PROFILES, help="the host to make")
    what.add_argument("--stop", action="store_true", help="end the one that is in DIR")
    parser.add_argument("directory", metavar="DIR", type=Path)
    given = parser.parse_args()
    machine = SimulatedMachine(given.directory)
    try:
        if given.stop:
            machine.stop()
            return 0
        machine.make(PROFILES[given.profile])
    except SimulatedHostError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"# A SIMULATED {given.profile} host; its kernel is process {machine.pid()}, until")
    print(f"# ./scripts/simulate-host --stop {machine.directory}")
    print("# Put this into the agent's configuration:")
    print(yaml.safe_dump({"host": machine.keys}, sort_keys=False), end="")
    print("# And this, for VMs that get a stand-in for each device:")
    print(yaml.safe_dump({"qemu": {"binary": str(machine.qemu)}}), end="")
    return 0


sys.exit(main())
