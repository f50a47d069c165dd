package conf

import (
	"fmt"
	"time"

	"gopkg.in/yaml.v3"
)

// Workload is what this guest uses of tinfoil-config.yml. Fields that it does
// not know are tolerated.
type Workload struct {
	CVMVersion string      `yaml:"cvm-version"`
	Models     []yaml.Node `yaml:"models"`
	Volumes    []yaml.Node `yaml:"volumes"`
	CVMNetwork struct {
		InboundPorts []int `yaml:"inbound-ports"`
	} `yaml:"cvm-network"`
	Containers []Container `yaml:"containers"`
}

// Container is one declared container.
type Container struct {
	Name        string       `yaml:"name"`
	Image       string       `yaml:"image"`
	Env         []EnvEntry   `yaml:"env"`
	Secrets     []string     `yaml:"secrets"`
	Restart     string       `yaml:"restart"`
	Registry    *yaml.Node   `yaml:"registry"`
	Healthcheck *Healthcheck `yaml:"healthcheck"`
}

// Healthcheck holds the times of a declared health check.
type Healthcheck struct {
	Interval    Duration `yaml:"interval"`
	StartPeriod Duration `yaml:"start_period"`
}

// Duration is a Go duration ("30s", "1m30s") or a number of seconds.
type Duration time.Duration

// UnmarshalYAML accepts both spellings.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	parsed, err := time.ParseDuration(node.Value)
	if err != nil {
		if parsed, err = time.ParseDuration(node.Value + "s"); err != nil {
			return fmt.Errorf("line %d: %q is not a duration", node.Line, node.Value)
		}
	}
	*d = Duration(parsed)
	return nil
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

// ParseWorkload parses the payload of the config disk.
func ParseWorkload(payload []byte) (*Workload, error) {
	var w Workload
	if err := yaml.Unmarshal(payload, &w); err != nil {
		return nil, err
	}
	for _, port := range w.CVMNetwork.InboundPorts {
		if port < 1 || port > 65535 || port == 443 {
			return nil, fmt.Errorf("cvm-network.inbound-ports: %d cannot be opened", port)
		}
	}
	return &w, nil
}

// SecretNames are the secrets that the containers declare, each once, in order.
func (w *Workload) SecretNames() []string {
	var names []string
	seen := map[string]bool{}
	for _, c := range w.Containers {
		for _, name := range c.Secrets {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

// UsesRegistryAuth tells whether a container names registry credentials.
func (w *Workload) UsesRegistryAuth() bool {
	for _, c := range w.Containers {
		if c.Registry != nil {
			return true
		}
	}
	return false
}
