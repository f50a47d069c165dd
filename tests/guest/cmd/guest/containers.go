package main

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"refguest/internal/conf"
)

const defaultInterval = 5 * time.Second

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
	Status        string `json:"status"`
	FailingStreak int    `json:"failing_streak"`
}

// containerList simulates the declared containers.
func (g *guest) containerList() containerList {
	list := containerList{ObservedAt: time.Now().UTC(), Containers: []containerStatus{}}
	p := g.current()
	if p == nil {
		list.Unavailable = "no valid workload config"
		return list
	}
	created := g.boot.StatusOf("containers") == "ok"
	for i, c := range p.workload.Containers {
		status := containerStatus{Name: c.Name, Image: c.Image, Declared: true, RestartPolicy: c.Restart}
		if !created {
			status.Error = "container not found"
		} else {
			g.fillRunning(&status, p, i)
		}
		list.Containers = append(list.Containers, status)
	}
	return list
}

func (g *guest) fillRunning(status *containerStatus, p *plan, index int) {
	sum := sha256.Sum256([]byte(status.Name + status.Image))
	status.ContainerID = hex.EncodeToString(sum[:])
	status.Created = true
	status.Status = "running"
	status.StartedAt = g.start.UTC().Format(time.RFC3339Nano)
	age := g.age()
	if p.table.ContainerExited(age, status.Name, index, len(p.workload.Containers)) {
		status.Status = "exited"
		status.ExitCode = p.table.ContainerExitCode
		status.FinishedAt = g.start.Add(p.table.ContainerExitAfter).UTC().Format(time.RFC3339Nano)
		status.Health = &containerHealth{Status: "unhealthy"}
		return
	}
	start, interval := healthTimes(p.workload.Containers[index].Healthcheck)
	status.Health = healthAt(age, p.table.Workload(age), p.table.Sick(age), p.table.SickAfter, start, interval)
}

func healthTimes(check *conf.Healthcheck) (start, interval time.Duration) {
	interval = defaultInterval
	if check != nil {
		start = time.Duration(check.StartPeriod)
		if check.Interval > 0 {
			interval = time.Duration(check.Interval)
		}
	}
	if start == 0 {
		start = defaultInterval
	}
	return start, interval
}

// healthAt follows the usual engine: failures within the start period leave a
// container `starting`, later ones make it `unhealthy`.
func healthAt(age time.Duration, up, sick bool, sickAfter, start, interval time.Duration) *containerHealth {
	switch {
	case up:
		return &containerHealth{Status: "healthy"}
	case sick:
		return &containerHealth{Status: "unhealthy", FailingStreak: 1 + int((age-sickAfter)/interval)}
	case age < start:
		return &containerHealth{Status: "starting"}
	default:
		return &containerHealth{Status: "unhealthy", FailingStreak: 1 + int((age-start)/interval)}
	}
}
