package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"refguest/internal/conf"
	"refguest/internal/crun"
	"refguest/internal/stages"
)

// The phases of a container's start, each a substage of its own.
const (
	phasePull    = "pull"
	phaseStart   = "start"
	phaseHealthy = "healthy"
)

// launches are the substages of stage `containers`: one a container, each with its
// phases.
type launches struct {
	mu   sync.Mutex
	sub  []stages.Stage
	boot *stages.Tracker
}

func newLaunches(boot *stages.Tracker, containers []conf.Container) *launches {
	l := &launches{boot: boot}
	for i := range containers {
		phases := []stages.Stage{{Name: phasePull, Status: stages.Pending}, {Name: phaseStart, Status: stages.Pending}}
		if containers[i].Checked() {
			phases = append(phases, stages.Stage{Name: phaseHealthy, Status: stages.Pending})
		}
		l.sub = append(l.sub, stages.Stage{Name: containers[i].Name, Status: stages.Pending, Stages: phases})
	}
	l.publish()
	return l
}

// publish hands out a copy, for what is published may be read at any time.
func (l *launches) publish() {
	out := make([]stages.Stage, len(l.sub))
	for i, s := range l.sub {
		s.Stages = append([]stages.Stage(nil), s.Stages...)
		out[i] = s
	}
	l.boot.Sub("containers", out)
}

// settle records the end of a phase, or of the whole container if it is empty.
func (l *launches) settle(index int, phase string, begin time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	target := &l.sub[index]
	for i := range target.Stages {
		if target.Stages[i].Name == phase {
			target = &target.Stages[i]
			break
		}
	}
	target.Status, target.DurationNS = stages.OK, time.Since(begin).Nanoseconds()
	if err != nil {
		target.Status, target.Detail = stages.Failed, err.Error()
	}
	l.publish()
}

// startContainers starts all of them side by side and, as the public guest does,
// waits within the boot until each that has a health check is healthy.
func (g *guest) startContainers() (outcome, error) {
	p := g.current()
	count := len(p.workload.Containers)
	atomic.StoreInt64(&g.containersAge, int64(g.age()))
	begun := newLaunches(g.boot, p.workload.Containers)
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range p.workload.Containers {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			begin := time.Now()
			errs[i] = g.launch(p, i, begun)
			begun.settle(i, "", begin, errs[i])
		}(i)
	}
	all.Wait()
	if err := joined(p.workload.Containers, errs); err != nil {
		return outcome{}, err
	}
	if c := g.upstreamContainer(); c == nil || c.Played() {
		for _, port := range p.workload.CVMNetwork.InboundPorts {
			if err := g.servePlain(port); err != nil {
				return outcome{}, err
			}
		}
	}
	if count == 0 {
		return skipped("no containers")
	}
	return done("%d started, inbound ports %v", count, p.workload.CVMNetwork.InboundPorts)
}

// joined names each container that failed, and why.
func joined(containers []conf.Container, errs []error) error {
	var failures []string
	for i, err := range errs {
		if err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", containers[i].Name, err))
		}
	}
	if len(failures) == 0 {
		return nil
	}
	return errors.New(strings.Join(failures, "; "))
}

// launch takes one container through its phases.
func (g *guest) launch(p *plan, index int, begun *launches) error {
	c := &p.workload.Containers[index]
	begin := time.Now()
	if !c.Played() {
		return g.launchReal(p, index, begun)
	}
	begun.settle(index, phasePull, begin, nil)
	begun.settle(index, phaseStart, begin, nil)
	if !c.Checked() || !p.table.ContainersBoot {
		return nil
	}
	err := g.untilHealthy(p.table.HealthPoll, func() (string, string) { return g.playedHealth(p, index).Status, "" })
	begun.settle(index, phaseHealthy, begin, err)
	return err
}

// launchReal runs one. An image's own health check runs too, but is not waited for.
func (g *guest) launchReal(p *plan, index int, begun *launches) error {
	c := &p.workload.Containers[index]
	begin := time.Now()
	image, rootfs, err := readImage(c)
	if err != nil {
		err = fmt.Errorf("pulling image: %w", err)
	}
	begun.settle(index, phasePull, begin, err)
	if err != nil {
		return err
	}
	begin = time.Now()
	container, err := g.create(p, index, image, rootfs)
	if err == nil {
		err = g.publish(p, c)
	}
	if err != nil {
		err = fmt.Errorf("starting: %w", err)
	}
	begun.settle(index, phaseStart, begin, err)
	if err != nil || image.Check(c) == nil || !c.Checked() || !p.table.ContainersBoot {
		return err
	}
	begin = time.Now()
	err = g.untilHealthy(p.table.HealthPoll, func() (string, string) {
		state := container.State()
		return state.Health.Status, lastWords(state)
	})
	begun.settle(index, phaseHealthy, begin, err)
	return err
}

// lastWords are what the last health check said, as the public guest tells them.
func lastWords(state crun.State) string {
	switch {
	case state.Health.LastOutput != "":
		return state.Health.LastOutput
	case !state.Health.LastEnd.IsZero():
		return fmt.Sprintf("exit %d", state.Health.LastExit)
	default:
		return ""
	}
}

// untilHealthy polls a container's health, and what it said last, until there is a
// verdict.
func (g *guest) untilHealthy(pause time.Duration, health func() (status, said string)) error {
	for {
		switch status, said := health(); status {
		case crun.Healthy:
			return nil
		case crun.Unhealthy:
			return errors.New(orElse(said, crun.Unhealthy))
		}
		select {
		case <-g.stopped:
			return errors.New("the guest is going down")
		case <-time.After(pause + time.Millisecond):
		}
	}
}
