package machine

import (
	"os"
	"runtime"
	"syscall"
)

const (
	comPort  = 0x3f8
	uartStep = 4096
)

// outs writes count bytes to an I/O port, one after the other.
func outs(port uint16, data *byte, count int)

// FloodSerial writes block to the first serial port, count times, past the
// kernel's driver. That waits for an interrupt every 16 bytes, which makes it
// four times slower; an emulated port takes its bytes at any speed.
func FloodSerial(block []byte, count int) error {
	runtime.LockOSThread() // the permission is the thread's
	defer runtime.UnlockOSThread()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOPL, 3, 0, 0); errno != 0 {
		return errno
	}
	serial, err := os.OpenFile(SerialConsole, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer serial.Close()
	for i := 0; i < count; i++ {
		// The driver gets no interrupt while others write to its port, so the
		// guest's own lines have their turn here.
		drain(serial)
		// In steps: the runtime cannot interrupt assembly.
		for rest := block; len(rest) > 0; {
			n := uartStep
			if n > len(rest) {
				n = len(rest)
			}
			outs(comPort, &rest[0], n)
			rest = rest[n:]
		}
	}
	return nil
}
