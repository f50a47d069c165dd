package crun

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"refguest/internal/conf"
)

// Policy says whether a container is started again when it ended.
type Policy struct {
	always  bool
	failure bool
	most    int // restarts after a failure; 0: no limit
}

// ParsePolicy reads Docker's words: no, always, unless-stopped, on-failure[:MOST].
func ParsePolicy(text string) (Policy, error) {
	word, most, limited := strings.Cut(text, ":")
	switch {
	case (word == "" || word == "no") && !limited:
		return Policy{}, nil
	case (word == "always" || word == "unless-stopped") && !limited:
		return Policy{always: true}, nil
	case word == "on-failure":
		policy := Policy{failure: true}
		if limited {
			n, err := strconv.Atoi(most)
			if err != nil || n < 1 {
				return Policy{}, fmt.Errorf("restart: %q is no number of restarts", most)
			}
			policy.most = n
		}
		return policy, nil
	default:
		return Policy{}, fmt.Errorf("restart: %q is no policy", text)
	}
}

// Again tells whether to start again after an end with this code, having restarted so
// often in a row.
func (p Policy) Again(code, restarts int) bool {
	if p.failure {
		return code != 0 && (p.most == 0 || restarts < p.most)
	}
	return p.always
}

// Docker's pauses before a restart: 100 ms, twice as long each time, at most a minute;
// from the start again after a run of 10 s.
const (
	firstPause  = 100 * time.Millisecond
	longest     = time.Minute
	settledRun  = 10 * time.Second
	earlyProbes = 5 * time.Second
)

func nextPause(pause, ran time.Duration) time.Duration {
	switch {
	case pause == 0 || ran >= settledRun:
		return firstPause
	case pause >= longest/2:
		return longest
	default:
		return 2 * pause
	}
}

// Health is what Docker makes of a series of checks.
type Health struct {
	Status        string
	FailingStreak int
	LastStart     time.Time
	LastEnd       time.Time
	LastExit      int
	LastOutput    string
}

// The words of a health.
const (
	Starting  = "starting"
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

// fold adds one result, so long after the container's start.
func (h *Health) fold(check *conf.Healthcheck, age time.Duration, exit int) {
	h.LastExit = exit
	switch {
	case exit == 0:
		h.Status, h.FailingStreak = Healthy, 0
	case h.Status == Starting && age < time.Duration(check.StartPeriod):
		// A failure within the start period counts only once it was healthy.
	default:
		h.FailingStreak++
		if h.FailingStreak >= check.Streak() {
			h.Status = Unhealthy
		}
	}
}

// pauseBefore is how long Docker waits before a check: within the start period it looks
// more often than it may be told to.
func pauseBefore(check *conf.Healthcheck, age time.Duration, status string) time.Duration {
	if status == Starting && age < time.Duration(check.StartPeriod) && check.Every() > earlyProbes {
		return earlyProbes
	}
	return check.Every()
}
