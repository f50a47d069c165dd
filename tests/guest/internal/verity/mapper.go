package verity

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// The device-mapper ioctl interface, from <linux/dm-ioctl.h>. Done by hand so
// that the initramfs needs neither dmsetup nor its shared libraries.
const (
	ioctlHeader   = 312
	targetHeader  = 40
	ioctlBase     = 0xc138fd00 // _IOWR(0xfd, 0, struct dm_ioctl)
	cmdCreate     = 3
	cmdSuspend    = 6 // without the suspend flag it resumes
	cmdTableLoad  = 9
	flagReadOnly  = 1
	offDataSize   = 12
	offDataStart  = 16
	offTargets    = 20
	offFlags      = 28
	offDevice     = 40
	offName       = 48
	controlDevice = "/dev/mapper/control"
)

// Open maps the data partition behind its hash tree as a read-only device
// called name and returns the path of its node. Reads of a block that does not
// match the tree fail with EIO.
func Open(name, dataDev, hashDev, rootHash string) (string, error) {
	raw := make([]byte, SuperblockSize)
	hash, err := os.Open(hashDev)
	if err != nil {
		return "", err
	}
	_, err = hash.ReadAt(raw, 0)
	hash.Close()
	if err != nil {
		return "", err
	}
	sb, err := ParseSuperblock(raw)
	if err != nil {
		return "", err
	}
	table, err := sb.Table(dataDev, hashDev, rootHash)
	if err != nil {
		return "", err
	}
	control, err := os.OpenFile(controlDevice, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	minor, err := mapTarget(control, name, table, sb.Sectors())
	if err != nil {
		return "", err
	}
	return "/dev/dm-" + strconv.FormatUint(uint64(minor), 10), nil
}

func mapTarget(control *os.File, name, table string, sectors uint64) (uint32, error) {
	created, err := mapperCall(control, cmdCreate, message(name, flagReadOnly, nil))
	if err != nil {
		return 0, errors.New("device-mapper create: " + err.Error())
	}
	load := message(name, flagReadOnly, target(table, sectors))
	if _, err := mapperCall(control, cmdTableLoad, load); err != nil {
		return 0, errors.New("verity target refused (module, algorithm or root hash): " + err.Error())
	}
	if _, err := mapperCall(control, cmdSuspend, message(name, 0, nil)); err != nil {
		return 0, errors.New("device-mapper resume: " + err.Error())
	}
	dev := binary.LittleEndian.Uint64(created[offDevice:])
	return uint32(dev&0xff | dev>>12&0xfff00), nil
}

func message(name string, flags uint32, payload []byte) []byte {
	buf := make([]byte, ioctlHeader+len(payload), 16384)
	le := binary.LittleEndian
	le.PutUint32(buf[0:], 4) // interface version 4.0.0
	le.PutUint32(buf[offDataSize:], uint32(cap(buf)))
	le.PutUint32(buf[offDataStart:], ioctlHeader)
	le.PutUint32(buf[offFlags:], flags)
	copy(buf[offName:offName+127], name)
	if payload != nil {
		le.PutUint32(buf[offTargets:], 1)
		copy(buf[ioctlHeader:], payload)
	}
	return buf[:cap(buf)]
}

func target(table string, sectors uint64) []byte {
	size := (targetHeader + len(table) + 1 + 7) &^ 7
	buf := make([]byte, size)
	binary.LittleEndian.PutUint64(buf[8:], sectors)
	binary.LittleEndian.PutUint32(buf[20:], uint32(size))
	copy(buf[24:40], "verity")
	copy(buf[targetHeader:], table)
	return buf
}

func mapperCall(control *os.File, cmd uintptr, msg []byte) ([]byte, error) {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), ioctlBase|cmd,
		uintptr(unsafe.Pointer(&msg[0])))
	if errno != 0 {
		return nil, errno
	}
	return msg, nil
}
