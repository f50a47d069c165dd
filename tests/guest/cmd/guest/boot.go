package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"refguest/internal/behaviour"
	"refguest/internal/conf"
	"refguest/internal/machine"
	"refguest/internal/nets"
	"refguest/internal/stages"
)

// outcome is how a stage ended when it did not fail.
type outcome struct {
	status string
	detail string
	sub    []stages.Stage
}

func done(format string, args ...interface{}) (outcome, error) {
	return outcome{status: stages.OK, detail: fmt.Sprintf(format, args...)}, nil
}

func skipped(detail string) (outcome, error) {
	return outcome{status: stages.Skipped, detail: detail}, nil
}

const toldToFail = "failed as told by GUEST_FAIL_STAGE"

type step struct {
	name string
	run  func() (outcome, error)
}

// bootUp runs the stages in the public guest's order. 443 is served from the network
// on. A failure before the firewall parks the guest; a later one stays to be seen.
func (g *guest) bootUp() {
	var external *conf.External
	early := []step{
		{"config", func() (outcome, error) { return g.readConfigs(&external) }},
		{"network", func() (outcome, error) { return g.bringUp(external) }},
		{"identity", g.makeIdentity},
		{"cpu-attestation", g.attestCPU},
		{"gpu-attestation", func() (outcome, error) { return skipped("no GPU") }},
		{"certificate", g.publishIdentity},
		{"vault-secrets", g.checkSecrets},
		{"registry-auth", g.checkRegistry},
		{"models", g.findModels},
	}
	for _, s := range early {
		if !g.runStage(s) {
			g.failEarly(s.name, external)
			return
		}
	}
	atomic.StoreInt32(&g.identity.published, 1)
	for _, s := range []step{
		{"firewall", g.prepareNetworks},
		{"containers", g.startContainers},
	} {
		if !g.runStage(s) {
			g.console.Printf("boot failed in stage %s; what is there is served", s.name)
			return
		}
	}
	if pause := g.table().ShimRestart; pause > 0 {
		g.restartShim(pause)
	}
	g.followTable()
}

// failEarly closes the door for good, while the machine runs on. A guest that does
// not park shows its stages as long as it lives.
func (g *guest) failEarly(stage string, external *conf.External) {
	if g.table().Parks {
		atomic.StoreInt32(&g.parked, 1)
		g.stopShim(true)
		g.console.Printf("boot failed in stage %s; parked", stage)
		return
	}
	for _, s := range []step{
		{"network", func() (outcome, error) { return g.bringUp(external) }},
		{"identity", g.makeIdentity},
		{"certificate", g.publishIdentity},
	} {
		if g.boot.StatusOf(s.name) == stages.Pending {
			g.runStage(s)
		}
	}
	g.boot.SkipRest()
	g.console.Printf("boot failed in stage %s; its stages stay readable", stage)
}

// bringUp configures the network and serves 443 on it.
func (g *guest) bringUp(external *conf.External) (outcome, error) {
	out, err := configureNetwork(external)
	if err == nil && g.table().Early443 {
		err = g.startShim()
	}
	return out, err
}

func (g *guest) runStage(s step) bool {
	begin := time.Now()
	var out outcome
	err := g.stageTrouble(s.name)
	if err == nil {
		if out, err = s.run(); err == nil && s.name == "config" {
			// The table is known only now, so the first stage is asked again.
			err = g.stageTrouble(s.name)
		}
	}
	if err != nil {
		g.boot.Settle(s.name, stages.Failed, err.Error(), time.Since(begin))
		return false
	}
	g.boot.Settle(s.name, out.status, out.detail, time.Since(begin), out.sub...)
	return true
}

// stageTrouble slows a stage or fails it, where the table says so.
func (g *guest) stageTrouble(name string) error {
	table := g.table()
	if table.SlowStage == name {
		time.Sleep(table.SlowStageTime)
	}
	if table.FailStage == name {
		return errors.New(toldToFail)
	}
	return nil
}

