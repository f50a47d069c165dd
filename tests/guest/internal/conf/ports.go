package conf

import (
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Published is a port of a container that the guest opens as its own.
type Published struct {
	Guest     int
	Container int
}

// UnmarshalYAML accepts a number, `"GUEST:CONTAINER"`, and either with `/tcp`.
func (p *Published) UnmarshalYAML(node *yaml.Node) error {
	text := strings.TrimSuffix(node.Value, "/tcp")
	guest, container, two := strings.Cut(text, ":")
	if !two {
		container = guest
	}
	for _, one := range []struct {
		text string
		into *int
	}{{guest, &p.Guest}, {container, &p.Container}} {
		n, err := strconv.Atoi(one.text)
		if node.Kind != yaml.ScalarNode || err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("line %d: a port is a number, or GUEST:CONTAINER", node.Line)
		}
		*one.into = n
	}
	return nil
}
