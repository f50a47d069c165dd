"""What a person should mend of the GPUs, in a sentence with the mend. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.inventory.nvml.values import Trouble
from agent.model.gpu import Gpu, GpuState, HealthAction, Severity
from agent.model.inventory import InventoryProblem

MENDS: dict[HealthAction, str] = {
    HealthAction.NONE: "nothing",
    HealthAction.WATCH: "see the kernel log; watch it",
    HealthAction.RESET: "stop what uses it; it is reset before its next enclave",
    HealthAction.REBOOT: "drain the host and reboot it",
    HealthAction.RETURN: "take it out of service and return it",
}
_NVML_MENDS = {
    "nvml_hung": "see the kernel log for XIDs and hung tasks; reload the nvidia driver or reboot",
    "nvml_stuck": "the kernel keeps a call of the driver: reboot the host",
    "nvml_no_library": "install the library of the driver's version, or set host.nvml_library",
    "nvml_forbidden": "let the agent's user open /dev/nvidiactl and /dev/nvidia*",
}


def problems_of(gpus: Iterable[Gpu], trouble: Trouble | None) -> tuple[InventoryProblem, ...]:
    """Of every GPU and switch, and of NVML."""
    found = [problem for gpu in gpus for problem in _of_gpu(gpu)]
    if trouble is not None and not trouble.expected:
        found.append(
            InventoryProblem(
                key="nvml",
                code=trouble.code,
                severity="warning",
                detail=f"{trouble.detail}; GPUs are seen by PCI alone",
                mend=_NVML_MENDS.get(
                    trouble.code, "see that driver and library are of one version (nvidia-smi)"
                ),
            )
        )
    return tuple(found)


def unseen(code: str, detail: str) -> InventoryProblem:
    """A look failed."""
    return InventoryProblem(
        key="inventory",
        code=code,
        severity="error",
        detail=detail,
        mend="see that host.sysfs_root is a sysfs that may be read, and the log",
    )


def unkept(code: str, detail: str) -> InventoryProblem:
    """What was learned is published and not durable."""
    return InventoryProblem(
        key="inventory_store",
        code=code,
        severity="error",
        detail=f"what is learned of the GPUs cannot be kept: {detail}",
        mend="mend the cause (see the log); it is tried again at the next look",
    )


def _of_gpu(gpu: Gpu) -> Iterator[InventoryProblem]:
    what = "NVSwitch" if gpu.is_switch else "GPU"
    if gpu.state is GpuState.ABSENT:
        yield _problem(
            gpu,
            "gpu_absent",
            "warning",
            f"{what} {gpu.bdf} ({gpu.name or 'of no known name'}) is not on the bus any more",
            f"see to it, or forget it: enclave-agent gpus release {gpu.bdf}",
        )
        return
    if gpu.quarantine is not None:
        yield _problem(
            gpu,
            "gpu_quarantined",
            "warning",
            f"{what} {gpu.bdf} is kept out of use: {gpu.quarantine.reason}",
            f"when it is mended: enclave-agent gpus release {gpu.bdf}",
        )
    yield from _of_upkeep(gpu, what)
    if gpu.health.severity in (Severity.WARNING, Severity.ERROR):
        reasons = "; ".join(reason.detail for reason in gpu.health.reasons)
        yield _problem(
            gpu,
            "gpu_unhealthy",
            str(gpu.health.severity),
            f"{what} {gpu.bdf}: {reasons}",
            MENDS[gpu.health.action],
        )


def _of_upkeep(gpu: Gpu, what: str) -> Iterator[InventoryProblem]:
    """What keeps it from being made ready, and the modes that it cannot be given out in."""
    release = f"then: enclave-agent gpus release {gpu.bdf}"
    if gpu.upkeep.fault is not None and gpu.state is GpuState.DIRTY:
        yield _problem(
            gpu,
            "gpu_not_prepared",
            "warning",
            f"{what} {gpu.bdf} is not made ready: {gpu.upkeep.fault}",
            gpu.upkeep.mend or f"see the agent's log and the kernel's; {release}",
        )
    if gpu.upkeep.mode_told is not None:
        yield _problem(
            gpu,
            "gpu_mode_unsettled",
            "warning",
            f"{what} {gpu.bdf} is in no mode: the GPU tool says {gpu.upkeep.mode_told}",
            "it is set for its next enclave; or set it by hand with host.gpu_tools "
            f"(--devices {gpu.bdf} --set-cc-mode on --reset-after-cc-mode-switch), {release}",
        )
    for limit in gpu.upkeep.limits if gpu.quarantine is None else ():
        yield _problem(
            gpu,
            f"{limit.code}_{limit.mode}",
            "warning",
            f"{what} {gpu.bdf} is not given out in mode {limit.mode}: {limit.detail}",
            f"{limit.mend}; {release}",
        )


def _problem(gpu: Gpu, code: str, severity: str, detail: str, mend: str) -> InventoryProblem:
    return InventoryProblem(
        key=f"{code}:{gpu.bdf}", code=code, severity=severity, detail=detail, mend=mend
    )
