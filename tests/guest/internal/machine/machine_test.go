package machine

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestFirstValueOnTheCommandLineCounts(t *testing.T) {
	line := "readonly=on root=/dev/mapper/root roothash=ab tinfoil-config-hash=cd roothash=ef\n"
	for key, want := range map[string]string{"roothash": "ab", "tinfoil-config-hash": "cd", "root": "/dev/mapper/root"} {
		if got, ok := CmdlineValue(line, key); !ok || got != want {
			t.Errorf("%s: %q", key, got)
		}
	}
	if _, ok := CmdlineValue(line, "hash"); ok {
		t.Error("found a part of a word")
	}
}

func TestExtraDisksFollowTheContractsTable(t *testing.T) {
	for i, want := range map[int]string{0: "07.0", 9: "10.0", 23: "1e.0"} {
		if got := extraSlot(i); got != want {
			t.Errorf("disk %d: %s", i, got)
		}
	}
}

func TestNetlinkRequests(t *testing.T) {
	address := net.IPNet{IP: net.IPv4(10, 0, 2, 15), Mask: net.CIDRMask(24, 32)}
	for _, c := range []struct{ got, want string }{
		{hex.EncodeToString(addAddress(2, address)),
			"28000000" + "14000506" + "00000000" + "00000000" + // header
				"02180000" + "02000000" + "08000200" + "0a00020f" + "08000100" + "0a00020f"},
		{hex.EncodeToString(addDefaultRoute(2, net.IPv4(10, 0, 2, 2))),
			"2c000000" + "18000506" + "00000000" + "00000000" +
				"02000000" + "fe030001" + "00000000" + "08000500" + "0a000202" + "08000400" + "02000000"},
	} {
		if c.got != c.want {
			t.Errorf("\n%s\n%s", c.got, c.want)
		}
	}
}

func TestOnlyAPressOfThePowerKeyCounts(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		raw := make([]byte, inputEventSize)
		binary.LittleEndian.PutUint16(raw[16:], kind)
		binary.LittleEndian.PutUint16(raw[18:], code)
		binary.LittleEndian.PutUint32(raw[20:], value)
		return raw
	}
	if !isPowerPress(event(1, 116, 1)) {
		t.Error("press not seen")
	}
	if isPowerPress(event(1, 116, 0)) || isPowerPress(event(1, 30, 1)) || isPowerPress(event(0, 116, 1)) {
		t.Error("something else taken for a press")
	}
}

func TestKernelWarningsAreForwarded(t *testing.T) {
	if text, ok := kernelWarning("4,123,456,-;something is odd\n SUBSYSTEM=x\n"); !ok || text != "something is odd" {
		t.Errorf("%q %v", text, ok)
	}
	for _, record := range []string{"6,1,2,-;usual\n", "garbage", "x;y"} {
		if _, ok := kernelWarning(record); ok {
			t.Errorf("%q forwarded", record)
		}
	}
}

func TestLoadIsReadFromProc(t *testing.T) {
	busy, total := parseCPUTimes("cpu  10 1 5 100 4 0 2 0 7 0\ncpu0 1 1 1 1\n")
	if busy != 18 || total != 122 {
		t.Errorf("%d of %d", busy, total)
	}
	info := "MemTotal:       1000 kB\nMemAvailable:    400 kB\n"
	if parseMeminfo(info, "MemTotal:") != 1024000 || parseMeminfo(info, "MemAvailable:") != 409600 {
		t.Error("meminfo")
	}
}

func TestThePortIsFoundByItsName(t *testing.T) {
	device := t.TempDir()
	for port, name := range map[string]string{"vport1p1": "other\n", "vport1p2": "sim-psp\n"} {
		dir := filepath.Join(device, "virtio4", "virtio-ports", port)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if node, err := findPort(device, "sim-psp"); err != nil || node != "/dev/vport1p2" {
		t.Error(node, err)
	}
	if _, err := findPort(device, "sim"); err != ErrNoPSP {
		t.Error(err)
	}
}
