package behaviour

import (
	"strconv"
	"strings"
	"time"
)

// Manners are what the public guest does in every boot. Each has its variable, so
// that a test can have a guest without it.
type Manners struct {
	Early443         bool
	ShimRestart      time.Duration
	ShimPoll         time.Duration
	NeedsDomain      bool
	DummyLocalhost   bool
	LateKey          bool
	ContainersBoot   bool
	HealthPoll       time.Duration
	Parks            bool
	ShimRules        bool
	StrictNetwork    bool
	StrictSecrets    bool
	GuardsMetrics    bool
	DebugNeedsHVC    bool
	Console          bool
	IgnoreACPI       bool
	APIKey           string
	HealthHost       string
	ShimRestartAfter time.Duration
}

// The first image version whose power button is heard, and whose shim shows the
// identity as soon as there is a certificate.
var newManners = [2]int{0, 12}

// publicManners are the defaults, all of them: the public guest's, but for its pauses,
// which are short so that a test need not wait for them. There the shim is down for
// 2 s, looks every second (newer images: every 50 ms), and health every 5 s.
func publicManners(imageVersion string) Manners {
	return Manners{
		Early443:       true,
		ShimRestart:    300 * time.Millisecond,
		ShimPoll:       100 * time.Millisecond,
		NeedsDomain:    true,
		DummyLocalhost: true,
		LateKey:        olderThan(imageVersion, newManners),
		ContainersBoot: true,
		HealthPoll:     100 * time.Millisecond,
		Parks:          true,
		ShimRules:      true,
		StrictNetwork:  true,
		StrictSecrets:  true,
		GuardsMetrics:  true,
		DebugNeedsHVC:  true,
		Console:        false,
		IgnoreACPI:     olderThan(imageVersion, newManners),
	}
}

func (m *Manners) readers() map[string]func(string) error {
	return map[string]func(string) error{
		"GUEST_EARLY_443":            flag(&m.Early443),
		"GUEST_SHIM_RESTART_S":       seconds(&m.ShimRestart),
		"GUEST_SHIM_RESTART_AFTER_S": seconds(&m.ShimRestartAfter),
		"GUEST_SHIM_POLL_S":          seconds(&m.ShimPoll),
		"GUEST_NEEDS_DOMAIN":         flag(&m.NeedsDomain),
		"GUEST_DUMMY_LOCALHOST":      flag(&m.DummyLocalhost),
		"GUEST_LATE_KEY":             flag(&m.LateKey),
		"GUEST_CONTAINERS_IN_BOOT":   flag(&m.ContainersBoot),
		"GUEST_HEALTH_POLL_S":        seconds(&m.HealthPoll),
		"GUEST_PARKS":                flag(&m.Parks),
		"GUEST_SHIM_RULES":           flag(&m.ShimRules),
		"GUEST_STRICT_NETWORK":       flag(&m.StrictNetwork),
		"GUEST_STRICT_SECRETS":       flag(&m.StrictSecrets),
		"GUEST_GUARDS_METRICS":       flag(&m.GuardsMetrics),
		"GUEST_DEBUG_NEEDS_HVC":      flag(&m.DebugNeedsHVC),
		"GUEST_CONSOLE":              flag(&m.Console),
		"GUEST_IGNORE_ACPI":          flag(&m.IgnoreACPI),
		"GUEST_API_KEY":              text(&m.APIKey),
		"GUEST_HEALTH_HOST":          text(&m.HealthHost),
	}
}

// olderThan compares major and minor. A version that cannot be read is new.
func olderThan(version string, than [2]int) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	for i, limit := range than {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n > limit {
			return false
		}
		if n < limit {
			return true
		}
	}
	return false
}
