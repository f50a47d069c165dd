// Package behaviour is the table of what a test may ask of the reference guest.
// The README of the guest lists the variables; this is the only reader of them.
package behaviour

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Table says how the guest shall behave. All times count from the start of the
// guest program; zero means never.
type Table struct {
	Manners

	HealthyAfter time.Duration
	NeverHealthy bool
	SickAfter    time.Duration
	SickFor      time.Duration

	ContainerExitAfter time.Duration
	ContainerExitName  string
	ContainerExitCode  int

	FailStage     string
	SlowStage     string
	SlowStageTime time.Duration

	ConsoleMiB  int
	HoldStreams bool
	NewKeyAfter time.Duration

	ExitAfter     time.Duration
	PowerOffAfter time.Duration
	ResetAfter    time.Duration
	PanicAfter    time.Duration
	PanicHang     bool
	FreezeAfter   time.Duration

	EvidenceTrick string
	EvidenceAfter time.Duration
	EvidenceFor   time.Duration
}

// What may be wrong with the evidence that is served.
const (
	EvidenceOtherKey = "other-key"
	EvidenceOldNonce = "old-nonce"
	EvidenceV2Only   = "v2-only"
	EvidenceNever    = "never"
	EvidenceDummy    = "dummy"
)

// Default is the table of a guest of that image version of which nothing is asked.
func Default(imageVersion string) *Table {
	return &Table{Manners: publicManners(imageVersion), ContainerExitCode: 1}
}

// Parse reads the variables of env that begin with GUEST_. An unknown one, or a
// value out of range, is an error: a misspelt behaviour must not pass as a
// healthy guest.
func Parse(env map[string]string, imageVersion string) (*Table, error) {
	t := Default(imageVersion)
	readers := t.readers()
	names := make([]string, 0, len(env))
	for name := range env {
		if strings.HasPrefix(name, "GUEST_") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		read, known := readers[name]
		if !known {
			return nil, fmt.Errorf("%s is not a known behaviour", name)
		}
		if err := read(strings.TrimSpace(env[name])); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return t, nil
}

func (t *Table) readers() map[string]func(string) error {
	all := t.Manners.readers()
	for name, read := range t.misbehaviours() {
		all[name] = read
	}
	return all
}

func (t *Table) misbehaviours() map[string]func(string) error {
	return map[string]func(string) error{
		"GUEST_HEALTHY_AFTER_S":        seconds(&t.HealthyAfter),
		"GUEST_NEVER_HEALTHY":          flag(&t.NeverHealthy),
		"GUEST_SICK_AFTER_S":           seconds(&t.SickAfter),
		"GUEST_SICK_FOR_S":             seconds(&t.SickFor),
		"GUEST_CONTAINER_EXIT_AFTER_S": seconds(&t.ContainerExitAfter),
		"GUEST_CONTAINER_EXIT_NAME":    text(&t.ContainerExitName),
		"GUEST_CONTAINER_EXIT_CODE":    number(&t.ContainerExitCode, 255),
		"GUEST_FAIL_STAGE":             text(&t.FailStage),
		"GUEST_SLOW_STAGE":             t.slowStage,
		"GUEST_CONSOLE_MIB":            number(&t.ConsoleMiB, 1<<20),
		"GUEST_HOLD_STREAMS":           flag(&t.HoldStreams),
		"GUEST_NEW_KEY_AFTER_S":        seconds(&t.NewKeyAfter),
		"GUEST_EXIT_AFTER_S":           seconds(&t.ExitAfter),
		"GUEST_POWEROFF_AFTER_S":       seconds(&t.PowerOffAfter),
		"GUEST_RESET_AFTER_S":          seconds(&t.ResetAfter),
		"GUEST_PANIC_AFTER_S":          seconds(&t.PanicAfter),
		"GUEST_PANIC_HANG":             flag(&t.PanicHang),
		"GUEST_FREEZE_AFTER_S":         seconds(&t.FreezeAfter),
		"GUEST_EVIDENCE": oneOf(&t.EvidenceTrick, EvidenceOtherKey, EvidenceOldNonce,
			EvidenceV2Only, EvidenceNever, EvidenceDummy),
		"GUEST_EVIDENCE_AFTER_S": seconds(&t.EvidenceAfter),
		"GUEST_EVIDENCE_FOR_S":   seconds(&t.EvidenceFor),
	}
}

func (t *Table) slowStage(value string) error {
	name, amount, ok := strings.Cut(value, ":")
	if !ok {
		return fmt.Errorf("%q is not <stage>:<seconds>", value)
	}
	t.SlowStage = name
	return seconds(&t.SlowStageTime)(amount)
}

// Workload tells whether the workload serves at a time after the start.
func (t *Table) Workload(age time.Duration) bool {
	return !t.NeverHealthy && age >= t.HealthyAfter && !t.Sick(age)
}

// Sick tells whether a workload that was healthy is sick now.
func (t *Table) Sick(age time.Duration) bool {
	if t.SickAfter == 0 || age < t.SickAfter {
		return false
	}
	return t.SickFor == 0 || age < t.SickAfter+t.SickFor
}

// Evidence tells what is wrong with the evidence now; nothing if it is empty.
func (t *Table) Evidence(age time.Duration) string {
	if age < t.EvidenceAfter || (t.EvidenceFor > 0 && age >= t.EvidenceAfter+t.EvidenceFor) {
		return ""
	}
	return t.EvidenceTrick
}

// ContainerExited tells whether the container at index of count, with that
// name, has exited. Without a name it is the last one that exits.
func (t *Table) ContainerExited(age time.Duration, name string, index, count int) bool {
	if t.ContainerExitAfter == 0 || age < t.ContainerExitAfter {
		return false
	}
	if t.ContainerExitName == "" {
		return index == count-1
	}
	return t.ContainerExitName == name
}

func seconds(into *time.Duration) func(string) error {
	return func(value string) error {
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || !(n >= 0 && n <= 1e6) {
			return fmt.Errorf("%q is not a number of seconds", value)
		}
		*into = time.Duration(n * float64(time.Second))
		return nil
	}
}

func flag(into *bool) func(string) error {
	return func(value string) error {
		switch value {
		case "1", "true":
			*into = true
		case "0", "false", "":
			*into = false
		default:
			return fmt.Errorf("%q is neither 1 nor 0", value)
		}
		return nil
	}
}

func number(into *int, max int) func(string) error {
	return func(value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > max {
			return fmt.Errorf("%q is not a number from 0 to %d", value, max)
		}
		*into = n
		return nil
	}
}

func oneOf(into *string, words ...string) func(string) error {
	return func(value string) error {
		for _, word := range words {
			if value == word {
				*into = word
				return nil
			}
		}
		return fmt.Errorf("%q is none of %s", value, strings.Join(words, ", "))
	}
}

func text(into *string) func(string) error {
	return func(value string) error {
		*into = value
		return nil
	}
}
