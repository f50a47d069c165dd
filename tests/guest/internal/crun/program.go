package crun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"refguest/internal/oci"
)

const (
	program     = "/usr/bin/crun"
	stateRoot   = "/run/crun"
	outputLimit = 4096
)

func (c *Container) command(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", stateRoot, "--cgroup-manager", "cgroupfs"}
	return exec.CommandContext(ctx, program, append(global, args...)...)
}

// writeBundle writes the specification where crun looks for it.
func (c *Container) writeBundle() error {
	spec, err := oci.Spec(c.wanted.Config, c.wanted.Place)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.wanted.Work, "config.json"), raw, 0o600)
}

// create makes and starts the container, and returns the process id of its program,
// whose parent the first process of the guest then is.
func (c *Container) create() (int, error) {
	pidFile := filepath.Join(c.wanted.Work, "pid")
	output, input, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	go forward(output, c.wanted.Output)
	cmd := c.command(context.Background(), "--log", filepath.Join(c.wanted.Work, "log"),
		"create", "--bundle", c.wanted.Work, "--pid-file", pidFile, c.wanted.ID)
	cmd.Stdout, cmd.Stderr = input, input
	err = cmd.Run()
	input.Close()
	if err != nil {
		return 0, c.complaint(err, "")
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, err
	}
	var said bytes.Buffer
	start := c.command(context.Background(), "start", c.wanted.ID)
	start.Stderr = &said
	if err := start.Run(); err != nil {
		c.remove()
		return 0, c.complaint(err, said.String())
	}
	return pid, nil
}

// complaint is what crun said of a failure.
func (c *Container) complaint(err error, said string) error {
	logged, _ := os.ReadFile(filepath.Join(c.wanted.Work, "log"))
	text := strings.TrimSpace(string(logged) + said)
	if text == "" {
		return err
	}
	return errors.New(text)
}

// remove makes room for another run.
func (c *Container) remove() {
	_ = c.command(context.Background(), "delete", "--force", c.wanted.ID).Run()
	_ = os.Remove(filepath.Join(c.wanted.Work, "log"))
}

func (c *Container) signal(name string) {
	_ = c.command(context.Background(), "kill", c.wanted.ID, name).Run()
}

// exec runs a program in the container, for at most that time. Without an exit code of
// its own it is 1, as for Docker.
func (c *Container) exec(args []string, limit time.Duration) (code int, output string) {
	at := c.wanted.Place
	at.Arguments = args
	process, err := oci.Process(c.wanted.Config, at)
	if err != nil {
		return 1, err.Error()
	}
	raw, _ := json.Marshal(process)
	file, pidFile := filepath.Join(c.wanted.Work, "check.json"), filepath.Join(c.wanted.Work, "check.pid")
	_ = os.Remove(pidFile)
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return 1, err.Error()
	}
	// Into a file: a pipe would be waited for as long as anything in the container holds it.
	said, err := os.Create(filepath.Join(c.wanted.Work, "check.out"))
	if err != nil {
		return 1, err.Error()
	}
	defer said.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := c.command(ctx, "exec", "--process", file, "--pid-file", pidFile, c.wanted.ID)
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Run()
	output = firstOf(said)
	if ctx.Err() != nil {
		kill(pidFile)
		return -1, fmt.Sprintf("Health check exceeded timeout (%s)", limit)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, output
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode(), output
	default:
		return 1, output
	}
}

func firstOf(file *os.File) string {
	raw := make([]byte, outputLimit)
	n, _ := file.ReadAt(raw, 0)
	return strings.TrimSpace(string(raw[:n]))
}

// kill ends what a check left behind.
func kill(pidFile string) {
	raw, _ := os.ReadFile(pidFile)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
