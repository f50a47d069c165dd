package crun

import (
	"testing"
	"time"

	"refguest/internal/conf"
)

func TestPoliciesAreDockers(t *testing.T) {
	for _, c := range []struct {
		text           string
		code, restarts int
		again          bool
	}{
		{"", 1, 0, false}, {"no", 1, 0, false}, {"always", 0, 99, true}, {"unless-stopped", 0, 5, true},
		{"on-failure", 0, 0, false}, {"on-failure", 1, 99, true}, {"on-failure:3", 1, 2, true},
		{"on-failure:3", 1, 3, false},
	} {
		policy, err := ParsePolicy(c.text)
		if err != nil || policy.Again(c.code, c.restarts) != c.again {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, text := range []string{"sometimes", "on-failure:", "on-failure:0", "on-failure:x", "always:3", "no:1"} {
		if _, err := ParsePolicy(text); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func TestThePauseGrowsAndBeginsAgainAfterALongRun(t *testing.T) {
	pause := time.Duration(0)
	for _, want := range []time.Duration{100, 200, 400, 800} {
		if pause = nextPause(pause, time.Second); pause != want*time.Millisecond {
			t.Errorf("%s, not %d ms", pause, want)
		}
	}
	if got := nextPause(50*time.Second, time.Second); got != time.Minute {
		t.Error(got)
	}
	if got := nextPause(time.Minute, 11*time.Second); got != 100*time.Millisecond {
		t.Error(got)
	}
}

func TestHealthIsDockers(t *testing.T) {
	check := &conf.Healthcheck{StartPeriod: conf.Duration(10 * time.Second), Retries: 2}
	health := Health{Status: Starting}
	for _, c := range []struct {
		age    time.Duration
		exit   int
		status string
		streak int
	}{
		{time.Second, 1, Starting, 0}, {11 * time.Second, 1, Starting, 1}, {12 * time.Second, 1, Unhealthy, 2},
		{13 * time.Second, 0, Healthy, 0}, {14 * time.Second, 1, Healthy, 1}, {15 * time.Second, 0, Healthy, 0},
	} {
		if health.fold(check, c.age, c.exit); health.Status != c.status || health.FailingStreak != c.streak {
			t.Errorf("%+v: %+v", c, health)
		}
	}
}
