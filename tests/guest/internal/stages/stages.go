// Package stages records how far the boot has come, in the shape that the
// contract publishes at /.well-known/tinfoil-boot-stages.
package stages

import (
	"sync"
	"time"
)

// The closed set of stage statuses.
const (
	Pending = "pending"
	OK      = "ok"
	Skipped = "skipped"
	Warning = "warning"
	Failed  = "failed"
)

// Order is the known order of the stages.
var Order = []string{
	"config", "network", "identity", "cpu-attestation", "gpu-attestation", "certificate",
	"vault-secrets", "registry-auth", "firewall", "models", "containers", "shim",
}

// Stage is one step of the boot.
type Stage struct {
	Name       string  `json:"name"`
	Status     string  `json:"status"`
	DurationNS int64   `json:"duration_ns"`
	Detail     string  `json:"detail,omitempty"`
	Stages     []Stage `json:"stages,omitempty"`
}

// Who tells whose guest this is; the public one's says nothing of the kind.
const Who = "reference guest of enclave-agent"

// State is the published document. CompletedAt is Go's zero time until every
// stage is settled.
type State struct {
	Stages      []Stage   `json:"stages"`
	StartedAt   time.Time `json:"started_at"`
	CompletedAt time.Time `json:"completed_at"`
	Guest       string    `json:"guest"`
}

// Tracker holds the state; it may be read while the boot goes on.
type Tracker struct {
	mu    sync.Mutex
	state State
	print func(format string, args ...interface{})
}

// NewTracker has every known stage pending. It prints a line per settled stage.
func NewTracker(now time.Time, print func(format string, args ...interface{})) *Tracker {
	t := &Tracker{state: State{Guest: Who, StartedAt: now.UTC()}, print: print}
	for _, name := range Order {
		t.state.Stages = append(t.state.Stages, Stage{Name: name, Status: Pending})
	}
	return t
}

// Sub replaces the substages of a stage that goes on.
func (t *Tracker) Sub(name string, sub []Stage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.state.Stages {
		if s := &t.state.Stages[i]; s.Name == name {
			s.Stages = sub
		}
	}
}

// Settle records the outcome of a stage. The substages that it has stay, unless
// others are given.
func (t *Tracker) Settle(name, status, detail string, took time.Duration, sub ...Stage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	settled := true
	for i := range t.state.Stages {
		s := &t.state.Stages[i]
		if s.Name == name {
			if len(sub) == 0 {
				sub = s.Stages
			}
			*s = Stage{Name: name, Status: status, DurationNS: took.Nanoseconds(), Detail: detail, Stages: sub}
		}
		settled = settled && s.Status != Pending
	}
	if settled && t.state.CompletedAt.IsZero() {
		t.state.CompletedAt = time.Now().UTC()
	}
	t.print("boot stage %-15s %-7s %s", name, status, detail)
}

// SkipRest settles what is still pending after a failure.
func (t *Tracker) SkipRest() {
	for _, s := range t.Snapshot().Stages {
		if s.Status == Pending {
			t.Settle(s.Name, Skipped, "not run because boot failed", 0)
		}
	}
}

// Snapshot is a copy of the state.
func (t *Tracker) Snapshot() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.state
	out.Stages = append([]Stage(nil), t.state.Stages...)
	return out
}

// Verdict is `failed` if a stage failed, `pending` while one is pending, else `ok`.
func (s State) Verdict() string {
	verdict := OK
	for _, stage := range s.Stages {
		switch stage.Status {
		case Failed:
			return Failed
		case Pending:
			verdict = Pending
		}
	}
	return verdict
}

// SettledBut tells whether every stage but that one is settled.
func (t *Tracker) SettledBut(name string) bool {
	for _, stage := range t.Snapshot().Stages {
		if stage.Status == Pending && stage.Name != name {
			return false
		}
	}
	return true
}

// Done tells whether a stage is over and did not fail.
func (t *Tracker) Done(name string) bool {
	status := t.StatusOf(name)
	return status == OK || status == Skipped || status == Warning
}

// StatusOf is the status of one stage, empty if there is no such stage.
func (t *Tracker) StatusOf(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, stage := range t.state.Stages {
		if stage.Name == name {
			return stage.Status
		}
	}
	return ""
}
