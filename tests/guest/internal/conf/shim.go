package conf

import "strings"

// ShimNetwork is the network between the shim and its upstream container. No
// config may declare it.
const ShimNetwork = "shim-net"

const defaultControlPlane = "https://api.tinfoil.sh"

// Shim is what stands before the workload on 443.
type Shim struct {
	UpstreamPort      int       `yaml:"upstream-port"`
	UpstreamContainer string    `yaml:"upstream-container"`
	Paths             []string  `yaml:"paths"`
	Authenticated     bool      `yaml:"authenticated"`
	Endpoints         *[]string `yaml:"authenticated-endpoints"`
	ControlPlane      *string   `yaml:"control-plane"`
	DummyAttestation  bool      `yaml:"dummy-attestation"`
	RateLimit         float64   `yaml:"rate-limit"`
}

// Lets tells whether the shim lets a path through. Without a list all are.
func (s *Shim) Lets(path string) bool { return len(s.Paths) == 0 || covered(s.Paths, path) }

// Counts tells whether every request must carry a key, for it is counted by that.
func (s *Shim) Counts() bool { return s.RateLimit > 0 }

// Guards tells whether a path needs an API key that is looked at. The endpoints that
// are guarded by default are those of the public shim.
func (s *Shim) Guards(path string) bool {
	plane := defaultControlPlane
	if s.ControlPlane != nil {
		plane = *s.ControlPlane
	}
	switch {
	case !s.Authenticated || plane == "":
		return false
	case s.Endpoints == nil:
		return path == "/v1/chat/completions"
	default:
		return covered(*s.Endpoints, path)
	}
}

// covered follows the public shim: a pattern is the path itself, or ends in `*`
// and then covers what lies under it, at the boundary of a segment.
func covered(patterns []string, path string) bool {
	for _, pattern := range patterns {
		prefix, wild := strings.TrimSuffix(pattern, "*"), strings.HasSuffix(pattern, "*")
		switch {
		case !wild && pattern == path:
			return true
		case wild && strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix):
			return true
		case wild && !strings.HasSuffix(prefix, "/") && (path == prefix || strings.HasPrefix(path, prefix+"/")):
			return true
		}
	}
	return false
}
