package main

import (
	"bytes"
	"os"
	"time"

	"refguest/internal/machine"
)

// followTable starts what the behaviour table asks for at a later time.
func (g *guest) followTable() {
	table := g.table()
	g.at(table.NewKeyAfter, func() {
		spki, err := g.identity.renew(g.domain())
		g.console.Printf("another TLS key from now on: spki sha256 %s (%v)", spki, err)
	})
	g.at(table.ShimRestartAfter, func() { g.restartShim(table.ShimRestart) })
	g.at(table.PowerOffAfter, func() { g.powerOff("told by GUEST_POWEROFF_AFTER_S") })
	g.at(table.ExitAfter, func() { g.last("PID 1 exits"); os.Exit(1) })
	g.at(table.ResetAfter, func() { g.last("reset"); machine.Reset() })
	g.at(table.PanicAfter, func() { g.last("kernel panic"); machine.Panic(table.PanicHang) })
	g.at(table.SickAfter, func() { g.console.Printf("the workload is sick from now on, as told") })
	g.at(table.FreezeAfter, func() { g.console.Printf("frozen from now on, as told") })
	if table.ConsoleMiB > 0 {
		go g.floodConsole(table.ConsoleMiB)
	}
}

// at runs what at a time after the guest's start; never if that is zero.
func (g *guest) at(age time.Duration, what func()) {
	if age > 0 {
		time.AfterFunc(age-g.age(), what)
	}
}

func (g *guest) last(what string) {
	g.console.Printf("%s now, as told", what)
	g.console.Flush(200 * time.Millisecond)
}

// floodConsole prints mib MiB on the serial line as fast as it takes them.
func (g *guest) floodConsole(mib int) {
	line := []byte("flood: 0123456789abcdef0123456789abcdef0123456789abcdef01234567\n")
	block := bytes.Repeat(line, 1<<16/len(line))
	begin := time.Now()
	err := machine.FloodSerial(block, mib<<20/len(block))
	g.console.Printf("printed %d MiB in %.1f s (%v)", mib, time.Since(begin).Seconds(), err)
}
