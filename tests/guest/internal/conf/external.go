package conf

import (
	"errors"
	"net"
	"strings"

	"gopkg.in/yaml.v3"
)

// External is the unmeasured configuration that the host writes per launch.
type External struct {
	Env      map[string]string
	Secrets  map[string]string
	Metadata map[string]string
	Address  net.IPNet
	Gateway  net.IP
	// Strange are members of `network` that no guest knows.
	Strange []string
}

// BehaviourPrefix marks the variables that steer the reference guest. Only they
// may override a value that the measured config fixes.
const BehaviourPrefix = "GUEST_"

// errExternal carries no detail of the parser, whose messages quote the text:
// this document holds secrets.
var errExternal = errors.New("the external config is not valid YAML of the expected shape")

// ParseExternal parses the payload of the external config disk. Its errors
// never quote the document.
func ParseExternal(payload []byte) (*External, error) {
	var raw struct {
		Env      map[string]yaml.Node `yaml:"env"`
		Secrets  map[string]yaml.Node `yaml:"secrets"`
		Metadata map[string]yaml.Node `yaml:"metadata"`
		Network  struct {
			Address string               `yaml:"address"`
			Gateway string               `yaml:"gateway"`
			Others  map[string]yaml.Node `yaml:",inline"`
		} `yaml:"network"`
	}
	if err := yaml.Unmarshal(payload, &raw); err != nil {
		return nil, errExternal
	}
	ext := &External{}
	var strange int
	ext.Metadata, _ = scalars(raw.Metadata) // fields of other shapes are not for this guest
	ext.Env, strange = scalars(raw.Env)
	if strange > 0 {
		return nil, errExternal
	}
	ext.Secrets, strange = scalars(raw.Secrets)
	if strange > 0 {
		return nil, errExternal
	}
	for name := range raw.Network.Others {
		ext.Strange = append(ext.Strange, name)
	}
	return ext, ext.setNetwork(raw.Network.Address, raw.Network.Gateway)
}

// scalars keeps the scalar values and counts the others; null is left out.
func scalars(nodes map[string]yaml.Node) (out map[string]string, strange int) {
	out = make(map[string]string, len(nodes))
	for name, node := range nodes {
		switch {
		case node.Kind != yaml.ScalarNode:
			strange++
		case node.Tag != "!!null":
			out[name] = node.Value
		}
	}
	return out, strange
}

func (e *External) setNetwork(address, gateway string) error {
	ip, subnet, err := net.ParseCIDR(address)
	if err != nil || ip.To4() == nil {
		return errors.New("network.address is not an IPv4 address with a prefix")
	}
	if prefix, _ := subnet.Mask.Size(); prefix > 30 {
		return errors.New("network.address: the prefix is longer than 30")
	}
	gw := net.ParseIP(gateway).To4()
	if gw == nil || !subnet.Contains(gw) || gw.Equal(ip) {
		return errors.New("network.gateway is not another address of the same subnet")
	}
	e.Address, e.Gateway = net.IPNet{IP: ip.To4(), Mask: subnet.Mask}, gw
	return nil
}

// Secret returns a secret's value. The text `null` counts as none, as an empty one does.
func (e *External) Secret(name string) string {
	if value := e.Secrets[name]; value != "null" {
		return value
	}
	return ""
}

// Environment is what the workload sees: values fixed by the measured config
// win, names without a value take the external one, and everything else of the
// external config is added. Behaviour variables alone are overridden from
// outside, so that a test can change them without another release.
func Environment(w *Workload, ext *External) map[string]string {
	env := map[string]string{}
	for name, value := range ext.Env {
		env[name] = value
	}
	for _, c := range w.Containers {
		for _, entry := range c.Env {
			_, outside := ext.Env[entry.Name]
			if entry.Fixed && !(outside && strings.HasPrefix(entry.Name, BehaviourPrefix)) {
				env[entry.Name] = entry.Value
			}
		}
	}
	return env
}

// MissingSecrets are the declared secrets that the host did not supply. Where it is
// strict, an empty value and the text `null` are no supply either.
func MissingSecrets(w *Workload, ext *External, strict bool) []string {
	var missing []string
	for _, name := range w.SecretNames() {
		_, given := ext.Secrets[name]
		if !given || (strict && ext.Secret(name) == "") {
			missing = append(missing, name)
		}
	}
	return missing
}

// Steers tells whether a variable is for the guest and not for its workload.
func Steers(name string) bool { return strings.HasPrefix(name, BehaviourPrefix) }
