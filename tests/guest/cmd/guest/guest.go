package main

import (
	"sync"
	"sync/atomic"
	"time"

	"refguest/internal/behaviour"
	"refguest/internal/conf"
	"refguest/internal/machine"
	"refguest/internal/stages"
)

// guest is the state that the boot fills in and the handlers read. `plan` is
// published once, when both documents are read.
type guest struct {
	start    time.Time
	console  *machine.Console
	boot     *stages.Tracker
	identity identity
	servers  serverSet
	plan     atomic.Value // of *plan
	attester atomic.Value // of *attester, where there is a TEE
	shimUp   int32
	stopped  chan struct{}
	stopOnce sync.Once
	load     loadMeter
}

// plan is what the two config documents say.
type plan struct {
	workload *conf.Workload
	external *conf.External
	table    *behaviour.Table
	env      map[string]string
	answer   answer
}

var nothingAsked = &behaviour.Table{}

func (g *guest) age() time.Duration { return time.Since(g.start) }

// current returns the plan, or nil while (or because) there is none.
func (g *guest) current() *plan {
	p, _ := g.plan.Load().(*plan)
	return p
}

func (g *guest) table() *behaviour.Table {
	if p := g.current(); p != nil {
		return p.table
	}
	return nothingAsked
}

// workloadUp tells whether the workload serves; if not, whether it may yet.
func (g *guest) workloadUp() (up bool, status string) {
	table, age := g.table(), g.age()
	switch {
	case atomic.LoadInt32(&g.shimUp) == 1 && table.Workload(age):
		return true, ""
	case table.Sick(age) || g.boot.Snapshot().Verdict() == stages.Failed:
		return false, stages.Failed
	default:
		return false, stages.Pending
	}
}
