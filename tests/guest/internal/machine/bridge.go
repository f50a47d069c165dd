package machine

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"unsafe"
)

const (
	nsDirectory  = "/run/netns"
	modules      = "/modules"
	iflaIfname   = 3
	iflaMaster   = 10
	iflaLinkinfo = 18
	iflaNetNSFD  = 28
	infoKind     = 1
	infoData     = 2
	vethPeer     = 1
	sysFinit     = 313
	sysSetns     = 308
)

// LoadModules loads the kernel modules that containers need, in the order of their
// names: what a module depends on comes before it.
func LoadModules() error {
	files, _ := filepath.Glob(modules + "/*.ko")
	sort.Strings(files)
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		empty := []byte{0}
		_, _, errno := syscall.Syscall(sysFinit, file.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0)
		file.Close()
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("module %s: %w", filepath.Base(path), errno)
		}
	}
	return nil
}

// AddBridge makes a bridge with an address.
func AddBridge(name string, address net.IPNet) error {
	kind := attribute(infoKind, []byte("bridge\x00"))
	if err := talk(newLink(0, attribute(iflaIfname, []byte(name+"\x00")), attribute(iflaLinkinfo, kind))); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return configure(name, address)
}

// configure gives a link its address and brings it up.
func configure(name string, address net.IPNet) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	if err := talk(addAddress(link.Index, address)); err != nil {
		return fmt.Errorf("%s: address: %w", name, err)
	}
	return talk(linkUp(link.Index))
}

// NewNetNS makes a network namespace with its loopback up, and returns its path.
func NewNetNS(name string) (string, error) {
	path := filepath.Join(nsDirectory, name)
	if err := os.MkdirAll(nsDirectory, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return "", err
	}
	return path, onThread(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return err
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", syscall.Gettid())
		if err := syscall.Mount(self, path, "none", syscall.MS_BIND, ""); err != nil {
			return err
		}
		return talk(linkUp(1))
	})
}

// Plug connects a namespace to a bridge: a link of that name inside, with an address
// and, if there is a gateway, a default route.
func Plug(namespace, bridge, outside, inside string, address net.IPNet, gateway net.IP) error {
	master, err := net.InterfaceByName(bridge)
	if err != nil {
		return err
	}
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	peer := make([]byte, syscall.SizeofIfInfomsg)
	peer = append(peer, attribute(iflaIfname, []byte(inside+"\x00"))...)
	peer = append(peer, attribute(iflaNetNSFD, number(uint32(ns.Fd())))...)
	info := append(attribute(infoKind, []byte("veth\x00")), attribute(infoData, attribute(vethPeer, peer))...)
	err = talk(newLink(0, attribute(iflaIfname, []byte(outside+"\x00")),
		attribute(iflaMaster, number(uint32(master.Index))), attribute(iflaLinkinfo, info)))
	if err != nil {
		return fmt.Errorf("%s: %w", outside, err)
	}
	link, err := net.InterfaceByName(outside)
	if err != nil {
		return err
	}
	if err := talk(linkUp(link.Index)); err != nil {
		return err
	}
	return inNetNS(ns, func() error {
		if err := configure(inside, address); err != nil || gateway == nil {
			return err
		}
		link, err := net.InterfaceByName(inside)
		if err != nil {
			return err
		}
		return talk(addDefaultRoute(link.Index, gateway))
	})
}

// inNetNS runs what in a namespace, on a thread that ends with it.
func inNetNS(ns *os.File, what func() error) error {
	return onThread(func() error {
		if _, _, errno := syscall.RawSyscall(sysSetns, ns.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			return errno
		}
		return what()
	})
}

// onThread runs what on a thread of its own, which the runtime throws away.
func onThread(what func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- what()
	}()
	return <-result
}

func newLink(index int, attributes ...[]byte) []byte {
	body := make([]byte, syscall.SizeofIfInfomsg)
	binary.LittleEndian.PutUint32(body[4:], uint32(index))
	for _, one := range attributes {
		body = append(body, one...)
	}
	return request(syscall.RTM_NEWLINK, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, body)
}

func number(value uint32) []byte {
	out := make([]byte, 4)
	binary.LittleEndian.PutUint32(out, value)
	return out
}

// talk sends one request to the namespace of this thread.
func talk(msg []byte) error {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return exchange(fd, msg)
}

// PrepareCgroups mounts the second version and lets containers be limited.
func PrepareCgroups(parent string) error {
	const root = "/sys/fs/cgroup"
	if err := syscall.Mount("cgroup2", root, "cgroup2", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil && err != syscall.EBUSY {
		return fmt.Errorf("cgroup2: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(root, parent), 0o755); err != nil {
		return err
	}
	for _, directory := range []string{root, filepath.Join(root, parent)} {
		for _, controller := range []string{"memory", "pids", "cpu"} {
			if err := os.WriteFile(directory+"/cgroup.subtree_control", []byte("+"+controller), 0); err != nil {
				return fmt.Errorf("cgroup controller %s: %w", controller, err)
			}
		}
	}
	return nil
}

// OOMKills counts how often the kernel killed for want of memory in a cgroup.
func OOMKills(cgroup string) int {
	raw, _ := os.ReadFile("/sys/fs/cgroup" + cgroup + "/memory.events")
	for _, line := range strings.Split(string(raw), "\n") {
		var count int
		if _, err := fmt.Sscanf(line, "oom_kill %d", &count); err == nil {
			return count
		}
	}
	return 0
}
