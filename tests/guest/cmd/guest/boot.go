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

type step struct {
	name string
	run  func() (outcome, error)
}

// bootUp runs the stages in their order. A guest whose measured config is wrong
// still gets as far as showing that at its address: network, identity and
// certificate do not depend on it. Everything else is skipped after a failure.
func (g *guest) bootUp() {
	var external *conf.External
	reachable := []step{
		{"config", func() (outcome, error) { return g.readConfigs(&external) }},
		{"network", func() (outcome, error) { return configureNetwork(external) }},
		{"identity", g.makeIdentity},
		{"cpu-attestation", g.attestCPU},
		{"gpu-attestation", func() (outcome, error) { return skipped("no GPU") }},
		{"certificate", g.serveTLS},
	}
	rest := []step{
		{"vault-secrets", g.checkSecrets},
		{"registry-auth", g.checkRegistry},
		{"firewall", func() (outcome, error) { return skipped("no packet filter in the reference guest") }},
		{"models", g.findModels},
		{"containers", g.startContainers},
		{"shim", func() (outcome, error) { atomic.StoreInt32(&g.shimUp, 1); return done("") }},
	}
	healthy := true
	for _, s := range reachable {
		healthy = g.runStage(s) && healthy
	}
	for _, s := range rest {
		healthy = healthy && g.runStage(s)
	}
	if !healthy {
		g.boot.SkipRest()
		g.console.Printf("boot failed; the boot stages stay readable where the network came up")
		return
	}
	g.console.Printf("boot complete")
	g.followTable()
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
		return errors.New("failed as told by GUEST_FAIL_STAGE")
	}
	return nil
}

// readConfigs publishes the plan. The external config is handed out even when
// the measured one is refused, since the network needs it alone.
func (g *guest) readConfigs(external **conf.External) (outcome, error) {
	payload, err := readPayload(machine.ExternalConfigAddress, machine.ExternalConfigSerial)
	if err != nil {
		return outcome{}, fmt.Errorf("external config: %w", err)
	}
	ext, err := conf.ParseExternal(payload)
	if err != nil {
		return outcome{}, fmt.Errorf("external config: %w", err)
	}
	*external = ext
	payload, err = readPayload(machine.ConfigAddress, machine.ConfigSerial)
	if err != nil {
		return outcome{}, fmt.Errorf("workload config: %w", err)
	}
	cmdline, _ := os.ReadFile("/proc/cmdline")
	want, _ := machine.CmdlineValue(string(cmdline), "tinfoil-config-hash")
	if err := conf.CheckHash(payload, want); err != nil {
		return outcome{}, err
	}
	workload, err := conf.ParseWorkload(payload)
	if err != nil {
		return outcome{}, fmt.Errorf("workload config: %w", err)
	}
	env := conf.Environment(workload, ext)
	table, err := behaviour.Parse(env)
	if err != nil {
		return outcome{}, err
	}
	if id := ext.Metadata["id"]; id != "" {
		_ = syscall.Sethostname([]byte(id))
	}
	g.plan.Store(&plan{workload: workload, external: ext, table: table, env: env,
		answer: newAnswer(ext, env)})
	return done("%d containers, hash agrees", len(workload.Containers))
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

func (g *guest) checkSecrets() (outcome, error) {
	p := g.current()
	if missing := conf.MissingSecrets(p.workload, p.external); len(missing) > 0 {
		return outcome{}, errors.New("not supplied: " + strings.Join(missing, ", "))
	}
	if len(p.workload.SecretNames()) == 0 {
		return skipped("no secrets declared")
	}
	return done("%d supplied", len(p.workload.SecretNames()))
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

// startContainers opens the workload's own ports; the containers themselves are
// simulated and appear in the container list from here on.
func (g *guest) startContainers() (outcome, error) {
	p := g.current()
	for _, port := range p.workload.CVMNetwork.InboundPorts {
		if err := g.servePlain(port); err != nil {
			return outcome{}, err
		}
	}
	return done("%d started, inbound ports %v", len(p.workload.Containers), p.workload.CVMNetwork.InboundPorts)
}
