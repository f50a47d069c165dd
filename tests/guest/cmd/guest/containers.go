package main

import (
	"crypto/sha256"
	"encoding/hex"
	"sync/atomic"
	"time"

	"refguest/internal/conf"
	"refguest/internal/crun"
)

type containerList struct {
	ObservedAt  time.Time         `json:"observed_at"`
	Containers  []containerStatus `json:"containers"`
	Unavailable string            `json:"unavailable,omitempty"`
}

type containerStatus struct {
	Name          string           `json:"name"`
	ContainerID   string           `json:"container_id,omitempty"`
	Image         string           `json:"image"`
	Declared      bool             `json:"declared"`
	Played        bool             `json:"played,omitempty"`
	Created       bool             `json:"created"`
	Status        string           `json:"status,omitempty"`
	RestartCount  int              `json:"restart_count"`
	RestartPolicy string           `json:"restart_policy,omitempty"`
	OOMKilled     bool             `json:"oom_killed"`
	ExitCode      int              `json:"exit_code"`
	Error         string           `json:"error,omitempty"`
	StartedAt     string           `json:"started_at,omitempty"`
	FinishedAt    string           `json:"finished_at,omitempty"`
	Health        *containerHealth `json:"health,omitempty"`
}

type containerHealth struct {
	Status            string     `json:"status"`
	FailingStreak     int        `json:"failing_streak"`
	LastCheckStart    *time.Time `json:"last_check_start,omitempty"`
	LastCheckEnd      *time.Time `json:"last_check_end,omitempty"`
	LastCheckExitCode *int       `json:"last_check_exit_code,omitempty"`
}

// fill takes over how a container that runs is.
func (s *containerStatus) fill(c *crun.Container) {
	state := c.State()
	s.ContainerID, s.Created = c.ID(), true
	s.Status, s.RestartCount, s.OOMKilled = state.Status, state.Restarts, state.OOMKilled
	s.ExitCode, s.Error = state.ExitCode, state.Error
	s.StartedAt = state.Started.UTC().Format(time.RFC3339Nano)
	s.FinishedAt = state.Finished.UTC().Format(time.RFC3339Nano)
	if health := state.Health; health != nil {
		s.Health = &containerHealth{Status: health.Status, FailingStreak: health.FailingStreak}
		if !health.LastEnd.IsZero() {
			s.Health.LastCheckStart, s.Health.LastCheckEnd = &health.LastStart, &health.LastEnd
			s.Health.LastCheckExitCode = &health.LastExit
		}
	}
}

// containerList tells of the declared containers.
func (g *guest) containerList() containerList {
	list := containerList{ObservedAt: time.Now().UTC(), Containers: []containerStatus{}}
	p := g.current()
	if p == nil {
		list.Unavailable = "no valid workload config"
		return list
	}
	created := g.boot.Done("containers")
	for i, c := range p.workload.Containers {
		status := containerStatus{Name: c.Name, Image: c.Image, Declared: true, RestartPolicy: c.Restart}
		switch real := g.container(i); {
		case real != nil:
			status.fill(real)
		case created && c.Played():
			g.fillPlayed(&status, p, i)
		default:
			status.Error = "container not found"
		}
		list.Containers = append(list.Containers, status)
	}
	return list
}

// fillPlayed acts out the container at an index.
func (g *guest) fillPlayed(status *containerStatus, p *plan, index int) {
	sum := sha256.Sum256([]byte(status.Name + status.Image))
	status.ContainerID = hex.EncodeToString(sum[:])
	status.Created, status.Played = true, true
	status.Status = "running"
	status.StartedAt = g.start.UTC().Format(time.RFC3339Nano)
	age := g.age()
	if p.table.ContainerExited(age, status.Name, index, len(p.workload.Containers)) {
		status.Status = "exited"
		status.ExitCode = p.table.ContainerExitCode
		status.FinishedAt = g.start.Add(p.table.ContainerExitAfter).UTC().Format(time.RFC3339Nano)
	}
	status.Health = g.playedHealth(p, index)
}

// playedHealth is nil for a container without a check. One that exited is unhealthy,
// as Docker has it.
func (g *guest) playedHealth(p *plan, index int) *containerHealth {
	c, age := &p.workload.Containers[index], g.age()
	switch {
	case !c.Checked():
		return nil
	case p.table.ContainerExited(age, c.Name, index, len(p.workload.Containers)):
		return &containerHealth{Status: "unhealthy"}
	case p.table.Workload(age):
		return &containerHealth{Status: "healthy"}
	case p.table.Sick(age):
		return &containerHealth{Status: "unhealthy", FailingStreak: 1 + int((age-p.table.SickAfter)/c.Healthcheck.Every())}
	default:
		return unansweredHealth(age-time.Duration(atomic.LoadInt64(&g.containersAge)), c.Healthcheck)
	}
}

// unansweredHealth follows Docker: failures within the start period do not count, and
// it takes as many in a row as the check has retries.
func unansweredHealth(age time.Duration, check *conf.Healthcheck) *containerHealth {
	streak := 0
	if late := age - time.Duration(check.StartPeriod); late > 0 {
		streak = int(late / check.Every())
	}
	if streak < check.Streak() {
		return &containerHealth{Status: "starting", FailingStreak: streak}
	}
	return &containerHealth{Status: "unhealthy", FailingStreak: streak}
}
