package behaviour

import (
	"os"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, pairs ...string) *Table {
	t.Helper()
	env := map[string]string{"OTHER": "not looked at"}
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	table, err := Parse(env, "v0.12.0")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestNothingAskedIsHealthyAtOnce(t *testing.T) {
	table := parse(t)
	if !table.Workload(0) || table.Sick(time.Hour) || table.ContainerExited(time.Hour, "a", 0, 1) {
		t.Errorf("%+v", table)
	}
}

func TestHealthyLateThenSickThenWell(t *testing.T) {
	table := parse(t, "GUEST_HEALTHY_AFTER_S", "2.5", "GUEST_SICK_AFTER_S", "10", "GUEST_SICK_FOR_S", "5")
	for at, want := range map[time.Duration]bool{
		0: false, 2 * time.Second: false, 3 * time.Second: true, 10 * time.Second: false,
		14 * time.Second: false, 15 * time.Second: true,
	} {
		if got := table.Workload(at); got != want {
			t.Errorf("at %s: %v", at, got)
		}
	}
}

func TestNeverHealthy(t *testing.T) {
	if parse(t, "GUEST_NEVER_HEALTHY", "1").Workload(time.Hour) {
		t.Error("healthy")
	}
}

func TestTheNamedContainerExitsElseTheLast(t *testing.T) {
	last := parse(t, "GUEST_CONTAINER_EXIT_AFTER_S", "1")
	named := parse(t, "GUEST_CONTAINER_EXIT_AFTER_S", "1", "GUEST_CONTAINER_EXIT_NAME", "a")
	for _, c := range []struct {
		table *Table
		at    time.Duration
		name  string
		index int
		want  bool
	}{
		{last, 0, "b", 1, false}, {last, time.Second, "b", 1, true}, {last, time.Second, "a", 0, false},
		{named, time.Second, "a", 0, true}, {named, time.Second, "b", 1, false},
	} {
		if got := c.table.ContainerExited(c.at, c.name, c.index, 2); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if last.ContainerExitCode != 1 {
		t.Error("exit code")
	}
}

func TestSlowStage(t *testing.T) {
	table := parse(t, "GUEST_SLOW_STAGE", "models:3")
	if table.SlowStage != "models" || table.SlowStageTime != 3*time.Second {
		t.Errorf("%+v", table)
	}
}

func TestMisspeltAndMeaninglessValuesAreRefused(t *testing.T) {
	for name, value := range map[string]string{
		"GUEST_HELTHY_AFTER_S": "1", "GUEST_SICK_AFTER_S": "soon", "GUEST_RESET_AFTER_S": "-1",
		"GUEST_PANIC_AFTER_S": "NaN", "GUEST_NEVER_HEALTHY": "maybe", "GUEST_CONSOLE_MIB": "1.5",
		"GUEST_CONTAINER_EXIT_CODE": "256", "GUEST_SLOW_STAGE": "models",
	} {
		if _, err := Parse(map[string]string{name: value}, "v0.12.0"); err == nil {
			t.Errorf("%s=%s: accepted", name, value)
		}
	}
}

func TestTheReadmeNamesEveryBehaviour(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range new(Table).readers() {
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestTheEvidenceIsWrongFromThenOnForSoLong(t *testing.T) {
	table := parse(t, "GUEST_EVIDENCE", "other-key", "GUEST_EVIDENCE_AFTER_S", "2", "GUEST_EVIDENCE_FOR_S", "3")
	for at, want := range map[time.Duration]string{
		0: "", 2 * time.Second: EvidenceOtherKey, 4 * time.Second: EvidenceOtherKey, 5 * time.Second: "",
	} {
		if got := table.Evidence(at); got != want {
			t.Errorf("at %s: %q", at, got)
		}
	}
	if got := parse(t, "GUEST_EVIDENCE", "never").Evidence(time.Hour); got != EvidenceNever {
		t.Error(got)
	}
	if _, err := Parse(map[string]string{"GUEST_EVIDENCE": "none"}, "v0.12.0"); err == nil {
		t.Error("an unknown trick was taken")
	}
}

func TestNothingAskedHasThePublicGuestsManners(t *testing.T) {
	got := parse(t).Manners
	for name, holds := range map[string]bool{
		"443 is served early":               got.Early443,
		"the shim restarts":                 got.ShimRestart > 0,
		"a domain is needed":                got.NeedsDomain,
		"localhost is a dummy":              got.DummyLocalhost,
		"containers start in the boot":      got.ContainersBoot,
		"a failed boot parks":               got.Parks,
		"the shim answers for itself":       got.ShimRules,
		"network members are known":         got.StrictNetwork,
		"empty secrets are missing":         got.StrictSecrets,
		"metrics are guarded":               got.GuardsMetrics,
		"a debug image needs its console":   got.DebugNeedsHVC,
		"a production image has no console": !got.Console,
		"the power button of 0.12 is heard": !got.IgnoreACPI,
	} {
		if !holds {
			t.Error(name)
		}
	}
}

func TestOldImagesAreDeafToThePowerButton(t *testing.T) {
	for version, deaf := range map[string]bool{
		"v0.11.0": true, "0.11.9": true, "v0.9.1": true, "v0.12.0": false, "v0.12.0-i01": false,
		"v1.0.0": false, "odd": false, "": false,
	} {
		if got := Default(version).IgnoreACPI; got != deaf {
			t.Errorf("%s: %v", version, got)
		}
	}
	table, err := Parse(map[string]string{"GUEST_IGNORE_ACPI": "0"}, "v0.11.0")
	if err != nil || table.IgnoreACPI {
		t.Errorf("%v", err)
	}
}
