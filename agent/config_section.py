"""The base of all sections of the configuration."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of settings, every one optional, and none that is not known."""
