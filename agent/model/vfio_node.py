"""Whether QEMU can reach a device through iommufd: the one judge of it. Pure.

It opens the device's own file below /dev/vfio/devices. The kernel makes one for what a vfio driver
has only where it was built with CONFIG_VFIO_DEVICE_CDEV (Linux, drivers/vfio/device_cdev.c):
elsewhere sysfs has the directory `vfio-dev/vfioN`, and no `dev` in it.
"""

from __future__ import annotations

from agent.model.pci_drivers import is_vfio

NODE_MEND = "boot a kernel of 6.6 or newer that has CONFIG_VFIO_DEVICE_CDEV=y"


def missing_node(
    driver: str | None, vfio_device: str | None, *, made_here: bool | None
) -> str | None:
    """What is missing, as the end of a sentence about the device; None if nothing is, as far as
    is known.

    `vfio_device`: the name of its file. `made_here`: whether this kernel makes such files at all,
    which tells of what no vfio driver has yet; None: not known.
    """
    if vfio_device is not None:
        return None
    if is_vfio(driver):
        return f"{driver} has it, and there is no file of it in /dev/vfio/devices"
    if made_here is False:
        return "it would get no file in /dev/vfio/devices: this kernel makes none"
    return None
