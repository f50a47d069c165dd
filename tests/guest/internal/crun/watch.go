package crun

import (
	"bufio"
	"io"
	"os"
	"time"

	"refguest/internal/oci"
)

// watchHealth checks one run of the container until that is over.
func (c *Container) watchHealth(over chan struct{}) {
	check := c.wanted.Check
	args, err := oci.CheckArgs(check)
	if err != nil {
		c.observe(over, time.Now(), 1, err.Error())
		return
	}
	for {
		state := c.State()
		select {
		case <-over:
			return
		case <-time.After(pauseBefore(check, time.Since(state.Started), state.Health.Status)):
		}
		began := time.Now()
		code, output := c.exec(args, check.Limit())
		c.observe(over, began, code, output)
	}
}

// observe folds one result in, unless the run that it is of is over.
func (c *Container) observe(over chan struct{}, began time.Time, code int, output string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-over:
		return
	default:
	}
	health := c.state.Health
	health.LastStart, health.LastEnd, health.LastOutput = began, time.Now(), output
	health.fold(c.wanted.Check, time.Since(c.state.Started), code)
}

// forward passes on what a container prints, line by line, and drops what nobody reads.
func forward(from *os.File, to io.Writer) {
	defer from.Close()
	lines := bufio.NewReaderSize(from, 4096)
	for {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		_, _ = to.Write(line)
	}
}
