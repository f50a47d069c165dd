"""The health records of all GPUs of a host, each of one card and not of a place. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.inventory.finding import Finding
from agent.inventory.findings import sightings
from agent.inventory.health import HealthRecord, after_reset, health_of, look, note
from agent.inventory.identity import Recall
from agent.inventory.nvml.values import NvmlLook
from agent.model.clock import Instant
from agent.model.gpu import GpuHealth, GpuUse
from agent.model.ids import Bdf
from agent.model.pci import PciFunction


class HealthRecords:
    """By BDF: the key of the card, and its record."""

    def __init__(self) -> None:
        self._records: dict[Bdf, tuple[str, HealthRecord]] = {}

    def look(
        self,
        functions: Mapping[Bdf, PciFunction],
        nvml: NvmlLook,
        found: Recall,
        uses: Mapping[Bdf, GpuUse],
        now: Instant,
    ) -> None:
        """Every record one look older; a card that took another's place begins anew."""
        records = {}
        for bdf, evidence in sightings(functions, nvml, uses).items():
            key = found.present[bdf].key
            of, record = self._records.get(bdf, (key, HealthRecord()))
            if of != key and not of.startswith("at:"):
                record = HealthRecord()
            records[bdf] = (key, look(record, evidence, now))
        self._records = records

    def note(self, bdf: Bdf | None, finding: Finding, now: Instant) -> bool:
        """Whether it is of a GPU that is known."""
        if bdf is None or bdf not in self._records:
            return False
        key, record = self._records[bdf]
        self._records[bdf] = (key, note(record, finding, now))
        return True

    def was_reset(self, bdf: Bdf) -> None:
        """What a reset mends is mended."""
        if bdf in self._records:
            key, record = self._records[bdf]
            self._records[bdf] = (key, after_reset(record))

    def health(self) -> dict[Bdf, GpuHealth]:
        """Of all."""
        return {bdf: health_of(record) for bdf, (_, record) in self._records.items()}
