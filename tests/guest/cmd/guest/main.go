// Command guest is PID 1 of the reference guest: it boots by the public guest
// contract, serves what the contract names, plays the workload, and misbehaves
// on request (see the README's table of GUEST_ variables).
package main

import (
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"refguest/internal/machine"
	"refguest/internal/stages"
)

func main() {
	start := time.Now()
	console := machine.NewConsole(start)
	g := &guest{
		start:   start,
		console: console,
		version: imageVersion(),
		boot:    stages.NewTracker(start, console.Printf),
		stopped: make(chan struct{}),
	}
	console.Printf("image %s, root disk verified %s s after the kernel's start", g.version, os.Getenv("VERIFIED_AFTER"))
	prepareMachine()
	go console.ForwardKernelWarnings()
	g.watchForTheEnd()
	g.bootUp()
	select {} // PID 1 must not return: the kernel would panic
}

// prepareMachine mounts what the initramfs did not and lifts the limits that a
// burst of connections would meet.
func prepareMachine() {
	for _, dir := range []string{"/run", "/tmp"} {
		_ = syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755")
	}
	for path, value := range map[string]string{
		"/proc/sys/net/core/somaxconn":           "4096",
		"/proc/sys/net/ipv4/tcp_max_syn_backlog": "4096",
		"/proc/sys/net/ipv4/tcp_syncookies":      "0",
		"/proc/sys/kernel/panic":                 "-1",
	} {
		_ = os.WriteFile(path, []byte(value), 0)
	}
	limit := syscall.Rlimit{Cur: 65536, Max: 65536}
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// imageVersion is what the image was built as; its manners depend on it.
func imageVersion() string {
	raw, _ := os.ReadFile("/image-version")
	return strings.TrimSpace(string(raw))
}

// watchForTheEnd powers the machine off in order on the ACPI power button and on
// the signals that a kernel or an operator sends to PID 1. A boot that failed hears
// the button no more, as the public guest's first process does not.
func (g *guest) watchForTheEnd() {
	buttons := machine.WatchPowerButton(func() {
		switch {
		case g.table().IgnoreACPI:
			g.console.Printf("power button pressed, ignored as told")
		case atomic.LoadInt32(&g.parked) == 1:
			g.console.Printf("power button pressed, ignored: the boot failed")
		default:
			g.powerOff("power button")
		}
	})
	if buttons == 0 {
		g.console.Printf("no ACPI power button found")
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	go func() {
		for sig := range signals {
			g.powerOff(sig.String())
		}
	}()
}
