// Command guest is PID 1 of the reference guest: it boots by the public guest
// contract, serves what the contract names, plays the workload, and misbehaves
// on request (see the README's table of GUEST_ variables).
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"refguest/internal/machine"
	"refguest/internal/stages"
)

func main() {
	start := time.Now()
	console := machine.NewConsole(os.Stdout, start)
	g := &guest{
		start:   start,
		console: console,
		boot:    stages.NewTracker(start, console.Printf),
		stopped: make(chan struct{}),
	}
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

// watchForTheEnd powers the machine off in order on the ACPI power button and on
// the signals that a kernel or an operator sends to PID 1.
func (g *guest) watchForTheEnd() {
	buttons := machine.WatchPowerButton(func() {
		if g.table().IgnoreACPI {
			g.console.Printf("power button pressed, ignored as told")
			return
		}
		g.powerOff("power button")
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
