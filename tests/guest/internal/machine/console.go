package machine

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The consoles that a guest may have.
const (
	SerialConsole = "/dev/ttyS0"
	VirtioConsole = "/dev/hvc0"
)

// Console prints lines without ever making the caller wait: a console that nobody
// drains must not stall the service. Lines that do not fit into the queue are
// lost. What is printed before it is known where to waits there.
type Console struct {
	lines chan string
	flush chan chan struct{}
	start time.Time
	once  sync.Once
}

// NewConsole prints nothing yet; each line has the seconds since start.
func NewConsole(start time.Time) *Console {
	return &Console{lines: make(chan string, 512), flush: make(chan chan struct{}), start: start}
}

// Open prints on that terminal from now on. Only the first call has an effect.
func (c *Console) Open(terminal string) error {
	out, err := os.OpenFile(terminal, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	c.once.Do(func() { go c.run(out) })
	return nil
}

// Mute prints nothing, ever, unless it is open already.
func (c *Console) Mute() {
	c.once.Do(func() {
		if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
			go c.run(null)
		}
	})
}

// Printf queues one line.
func (c *Console) Printf(format string, args ...interface{}) {
	line := fmt.Sprintf("guest: [%8.3f] %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
	select {
	case c.lines <- line:
	default:
	}
}

// Flush waits until what was queued has left the machine, at most limit.
func (c *Console) Flush(limit time.Duration) {
	done := make(chan struct{})
	timeout := time.After(limit)
	select {
	case c.flush <- done:
		select {
		case <-done:
		case <-timeout:
		}
	case <-timeout:
	}
}

func (c *Console) run(out *os.File) {
	for {
		select {
		case line := <-c.lines:
			_, _ = out.WriteString(line)
		case done := <-c.flush:
			for len(c.lines) > 0 {
				_, _ = out.WriteString(<-c.lines)
			}
			drain(out)
			close(done)
		}
	}
}

// ForwardKernelWarnings prints the kernel's messages of level warning and worse
// from now on: the kernel itself has no console on the serial line.
func (c *Console) ForwardKernelWarnings() {
	log, err := os.Open("/dev/kmsg")
	if err != nil {
		return
	}
	_, _ = log.Seek(0, 2)
	buf := make([]byte, 8192)
	for {
		n, err := log.Read(buf)
		if err != nil {
			return
		}
		if text, ok := kernelWarning(string(buf[:n])); ok {
			c.Printf("kernel: %s", text)
		}
	}
}

// kernelWarning takes one record of /dev/kmsg ("level,seq,usec,flags;text").
func kernelWarning(record string) (string, bool) {
	head, text, ok := strings.Cut(record, ";")
	var level int
	if _, err := fmt.Sscanf(head, "%d,", &level); !ok || err != nil || level&7 > 4 {
		return "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	return text, true
}

// drain waits until a terminal has sent what was written, as tcdrain(3).
func drain(terminal *os.File) {
	const tcsbrk = 0x5409 // with a non-zero argument it drains and sends no break
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), tcsbrk, 1)
}
