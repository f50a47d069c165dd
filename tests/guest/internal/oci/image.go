// Package oci makes the runtime specification of a container out of its image and
// what the workload config says of it. Pure, but for reading the image's user table.
package oci

import (
	"encoding/json"
	"fmt"
	"time"

	"refguest/internal/conf"
)

// Image is what this guest uses of an image's configuration.
type Image struct {
	Config struct {
		User        string              `json:"User"`
		Env         []string            `json:"Env"`
		Entrypoint  []string            `json:"Entrypoint"`
		Cmd         []string            `json:"Cmd"`
		WorkingDir  string              `json:"WorkingDir"`
		StopSignal  string              `json:"StopSignal"`
		Healthcheck *imageCheck         `json:"Healthcheck"`
		Volumes     map[string]struct{} `json:"Volumes"`
	} `json:"config"`
}

// imageCheck has its times in nanoseconds, as Docker writes them.
type imageCheck struct {
	Test        []string `json:"Test"`
	Interval    int64    `json:"Interval"`
	Timeout     int64    `json:"Timeout"`
	StartPeriod int64    `json:"StartPeriod"`
	Retries     int      `json:"Retries"`
}

// ParseImage reads an image's configuration.
func ParseImage(raw []byte) (*Image, error) {
	var image Image
	if err := json.Unmarshal(raw, &image); err != nil {
		return nil, fmt.Errorf("the image's configuration: %w", err)
	}
	return &image, nil
}

// Check is the health check that runs: the declared one, else the image's own. Nil if
// there is none, or it is declared away.
func (i *Image) Check(c *conf.Container) *conf.Healthcheck {
	check := c.Healthcheck
	if own := i.Config.Healthcheck; check == nil && own != nil {
		check = &conf.Healthcheck{
			Test: own.Test, Retries: own.Retries,
			Interval:    conf.Duration(time.Duration(own.Interval)),
			Timeout:     conf.Duration(time.Duration(own.Timeout)),
			StartPeriod: conf.Duration(time.Duration(own.StartPeriod)),
		}
	}
	if check == nil || check.Disabled() {
		return nil
	}
	if len(check.Test) == 0 { // an empty test is the image's own
		if i.Config.Healthcheck == nil {
			return nil
		}
		inherited := *check
		inherited.Test = i.Config.Healthcheck.Test
		return &inherited
	}
	return check
}

// CheckArgs are the arguments of a health check's program.
func CheckArgs(check *conf.Healthcheck) ([]string, error) {
	switch {
	case len(check.Test) > 1 && check.Test[0] == "CMD":
		return check.Test[1:], nil
	case len(check.Test) == 2 && check.Test[0] == "CMD-SHELL":
		return []string{"/bin/sh", "-c", check.Test[1]}, nil
	default:
		return nil, fmt.Errorf("healthcheck.test begins with neither CMD nor CMD-SHELL")
	}
}

// Args are what a container runs. As in Docker, another entrypoint than the image's
// goes without the image's command.
func (i *Image) Args(c *conf.Container) ([]string, error) {
	entrypoint, command := i.Config.Entrypoint, i.Config.Cmd
	if len(c.Entrypoint) > 0 {
		entrypoint, command = c.Entrypoint, nil
	}
	if len(c.Command) > 0 {
		command = c.Command
	}
	args := append(append([]string{}, entrypoint...), command...)
	if len(args) == 0 {
		return nil, fmt.Errorf("neither the image nor the config says what to run")
	}
	return args, nil
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Env is a container's environment: the image's, the config's over it, and the secrets.
// What the host did not supply is absent. Variables that steer the guest are its own.
func (i *Image) Env(c *conf.Container, ext *conf.External, hostname, home string) []string {
	env := variables{}
	env.set(defaultPath)
	env.set("HOSTNAME=" + hostname)
	env.set("HOME=" + home)
	for _, entry := range i.Config.Env {
		env.set(entry)
	}
	for _, entry := range c.Env {
		value, given := entry.Value, entry.Fixed
		if !given {
			value, given = ext.Env[entry.Name], hasKey(ext.Env, entry.Name)
		}
		if given && !conf.Steers(entry.Name) {
			env.set(entry.Name + "=" + value)
		}
	}
	for _, name := range c.Secrets {
		if value := ext.Secret(name); value != "" {
			env.set(name + "=" + value)
		}
	}
	return env.list
}

func hasKey(values map[string]string, name string) bool {
	_, ok := values[name]
	return ok
}
