package conf

import (
	"fmt"
	"strings"
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
	Networks     map[string]*Network `yaml:"networks"`
	Containers   []Container         `yaml:"containers"`
	Shim         Shim                `yaml:"shim"`
	VaultURL     string              `yaml:"vault-url"`
	KeyserverURL string              `yaml:"keyserver-url"`
}

// Network is a bridge that containers may share.
type Network struct {
	Egress string `yaml:"egress"`
}

// Healthcheck is a declared health check. What is zero has Docker's default.
type Healthcheck struct {
	Test        []string `yaml:"test"`
	Interval    Duration `yaml:"interval"`
	Timeout     Duration `yaml:"timeout"`
	Retries     int      `yaml:"retries"`
	StartPeriod Duration `yaml:"start_period"`
}

// Docker's defaults of a health check.
const (
	defaultInterval = 30 * time.Second
	defaultTimeout  = 30 * time.Second
	defaultRetries  = 3
)

// Every returns how often the check runs.
func (h *Healthcheck) Every() time.Duration {
	return orElse(time.Duration(h.Interval), defaultInterval)
}

// Limit returns how long one check may take.
func (h *Healthcheck) Limit() time.Duration { return orElse(time.Duration(h.Timeout), defaultTimeout) }

// Streak returns how many failures in a row make a container unhealthy.
func (h *Healthcheck) Streak() int {
	if h.Retries > 0 {
		return h.Retries
	}
	return defaultRetries
}

// Disabled tells whether the check is declared away.
func (h *Healthcheck) Disabled() bool { return len(h.Test) > 0 && h.Test[0] == "NONE" }

func orElse(value, fallback time.Duration) time.Duration {
	if value > 0 {
		return value
	}
	return fallback
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
	if w.Shim.UpstreamContainer == "" && len(w.Containers) > 0 {
		w.Shim.UpstreamContainer = w.Containers[0].Name
	}
	return &w, w.checkNetworks()
}

// checkNetworks refuses a container that joins what is not declared.
func (w *Workload) checkNetworks() error {
	for name := range w.Networks {
		if name == "" || name == ShimNetwork || len(name) > 15 || strings.ContainsAny(name, "/ .") {
			return fmt.Errorf("networks: %q is no name of a network", name)
		}
	}
	seen := map[string]bool{}
	for _, c := range w.Containers {
		if seen[c.Name] {
			return fmt.Errorf("containers: %q is there twice", c.Name)
		}
		seen[c.Name] = true
		for _, name := range c.Networks {
			if _, declared := w.Networks[name]; !declared {
				return fmt.Errorf("containers %q: network %q is not declared", c.Name, name)
			}
		}
	}
	if up := w.Shim.UpstreamContainer; up != "" && !seen[up] {
		return fmt.Errorf("shim.upstream-container: there is no container %q", up)
	}
	return nil
}

// SecretNames are the secrets that the config declares, each once, in order.
func (w *Workload) SecretNames() []string {
	var names []string
	seen := map[string]bool{}
	add := func(name string) {
		if name != "" && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, c := range w.Containers {
		for _, name := range c.Secrets {
			add(name)
		}
	}
	for _, node := range append(append([]yaml.Node{}, w.Models...), w.Volumes...) {
		var keyed struct {
			Key string `yaml:"key-secret"`
		}
		if node.Decode(&keyed) == nil {
			add(keyed.Key)
		}
	}
	return names
}

// UsesVault tells whether declared secrets may come from elsewhere than the host.
func (w *Workload) UsesVault() bool { return w.VaultURL != "" || w.KeyserverURL != "" }
