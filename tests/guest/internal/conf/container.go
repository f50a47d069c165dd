package conf

import (
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Container is one declared container.
type Container struct {
	Name        string            `yaml:"name"`
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Entrypoint  []string          `yaml:"entrypoint"`
	WorkingDir  string            `yaml:"working_dir"`
	User        string            `yaml:"user"`
	StopSignal  string            `yaml:"stop_signal"`
	StopTimeout *int              `yaml:"stop_timeout"`
	Env         []EnvEntry        `yaml:"env"`
	Secrets     []string          `yaml:"secrets"`
	Networks    []string          `yaml:"networks"`
	Ports       []Published       `yaml:"ports"`
	Restart     string            `yaml:"restart"`
	ReadOnly    *bool             `yaml:"read_only"`
	Tmpfs       map[string]string `yaml:"tmpfs"`
	Memory      Size              `yaml:"memory"`
	ShmSize     Size              `yaml:"shm_size"`
	CPUs        float64           `yaml:"cpus"`
	PidsLimit   int64             `yaml:"pids_limit"`
	CapAdd      []string          `yaml:"cap_add"`
	Registry    *yaml.Node        `yaml:"registry"`
	Healthcheck *Healthcheck      `yaml:"healthcheck"`
}

// Played tells whether the image is only acted out: its registry is a name that
// nobody can have.
func (c *Container) Played() bool {
	host, _, found := strings.Cut(c.Image, "/")
	host, _, _ = strings.Cut(host, ":")
	return found && (strings.HasSuffix(host, ".example") || strings.HasSuffix(host, ".invalid"))
}

// Digest returns the digest of the image reference, `sha256:<64 hex>`.
func (c *Container) Digest() (string, error) {
	_, digest, found := strings.Cut(c.Image, "@")
	algorithm, hash, _ := strings.Cut(digest, ":")
	if !found || algorithm != "sha256" || len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != "" {
		return "", fmt.Errorf("image %q carries no sha256 digest", c.Image)
	}
	return digest, nil
}

// Checked tells whether the container is to be waited for until it is healthy.
func (c *Container) Checked() bool { return c.Healthcheck != nil && !c.Healthcheck.Disabled() }

// UsesRegistryAuth tells whether a container names registry credentials.
func (w *Workload) UsesRegistryAuth() bool {
	for _, c := range w.Containers {
		if c.Registry != nil {
			return true
		}
	}
	return false
}

// EnvEntry is an item of `env`: a bare name, whose value comes from the external
// config, or a one-key map with a fixed, measured value.
type EnvEntry struct {
	Name  string
	Value string
	Fixed bool
}

// UnmarshalYAML accepts both forms.
func (e *EnvEntry) UnmarshalYAML(node *yaml.Node) error {
	switch {
	case node.Kind == yaml.ScalarNode:
		*e = EnvEntry{Name: node.Value}
	case node.Kind == yaml.MappingNode && len(node.Content) == 2 && node.Content[1].Kind == yaml.ScalarNode:
		*e = EnvEntry{Name: node.Content[0].Value, Value: node.Content[1].Value, Fixed: true}
	default:
		return fmt.Errorf("line %d: an env entry is a name or a map of one name to one value", node.Line)
	}
	return nil
}

// Size is a number of bytes: a number, with a unit of 1024 behind it as Docker
// takes it (`64m`, `1.5g`, `2GiB`), or without one.
type Size int64

var sizeUnits = map[string]float64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

// UnmarshalYAML accepts both forms.
func (s *Size) UnmarshalYAML(node *yaml.Node) error {
	text := strings.ToLower(strings.TrimSpace(node.Value))
	number := strings.TrimRight(text, "bikmgt ")
	unit := strings.TrimSpace(text[len(number):])
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
	value, err := strconv.ParseFloat(number, 64)
	factor, known := sizeUnits[unit]
	if err != nil || !known || !(value >= 0 && value*factor < 1<<62) {
		return fmt.Errorf("line %d: %q is no number of bytes", node.Line, node.Value)
	}
	*s = Size(value * factor)
	return nil
}
