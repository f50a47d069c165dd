"""`python -m agent.traffic.proxy`: the command `traffic-proxy` without its sisters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.traffic.proxy.process import main

parser = argparse.ArgumentParser(prog="enclave-agent traffic-proxy")
parser.add_argument("--socket", type=Path, required=True)
parser.add_argument("--state", type=Path, required=True)
parser.add_argument("--log", type=Path)
given = parser.parse_args()
sys.exit(main(given.socket, given.state, given.log))
