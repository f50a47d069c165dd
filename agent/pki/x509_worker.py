"""The process that does what needs the library for certificates: one order, one answer, the end.

python -m agent.pki.x509_worker    the order on stdin, the answer on stdout; see `x509_client`
"""

from __future__ import annotations

import sys
from typing import assert_never

import msgspec

from agent.errors import AgentError, describe
from agent.pki.facts import TrustError
from agent.pki.inspection import inspect
from agent.pki.request import install, request_certificate
from agent.pki.x509_client import Inspect, Install, Orders, Refusal, Request, X509Reply


def carry_out(order: Orders) -> X509Reply:
    """What a TrustError says is an answer; what else is raised ends the process."""
    tls, host_id = order.files.config, order.host_id
    try:
        match order:
            case Inspect():
                return X509Reply(facts=inspect(tls, host_id))
            case Request():
                return X509Reply(pem=request_certificate(tls, host_id))
            case Install():
                install(tls, host_id, order.certificate_pem, order.ca_pem, order.crl_pem)
                return X509Reply()
            case _:
                assert_never(order)
    except TrustError as error:
        return X509Reply(refusal=Refusal(setting=error.setting, reason=error.reason))


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    try:
        answer = carry_out(order)
    except AgentError as error:
        sys.exit(describe(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
