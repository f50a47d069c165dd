package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ConfigureNetwork gives the card at NICAddress exactly this IPv4 address and
// default route, and brings it and the loopback up. It returns the card's name.
func ConfigureNetwork(address net.IPNet, gateway net.IP) (string, error) {
	found, _ := filepath.Glob(pciDevices + NICAddress + "/virtio*/net/*")
	if len(found) == 0 {
		return "", fmt.Errorf("no network card at PCI address 00:%s", NICAddress)
	}
	raw, err := os.ReadFile(found[0] + "/ifindex")
	if err != nil {
		return "", err
	}
	index, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return "", err
	}
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer syscall.Close(fd)
	steps := []struct {
		what string
		msg  []byte
	}{
		{"loopback up", linkUp(1)},
		{"address", addAddress(index, address)},
		{"card up", linkUp(index)},
		{"default route", addDefaultRoute(index, gateway)},
	}
	for _, step := range steps {
		if err := exchange(fd, step.msg); err != nil {
			return "", fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return filepath.Base(found[0]), nil
}

// exchange sends one request and waits for its acknowledgement.
func exchange(fd int, msg []byte) error {
	if err := syscall.Sendto(fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.LittleEndian.Uint16(buf[4:]) != syscall.NLMSG_ERROR {
		return errors.New("unexpected netlink answer")
	}
	if code := int32(binary.LittleEndian.Uint32(buf[16:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

func request(kind, flags uint16, body []byte) []byte {
	msg := make([]byte, 16, 16+len(body))
	le := binary.LittleEndian
	le.PutUint32(msg[0:], uint32(16+len(body)))
	le.PutUint16(msg[4:], kind)
	le.PutUint16(msg[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_ACK|flags)
	return append(msg, body...)
}

func attribute(kind uint16, value []byte) []byte {
	size := 4 + len(value)
	out := make([]byte, (size+3)&^3)
	binary.LittleEndian.PutUint16(out[0:], uint16(size))
	binary.LittleEndian.PutUint16(out[2:], kind)
	copy(out[4:], value)
	return out
}

func linkUp(index int) []byte {
	body := make([]byte, syscall.SizeofIfInfomsg)
	binary.LittleEndian.PutUint32(body[4:], uint32(index))
	binary.LittleEndian.PutUint32(body[8:], syscall.IFF_UP)
	binary.LittleEndian.PutUint32(body[12:], syscall.IFF_UP)
	return request(syscall.RTM_NEWLINK, 0, body)
}

func addAddress(index int, address net.IPNet) []byte {
	prefix, _ := address.Mask.Size()
	body := make([]byte, syscall.SizeofIfAddrmsg)
	body[0], body[1] = syscall.AF_INET, byte(prefix)
	binary.LittleEndian.PutUint32(body[4:], uint32(index))
	ip := address.IP.To4()
	body = append(body, attribute(syscall.IFA_LOCAL, ip)...)
	body = append(body, attribute(syscall.IFA_ADDRESS, ip)...)
	return request(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, body)
}

func addDefaultRoute(index int, gateway net.IP) []byte {
	body := make([]byte, syscall.SizeofRtMsg)
	body[0] = syscall.AF_INET
	body[4] = syscall.RT_TABLE_MAIN
	body[5] = syscall.RTPROT_BOOT
	body[6] = syscall.RT_SCOPE_UNIVERSE
	body[7] = syscall.RTN_UNICAST
	out := make([]byte, 4)
	binary.LittleEndian.PutUint32(out, uint32(index))
	body = append(body, attribute(syscall.RTA_GATEWAY, gateway.To4())...)
	body = append(body, attribute(syscall.RTA_OIF, out)...)
	return request(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, body)
}
