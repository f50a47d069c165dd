package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Address and name of the port to a simulated secure processor.
const (
	pspAddress = "1f.4"
	pspName    = "sim-psp"
)

// ErrNoPSP says that the machine has no simulated secure processor.
var ErrNoPSP = errors.New("no port sim-psp at PCI address 00:1f.4")

// FindPSP returns the node of the port to a simulated secure processor.
func FindPSP() (string, error) {
	return findPort(pciDevices+pspAddress, pspName)
}

func findPort(device, name string) (string, error) {
	found, _ := filepath.Glob(device + "/virtio*/virtio-ports/vport*")
	for _, port := range found {
		raw, err := os.ReadFile(filepath.Join(port, "name"))
		if err == nil && strings.TrimSpace(string(raw)) == name {
			return "/dev/" + filepath.Base(port), nil
		}
	}
	return "", ErrNoPSP
}
