package stages

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func silent(string, ...interface{}) {}

func TestStagesBeginPendingInTheKnownOrder(t *testing.T) {
	state := NewTracker(time.Unix(0, 0), silent).Snapshot()
	for i, stage := range state.Stages {
		if stage.Name != Order[i] || stage.Status != Pending {
			t.Errorf("%+v", stage)
		}
	}
	if state.Verdict() != Pending || !state.CompletedAt.IsZero() {
		t.Errorf("%+v", state)
	}
	raw, _ := json.Marshal(state)
	if !strings.HasPrefix(string(raw), `{"stages":[{"name":"config","status":"pending","duration_ns":0}`) {
		t.Errorf("%s", raw)
	}
}

func TestAllSettledIsComplete(t *testing.T) {
	tracker := NewTracker(time.Unix(0, 0), silent)
	for _, name := range Order {
		tracker.Settle(name, OK, "", time.Second)
	}
	state := tracker.Snapshot()
	if state.Verdict() != OK || state.CompletedAt.IsZero() || state.Stages[3].DurationNS != 1e9 {
		t.Errorf("%+v", state)
	}
}

func TestAFailureSkipsTheRest(t *testing.T) {
	tracker := NewTracker(time.Unix(0, 0), silent)
	tracker.Settle("config", OK, "", 0)
	tracker.Settle("network", Failed, "why", 0)
	if tracker.Snapshot().Verdict() != Failed {
		t.Error("not failed")
	}
	tracker.SkipRest()
	state := tracker.Snapshot()
	if state.Verdict() != Failed || tracker.StatusOf("shim") != Skipped || tracker.StatusOf("config") != OK {
		t.Errorf("%+v", state)
	}
	if state.CompletedAt.IsZero() {
		t.Error("not complete")
	}
}
