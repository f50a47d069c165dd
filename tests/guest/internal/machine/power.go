package machine

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	inputEventSize = 24 // struct input_event on 64 bits
	eventKey       = 1
	keyPower       = 116
)

// WatchPowerButton calls pressed for every press of an ACPI power button. It
// returns how many buttons it listens to.
func WatchPowerButton(pressed func()) int {
	names, _ := filepath.Glob("/sys/class/input/event*/device/name")
	watched := 0
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(raw)) != "Power Button" {
			continue
		}
		node := "/dev/input/" + strings.Split(name, "/")[4]
		if dev, err := os.Open(node); err == nil {
			watched++
			go readButton(dev, pressed)
		}
	}
	return watched
}

func readButton(dev *os.File, pressed func()) {
	buf := make([]byte, inputEventSize*16)
	for {
		n, err := dev.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) >= inputEventSize; rest = rest[inputEventSize:] {
			if isPowerPress(rest) {
				pressed()
			}
		}
	}
}

func isPowerPress(event []byte) bool {
	le := binary.LittleEndian
	return le.Uint16(event[16:]) == eventKey && le.Uint16(event[18:]) == keyPower &&
		le.Uint32(event[20:]) == 1
}

// PowerOff ends the machine by ACPI. It does not return.
func PowerOff() { end(syscall.LINUX_REBOOT_CMD_POWER_OFF) }

// Reset restarts the machine without any order. It does not return.
func Reset() { end(syscall.LINUX_REBOOT_CMD_RESTART) }

func end(how int) {
	_ = syscall.Reboot(how)
	select {}
}

// Panic makes the kernel panic. Unless hang is set the kernel then restarts the
// machine at once, which the host sees as a reset.
func Panic(hang bool) {
	timeout := "-1"
	if hang {
		timeout = "0"
	}
	_ = os.WriteFile("/proc/sys/kernel/panic", []byte(timeout), 0)
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

// WaitTCPClosed waits until every connection has sent its FIN and had it
// acknowledged, so that the power does not go while one is still queued. It
// gives up after limit.
func WaitTCPClosed(limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !tcpOpen("/proc/net/tcp") && !tcpOpen("/proc/net/tcp6") {
			return
		}
	}
}

func tcpOpen(table string) bool {
	raw, _ := os.ReadFile(table)
	for _, line := range bytes.Split(raw, []byte("\n")) {
		fields := strings.Fields(string(line))
		if len(fields) < 4 {
			continue
		}
		switch fields[3] {
		case "01", "04", "08", "09", "0B": // established, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING
			return true
		}
	}
	return false
}