// readConfigs publishes the plan. The external config is handed out even when
// the measured one is refused, since the network needs it alone.
func (g *guest) readConfigs(external **conf.External) (outcome, error) {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	raw, err := readPayload(machine.ExternalConfigAddress, machine.ExternalConfigSerial)
	if err != nil {
		return outcome{}, fmt.Errorf("external config: %w", err)
	}
	ext, err := conf.ParseExternal(raw)
	if err != nil {
		return outcome{}, fmt.Errorf("external config: %w", err)
	}
	*external = ext
	payload, workload, err := readWorkload(string(cmdline))
	if err != nil {
		workload = &conf.Workload{}
	}
	env := conf.Environment(workload, ext)
	table, wrong := behaviour.Parse(env, g.version)
	if wrong != nil {
		_ = g.console.Open(machine.SerialConsole) // a test's own mistake is always told
		return outcome{}, wrong
	}
	if console := g.openConsole(string(cmdline), table); console != nil {
		return outcome{}, console
	}
	g.plan.Store(&plan{workload: workload, external: ext, table: table, env: env,
		answer: newAnswer(ext, env), payload: payload, nets: nets.Make(workload)})
	if err != nil {
		return outcome{}, fmt.Errorf("workload config: %w", err)
	}
	if table.StrictNetwork && len(ext.Strange) > 0 {
		return outcome{}, fmt.Errorf("external config: network has unknown members: %s", strings.Join(ext.Strange, ", "))
	}
	if id := ext.Metadata["id"]; id != "" {
		_ = syscall.Sethostname([]byte(id))
	}
	return done("%d containers, hash agrees", len(workload.Containers))
}

// openConsole gives a debug image the virtio console, which it needs, and a
// production image none unless one is asked for.
func (g *guest) openConsole(cmdline string, table *behaviour.Table) error {
	debug, _ := machine.CmdlineValue(cmdline, "tinfoil-debug")
	if debug == "on" {
		err := g.console.Open(machine.VirtioConsole)
		if err == nil || table.DebugNeedsHVC {
			return err
		}
	}
	if table.Console || table.ConsoleMiB > 0 {
		return g.console.Open(machine.SerialConsole)
	}
	g.console.Mute()
	return nil
}

func readWorkload(cmdline string) ([]byte, *conf.Workload, error) {
	payload, err := readPayload(machine.ConfigAddress, machine.ConfigSerial)
	if err != nil {
		return nil, nil, err
	}
	want, _ := machine.CmdlineValue(cmdline, "tinfoil-config-hash")
	if err := conf.CheckHash(payload, want); err != nil {
		return nil, nil, err
	}
	workload, err := conf.ParseWorkload(payload)
	return payload, workload, err
}

func readPayload(address, serial string) ([]byte, error) {
	node, err := machine.Disk(address, serial)
	if err != nil {
		return nil, err
	}
	// One sector more than allowed, so that an oversized payload is seen as such.
	disk, err := machine.ReadDisk(node, conf.MaxPayload+512)
	if err != nil {
		return nil, err
	}
	return conf.Payload(disk)
}

func configureNetwork(ext *conf.External) (outcome, error) {
	if ext == nil {
		return outcome{}, errors.New("no external config, so no address")
	}
	card, err := machine.ConfigureNetwork(ext.Address, ext.Gateway)
	if err != nil {
		return outcome{}, err
	}
	return done("%s %s via %s", card, ext.Address.String(), ext.Gateway)
}

// checkSecrets refuses a host that did not supply what is declared. What a vault
// would be asked for is taken as fetched: there is none to ask.
func (g *guest) checkSecrets() (outcome, error) {
	p := g.current()
	declared := len(p.workload.SecretNames())
	missing := conf.MissingSecrets(p.workload, p.external, p.table.StrictSecrets)
	switch {
	case len(missing) > 0 && !p.workload.UsesVault():
		return outcome{}, errors.New("not supplied: " + strings.Join(missing, ", "))
	case declared == 0:
		return skipped("no secrets declared")
	default:
		return done("%d supplied, %d played as a vault's", declared-len(missing), len(missing))
	}
}

func (g *guest) checkRegistry() (outcome, error) {
	if !g.current().workload.UsesRegistryAuth() {
		return skipped("no registry credentials declared")
	}
	return done("simulated: nothing is pulled")
}

// findModels looks only whether the disks are where the contract puts them.
func (g *guest) findModels() (outcome, error) {
	w := g.current().workload
	if len(w.Models)+len(w.Volumes) == 0 {
		return skipped("no models or volumes")
	}
	out := outcome{status: stages.OK}
	for i := 0; i < len(w.Models)+len(w.Volumes); i++ {
		name, find := fmt.Sprintf("model-%d", i+1), func() (string, error) { return machine.ModelDisk(i) }
		if v := i - len(w.Models); v >= 0 {
			name, find = fmt.Sprintf("volume-%d", v+1), func() (string, error) { return machine.VolumeDisk(len(w.Models), v) }
		}
		begin := time.Now()
		node, err := find()
		if err != nil {
			return outcome{}, fmt.Errorf("%s: %w", name, err)
		}
		out.sub = append(out.sub, stages.Stage{Name: name, Status: stages.OK,
			DurationNS: time.Since(begin).Nanoseconds(), Detail: node})
	}
	return out, nil
}
