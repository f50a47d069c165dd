// Package crun runs containers with the program of that name, and watches them as
// Docker would: restarts, health checks, kills for want of memory.
package crun

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"refguest/internal/conf"
	"refguest/internal/machine"
	"refguest/internal/oci"
)

// Wanted is all that it takes to run a container.
type Wanted struct {
	ID      string
	Config  *conf.Container
	Check   *conf.Healthcheck
	Place   oci.Place
	Policy  Policy
	Lower   string // the image's files
	Work    string // a directory of its own, for what it writes
	Output  io.Writer
	StopsBy string
	Grace   time.Duration
}

// State is what is told of a container.
type State struct {
	Status    string
	Restarts  int
	OOMKilled bool
	ExitCode  int
	Error     string
	Started   time.Time
	Finished  time.Time
	Health    *Health
}

// The statuses of a container, as Docker has them.
const (
	Created    = "created"
	Running    = "running"
	Restarting = "restarting"
	Exited     = "exited"
)

// Container is one that was made.
type Container struct {
	wanted Wanted
	mu     sync.Mutex
	state  State
	pid    int
	ending bool
	ended  chan struct{} // closed once it runs no more, nor ever will
	wake   chan struct{} // closed when it shall be started no more
}

// New lays the container's file system: the image below, a directory of memory above.
func New(wanted Wanted) (*Container, error) {
	upper, work := filepath.Join(wanted.Work, "upper"), filepath.Join(wanted.Work, "work")
	for _, directory := range []string{upper, work, wanted.Place.Rootfs} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return nil, err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", wanted.Lower, upper, work)
	if err := syscall.Mount("overlay", wanted.Place.Rootfs, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("its file system: %w", err)
	}
	c := &Container{wanted: wanted, ended: make(chan struct{}), wake: make(chan struct{})}
	c.state = State{Status: Created}
	return c, c.writeBundle()
}

// Start runs it, and goes on as its restart policy says until Stop.
func (c *Container) Start() error {
	if err := c.launch(); err != nil {
		c.set(func(s *State) { s.Error = err.Error() })
		close(c.ended)
		return err
	}
	go c.supervise()
	return nil
}

// ID is its identifier.
func (c *Container) ID() string { return c.wanted.ID }

// State is how it is now.
func (c *Container) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.state
	if state.Health != nil {
		health := *state.Health
		state.Health = &health
	}
	return state
}

// Stop ends it by its own signal, and by force after its grace.
func (c *Container) Stop() {
	c.mu.Lock()
	ending := c.ending
	c.ending = true
	c.mu.Unlock()
	if !ending {
		close(c.wake)
	}
	c.signal(c.wanted.StopsBy)
	select {
	case <-c.ended:
	case <-time.After(c.wanted.Grace):
		c.signal("KILL")
		<-c.ended
	}
}

// launch starts one run of it.
func (c *Container) launch() error {
	pid, err := c.create()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.pid = pid
	c.state.Status, c.state.Started, c.state.Error = Running, time.Now(), ""
	c.state.Health = nil
	if c.wanted.Check != nil {
		c.state.Health = &Health{Status: Starting}
	}
	c.mu.Unlock()
	return nil
}

// supervise waits for each run's end, and begins another as long as the policy says so.
func (c *Container) supervise() {
	defer close(c.ended)
	var pause time.Duration
	for {
		over := make(chan struct{})
		if c.wanted.Check != nil {
			go c.watchHealth(over)
		}
		code, oom := c.wait()
		close(over)
		began := c.State().Started
		again := c.finish(code, oom)
		c.remove()
		if !again {
			return
		}
		pause = nextPause(pause, time.Since(began))
		select {
		case <-c.wake:
			c.set(func(s *State) { s.Status = Exited })
			return
		case <-time.After(pause):
		}
		if err := c.launch(); err != nil {
			c.set(func(s *State) { s.Status, s.Error = Exited, err.Error() })
			return
		}
	}
}

// finish records a run's end, and tells whether there is to be another.
func (c *Container) finish(code int, oom bool) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	again = !c.ending && c.wanted.Policy.Again(code, c.state.Restarts)
	c.state.Status, c.state.ExitCode, c.state.OOMKilled = Exited, code, oom
	c.state.Finished = time.Now()
	if c.state.Health != nil {
		c.state.Health.Status = Unhealthy // as Docker has it of what does not run
	}
	if again {
		c.state.Status = Restarting
		c.state.Restarts++
	}
	return again
}

func (c *Container) set(change func(*State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
}

// wait returns the exit code of the running program, 128 and the signal's number for
// one that a signal ended, and whether the kernel killed for want of memory.
func (c *Container) wait() (code int, oom bool) {
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	code = status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return code, machine.OOMKills(c.wanted.Place.Cgroup) > 0
}
