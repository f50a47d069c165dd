package machine

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const pciDevices = "/sys/bus/pci/devices/0000:00:"

// Addresses and serials of the contract's machine (layout virtio-pci).
const (
	NICAddress            = "02.0"
	ConfigAddress         = "05.0"
	ConfigSerial          = "tinfoil-config"
	ExternalConfigAddress = "06.0"
	ExternalConfigSerial  = "tinfoil-ext-config"
	firstModelSlot        = 0x07
	modelSerial           = "tinfoil-modelwrap"
	volumeSerial          = "tinfoil-volume"
)

// Disk returns the node of the virtio disk at a PCI address, given as
// `slot.function` on bus 0. The serial must agree.
func Disk(address, serial string) (string, error) {
	found, _ := filepath.Glob(pciDevices + address + "/virtio*/block/*")
	if len(found) == 0 {
		return "", fmt.Errorf("no disk at PCI address 00:%s", address)
	}
	raw, err := os.ReadFile(found[0] + "/serial")
	if err != nil {
		return "", err
	}
	if got := strings.TrimSpace(string(raw)); got != serial {
		return "", fmt.Errorf("the disk at 00:%s has serial %q, not %q", address, got, serial)
	}
	return "/dev/" + filepath.Base(found[0]), nil
}

// ModelDisk returns the node of model i (from 0).
func ModelDisk(i int) (string, error) {
	return Disk(extraSlot(i), fmt.Sprintf("%s%d", modelSerial, i+1))
}

// VolumeDisk returns the node of volume i (from 0) of a config with that many
// models.
func VolumeDisk(models, i int) (string, error) {
	return Disk(extraSlot(models+i), fmt.Sprintf("%s%d", volumeSerial, i+1))
}

func extraSlot(i int) string {
	return fmt.Sprintf("%02x.0", firstModelSlot+i)
}

// ReadDisk returns the content of a small disk, at most limit bytes of it.
func ReadDisk(node string, limit int64) ([]byte, error) {
	dev, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return io.ReadAll(io.LimitReader(dev, limit))
}
