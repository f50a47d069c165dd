"""What others see of one enclave: its published view, every change of which is logged and rung."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from agent.config import SIMULATED
from agent.enclaves.monitor import QEMU_EXIT
from agent.enclaves.port import ABSENT, Teardown, VmPhase, VmView
from agent.enclaves.rundir import RunDir
from agent.enclaves.vm import Vm
from agent.model.enclave import ProcessIdentity
from agent.model.ids import EnclaveId

log = logging.getLogger(__name__)


class ViewPublisher:
    """Only the enclave's owner publishes; everybody reads `view`."""

    def __init__(self, enclave_id: EnclaveId, run: RunDir, changed: Callable[[], None]) -> None:
        self.view = ABSENT
        self._id = enclave_id
        self._run = run
        self._changed = changed

    @property
    def phase(self) -> VmPhase:
        return self.view.phase

    def show_absent(self) -> None:
        self._publish(ABSENT)

    def show_starting(self, launch_uuid: str) -> None:
        """Before there is a process."""
        self._publish(VmView(phase=VmPhase.STARTING, launch_uuid=launch_uuid))

    def show(self, phase: VmPhase, vm: Vm, teardown: Teardown | None = None) -> None:
        """A VM that has a process."""
        self._publish(
            VmView(
                phase=phase,
                launch_uuid=vm.launch_uuid,
                process=vm.identity,
                unit=vm.unit,
                teardown=teardown,
                simulated=vm.simulated,
            )
        )

    def show_teardown(self, reached: Teardown) -> None:
        """A VM that is being stopped got so far."""
        if self.phase is VmPhase.STOPPING:
            self._publish(msgspec.structs.replace(self.view, teardown=reached))

    def show_exited(self, vm: Vm) -> None:
        """A VM whose guest ended, or whose process did."""
        reason, detail = QEMU_EXIT, self.qemu_exit(vm.exit_status)
        if vm.end is not None:
            reason, detail = vm.end.reason, vm.end.detail
        self._publish(
            VmView(
                phase=VmPhase.EXITED,
                launch_uuid=vm.launch_uuid,
                process=vm.identity,
                unit=vm.unit,
                exit_reason=reason,
                exit_detail=detail,
                simulated=vm.simulated,
            )
        )

    def show_remains(
        self, detail: str, launch_uuid: str | None = None, process: ProcessIdentity | None = None
    ) -> None:
        """Of a VM that ended, there is something left that `stop` has to remove."""
        self._publish(
            VmView(
                phase=VmPhase.EXITED,
                launch_uuid=launch_uuid or self.view.launch_uuid,
                process=process or self.view.process,
                exit_reason=QEMU_EXIT,
                exit_detail=detail,
                simulated=self.view.simulated,
            )
        )

    def show_stuck(self, detail: str) -> None:
        """There is a process that neither ends nor can be made to."""
        self._publish(
            VmView(
                phase=VmPhase.STUCK,
                launch_uuid=self.view.launch_uuid,
                process=self.view.process,
                unit=self.view.unit,
                exit_detail=detail,
                simulated=self.view.simulated,
            )
        )

    def qemu_exit(self, status: str | None) -> str:
        """How QEMU ended, with the last that it said."""
        output = self._run.output_tail()
        how = f"QEMU ended ({status})" if status else "QEMU ended"
        return f"{how}: {output}" if output else how

    def _publish(self, view: VmView) -> None:
        if view == self.view:
            return
        if (view.phase, view.teardown) != (self.view.phase, self.view.teardown):
            fields = {
                "enclave": self._id,
                "from": str(self.view.phase),
                "to": f"{view.phase}/{view.teardown}" if view.teardown else str(view.phase),
                "reason": view.exit_detail,
            }
            if view.simulated:
                fields["tee"] = SIMULATED
            log.info("vm phase", extra=fields)
        self.view = view
        self._changed()
