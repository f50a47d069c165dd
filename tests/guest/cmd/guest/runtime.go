package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"refguest/internal/conf"
	"refguest/internal/crun"
	"refguest/internal/machine"
	"refguest/internal/nets"
	"refguest/internal/oci"
)

const (
	imagesDirectory = "/images"
	workDirectory   = "/run/containers"
	publicDirectory = "/run/tinfoil/public"
	cgroupParent    = "containers"
	stopGrace       = 10 * time.Second
)

// runs tells whether a container of the config is more than played.
func runs(w *conf.Workload) bool {
	for i := range w.Containers {
		if !w.Containers[i].Played() {
			return true
		}
	}
	return false
}

// prepareNetworks makes what containers run on. Nothing of it is needed for those that
// are played.
func (g *guest) prepareNetworks() (outcome, error) {
	p := g.current()
	if !runs(p.workload) {
		return skipped("no packet filter in the reference guest, and no container that runs")
	}
	if err := machine.LoadModules(); err != nil {
		return outcome{}, err
	}
	if err := machine.PrepareCgroups(cgroupParent); err != nil {
		return outcome{}, err
	}
	var names []string
	for _, bridge := range p.nets.Bridges {
		if err := machine.AddBridge(bridge.Name, bridge.Address); err != nil {
			return outcome{}, err
		}
		names = append(names, bridge.Name)
	}
	if err := os.MkdirAll(publicDirectory, 0o755); err != nil {
		return outcome{}, err
	}
	if err := os.WriteFile(filepath.Join(publicDirectory, "config.yml"), p.payload, 0o644); err != nil {
		return outcome{}, err
	}
	return done("networks %s", strings.Join(names, ", "))
}

// readImage is what takes the place of a pull: the image is on the root disk, or not.
func readImage(c *conf.Container) (*oci.Image, string, error) {
	digest, err := c.Digest()
	if err != nil {
		return nil, "", err
	}
	place := filepath.Join(imagesDirectory, strings.TrimPrefix(digest, "sha256:"))
	raw, err := os.ReadFile(filepath.Join(place, "config.json"))
	if err != nil {
		return nil, "", fmt.Errorf("%s is not on this root disk", c.Image)
	}
	image, err := oci.ParseImage(raw)
	return image, filepath.Join(place, "rootfs"), err
}

// create makes a container of its image, and starts it.
func (g *guest) create(p *plan, index int, image *oci.Image, rootfs string) (*crun.Container, error) {
	c := &p.workload.Containers[index]
	id := make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	wanted := crun.Wanted{ID: hex.EncodeToString(id), Config: c, Check: image.Check(c), Lower: rootfs,
		Work: filepath.Join(workDirectory, fmt.Sprint(index)), Output: containerOutput{g, c.Name},
		StopsBy: orElse(c.StopSignal, orElse(image.Config.StopSignal, "TERM")), Grace: stopGrace}
	if c.StopTimeout != nil {
		wanted.Grace = time.Duration(*c.StopTimeout) * time.Second
	}
	var err error
	if wanted.Policy, err = crun.ParsePolicy(c.Restart); err != nil {
		return nil, err
	}
	if wanted.Place, err = g.placeOf(p, index, image, wanted); err != nil {
		return nil, err
	}
	container, err := crun.New(wanted)
	if err != nil {
		return nil, err
	}
	g.keep(index, container)
	return container, container.Start()
}

// placeOf gathers what a container is given of the guest.
func (g *guest) placeOf(p *plan, index int, image *oci.Image, wanted crun.Wanted) (at oci.Place, err error) {
	c := &p.workload.Containers[index]
	at = oci.Place{
		Rootfs: filepath.Join(wanted.Work, "rootfs"), Hostname: wanted.ID[:12],
		Cgroup:  fmt.Sprintf("/%s/%d", cgroupParent, index),
		WorkDir: orElse(c.WorkingDir, orElse(image.Config.WorkingDir, "/")),
	}
	memory, _ := machine.Memory()
	at.GuestMem = int64(memory)
	passwd, _ := os.ReadFile(filepath.Join(wanted.Lower, "etc/passwd"))
	group, _ := os.ReadFile(filepath.Join(wanted.Lower, "etc/group"))
	if at.User, err = oci.FindUser(orElse(c.User, image.Config.User), string(passwd), string(group)); err != nil {
		return at, err
	}
	if at.Arguments, err = image.Args(c); err != nil {
		return at, err
	}
	at.Env = image.Env(c, p.external, at.Hostname, at.User.Home)
	if at.NetNS, err = connect(p.nets, index, c.Name); err != nil {
		return at, err
	}
	at.Files, err = filesOf(wanted.Work, p.nets.Hosts(c.Name, at.Hostname), at.Hostname)
	return at, err
}

// connect gives a container a network namespace on its networks.
func connect(plan nets.Plan, index int, name string) (string, error) {
	namespace, err := machine.NewNetNS(fmt.Sprint(index))
	if err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	for i, link := range plan.Links[name] {
		gateway := link.Gateway
		if i > 0 {
			gateway = nil
		}
		outside, inside := fmt.Sprintf("veth%d.%d", index, i), fmt.Sprintf("eth%d", i)
		if err := machine.Plug(namespace, link.Network, outside, inside, link.Address, gateway); err != nil {
			return "", err
		}
	}
	return namespace, nil
}

// filesOf writes what Docker lays over a few names of every container.
func filesOf(work, hosts, hostname string) (map[string]string, error) {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	files := map[string]string{"/tinfoil": publicDirectory}
	for name, content := range map[string]string{
		"hosts": hosts, "hostname": hostname + "\n", "resolv.conf": "nameserver 1.1.1.1\nnameserver 1.0.0.1\n",
	} {
		path := filepath.Join(work, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, err
		}
		files["/etc/"+name] = path
	}
	return files, nil
}

func orElse(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

// containerOutput prints what a container prints, where there is a console.
type containerOutput struct {
	g    *guest
	name string
}

func (o containerOutput) Write(line []byte) (int, error) {
	o.g.console.Printf("%s: %s", o.name, line)
	return len(line), nil
}
