package oci

import (
	"fmt"
	"sort"
	"strings"

	"refguest/internal/conf"
)

// Place is where a container runs, and what it is given of the guest.
type Place struct {
	Rootfs    string
	Hostname  string
	NetNS     string
	Cgroup    string
	Files     map[string]string // inside → outside, all read-only
	GuestMem  int64
	Arguments []string
	Env       []string
	User      User
	WorkDir   string
}

type object = map[string]interface{}

// Docker's defaults, and the public guest's.
const (
	defaultPids  = 65536
	openFiles    = 524288
	cpuPeriod    = 100000
	specVersion  = "1.0.2"
	tmpfsDefault = "nosuid,nodev,noexec"
)

var (
	capabilities = map[string]bool{"IPC_LOCK": true, "NET_BIND_SERVICE": true, "SYS_NICE": true}
	maskedPaths  = []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Spec is the runtime specification: a read-only root unless the config says otherwise,
// no capability but those that are added, no new privileges, namespaces of its own.
func Spec(c *conf.Container, at Place) (object, error) {
	process, err := Process(c, at)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(c, at)
	if err != nil {
		return nil, err
	}
	return object{
		"ociVersion": specVersion,
		"root":       object{"path": at.Rootfs, "readonly": c.ReadOnly == nil || *c.ReadOnly},
		"hostname":   at.Hostname,
		"process":    process,
		"mounts":     mounts,
		"linux": object{
			"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
				{"type": "cgroup"}, {"type": "network", "path": at.NetNS}},
			"cgroupsPath":   at.Cgroup,
			"resources":     resources(c),
			"maskedPaths":   maskedPaths,
			"readonlyPaths": readonlyPaths,
		},
	}, nil
}

// Process is how a container's own program runs, and its health checks alike.
func Process(c *conf.Container, at Place) (object, error) {
	added := []string{}
	for _, name := range c.CapAdd {
		if !capabilities[name] {
			return nil, fmt.Errorf("cap_add: %q is not to be had", name)
		}
		added = append(added, "CAP_"+name)
	}
	return object{
		"args": at.Arguments, "env": at.Env, "cwd": at.WorkDir,
		"user":            object{"uid": at.User.UID, "gid": at.User.GID, "additionalGids": at.User.Groups},
		"capabilities":    object{"bounding": added, "effective": added, "permitted": added, "inheritable": added, "ambient": added},
		"noNewPrivileges": true,
		"rlimits":         []object{{"type": "RLIMIT_NOFILE", "soft": openFiles, "hard": openFiles}},
	}, nil
}

func resources(c *conf.Container) object {
	pids := c.PidsLimit
	if pids == 0 {
		pids = defaultPids
	}
	out := object{"pids": object{"limit": pids}}
	if c.Memory > 0 {
		out["memory"] = object{"limit": int64(c.Memory)}
	}
	if c.CPUs > 0 {
		out["cpu"] = object{"quota": int64(c.CPUs * cpuPeriod), "period": cpuPeriod}
	}
	return out
}

func mountsOf(c *conf.Container, at Place) ([]object, error) {
	shm := int64(c.ShmSize)
	if shm == 0 {
		if shm = int64(c.Memory) / 2; shm == 0 {
			shm = at.GuestMem / 2
		}
	}
	mounts := []object{
		mount("proc", "/proc", "proc", "nosuid,noexec,nodev"),
		mount("tmpfs", "/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
		mount("devpts", "/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"),
		mount("shm", "/dev/shm", "tmpfs", fmt.Sprintf("nosuid,noexec,nodev,mode=1777,size=%d", shm)),
		mount("mqueue", "/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
		mount("sysfs", "/sys", "sysfs", "nosuid,noexec,nodev,ro"),
		mount("cgroup", "/sys/fs/cgroup", "cgroup", "nosuid,noexec,nodev,ro"),
	}
	for _, inside := range sortedKeys(at.Files) {
		mounts = append(mounts, mount(at.Files[inside], inside, "bind", "bind,ro,nosuid,nodev"))
	}
	for _, inside := range sortedKeys(c.Tmpfs) {
		if !strings.HasPrefix(inside, "/") {
			return nil, fmt.Errorf("tmpfs: %q is no absolute path", inside)
		}
		mounts = append(mounts, mount("tmpfs", inside, "tmpfs", tmpfsOptions(c.Tmpfs[inside])))
	}
	return mounts, nil
}

// tmpfsOptions are Docker's defaults without those that the config turns round.
func tmpfsOptions(given string) string {
	options := []string{}
	for _, option := range strings.Split(tmpfsDefault, ",") {
		if !strings.Contains(","+given+",", ","+strings.TrimPrefix(option, "no")+",") {
			options = append(options, option)
		}
	}
	if given != "" {
		options = append(options, given)
	}
	return strings.Join(options, ",")
}

func mount(source, target, kind, options string) object {
	return object{"source": source, "destination": target, "type": kind, "options": strings.Split(options, ",")}
}

func sortedKeys(values map[string]string) []string {
	out := make([]string, 0, len(values))
	for name := range values {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}
