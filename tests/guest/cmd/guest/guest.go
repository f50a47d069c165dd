package main

import (
	"sync"
	"sync/atomic"
	"time"

	"refguest/internal/behaviour"
	"refguest/internal/conf"
	"refguest/internal/crun"
	"refguest/internal/machine"
	"refguest/internal/nets"
	"refguest/internal/stages"
)

// guest is the state that the boot fills in and the handlers read. `plan` is
// published once, when both documents are read.
type guest struct {
	start    time.Time
	console  *machine.Console
	version  string
	boot     *stages.Tracker
	identity identity
	shim     shim
	servers  serverSet
	plan     atomic.Value // of *plan
	attester atomic.Value // of *attester, where there is a TEE
	parked   int32
	// How old the guest was when its containers were started.
	containersAge int64
	stopped       chan struct{}
	stopOnce      sync.Once
	load          loadMeter

	runningMu sync.Mutex
	running   map[int]*crun.Container // by their place in the config
}

// plan is what the two config documents say.
type plan struct {
	workload *conf.Workload
	external *conf.External
	table    *behaviour.Table
	env      map[string]string
	answer   answer
	payload  []byte // of the workload config
	nets     nets.Plan
}

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
	return behaviour.Default(g.version)
}

// workloadUp tells whether the played workload serves; if not, whether it may yet.
func (g *guest) workloadUp() (up bool, status string) {
	table, age := g.table(), g.age()
	switch {
	case g.boot.Snapshot().Verdict() == stages.Failed || table.Sick(age):
		return false, stages.Failed
	case !g.boot.Done("containers") || !table.Workload(age):
		return false, stages.Pending
	default:
		return true, ""
	}
}

// keep remembers a container that was made.
func (g *guest) keep(index int, c *crun.Container) {
	g.runningMu.Lock()
	defer g.runningMu.Unlock()
	if g.running == nil {
		g.running = map[int]*crun.Container{}
	}
	g.running[index] = c
}

// container is the one at a place of the config, or nil.
func (g *guest) container(index int) *crun.Container {
	g.runningMu.Lock()
	defer g.runningMu.Unlock()
	return g.running[index]
}

// stopContainers ends all of them side by side, each within its own grace.
func (g *guest) stopContainers() {
	g.runningMu.Lock()
	running := g.running
	g.running = nil
	g.runningMu.Unlock()
	var all sync.WaitGroup
	for _, c := range running {
		all.Add(1)
		go func(c *crun.Container) {
			defer all.Done()
			c.Stop()
		}(c)
	}
	all.Wait()
}
