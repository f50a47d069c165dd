"""Which TLS key a guest may show. Pure.

A guest answers before it has its own key, and its server is restarted in every boot: the first key
that is seen says nothing. A key is *bound* once evidence binds it, or, on a host where nothing is
claimed, by two rounds in a row that pass wholly over it, each over a connection of its own. Before
that a change of the key means that the guest is starting. Afterwards every other key is a failed
result, so that it is a failure unless it is bound itself within the patience that every probe has.

Why two: a connection keeps the key of its handshake, and a server that takes its own key while it
is open answers all that is asked over it from then on. So one round may pass wholly over a key of
the moment. But whoever gave such answers shows its own key to every later connection, and one that
was restarted since shows another key of the moment: none of those is shown again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.probes.result import ProbeResult

KEY_PROBE = "tls-key"
KEY_CHANGED = "key_changed"


def judge_keys(bound: str | None, before: str | None, keys: Sequence[str]) -> ProbeResult | None:
    """The result of a round that showed these keys, in order; None if it showed none.

    `before`: the newest one of the round before.
    """
    if not keys:
        return None
    if bound is not None:
        other = next((key for key in keys if key != bound), None)
        return _shows_another(bound, other) if other else _passes(bound)
    if before is not None and {before, *keys} != {before}:
        return ProbeResult(KEY_PROBE, True, f"starting: now sha256:{keys[-1]}", afresh=True)
    return _passes(keys[-1])


def passed_over(observations: Iterable[ProbeResult], keys: Sequence[str]) -> str | None:
    """The one key over which a round passed wholly; None if it did not, or showed several."""
    results = list(observations)
    whole = bool(results) and all(result.passed for result in results)
    return keys[0] if whole and len(keys) == 1 else None


def bound_by_rounds(before: str | None, newest: str | None) -> str | None:
    """The key that two rounds bind where there is no evidence, by what each passed wholly over.

    The connection of the newest was opened after the round before had ended.
    """
    return newest if newest == before else None


def _passes(key: str) -> ProbeResult:
    return ProbeResult(KEY_PROBE, True, f"sha256:{key}")


def _shows_another(bound: str, other: str) -> ProbeResult:
    text = f"TLS shows key sha256:{other}, which nothing binds; sha256:{bound} is bound"
    return ProbeResult(KEY_PROBE, False, text, KEY_CHANGED)
