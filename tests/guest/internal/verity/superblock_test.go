package verity

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// superblock builds what `veritysetup format` writes.
func superblock() []byte {
	raw := make([]byte, SuperblockSize)
	copy(raw, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(raw[8:], 1)
	le.PutUint32(raw[12:], 1)
	copy(raw[32:], "sha256")
	le.PutUint32(raw[64:], 4096)
	le.PutUint32(raw[68:], 4096)
	le.PutUint64(raw[72:], 1766)
	le.PutUint16(raw[80:], 4)
	copy(raw[88:], []byte{0xde, 0xad, 0xbe, 0xef})
	return raw
}

func TestSuperblockBecomesATableLine(t *testing.T) {
	sb, err := ParseSuperblock(superblock())
	if err != nil {
		t.Fatal(err)
	}
	root := strings.Repeat("ab", 32)
	table, err := sb.Table("/dev/vda1", "/dev/vda2", root)
	if err != nil {
		t.Fatal(err)
	}
	want := "1 /dev/vda1 /dev/vda2 4096 4096 1766 1 sha256 " + root + " deadbeef"
	if table != want {
		t.Errorf("table %q, want %q", table, want)
	}
	if sb.Sectors() != 1766*8 {
		t.Errorf("sectors %d", sb.Sectors())
	}
}

func TestNoSaltIsADash(t *testing.T) {
	raw := superblock()
	raw[80] = 0
	sb, err := ParseSuperblock(raw)
	if err != nil {
		t.Fatal(err)
	}
	if table, _ := sb.Table("a", "b", "00"); !strings.HasSuffix(table, " 00 -") {
		t.Errorf("table %q", table)
	}
}

func TestDamagedSuperblocksAreRefused(t *testing.T) {
	damage := map[string]func([]byte){
		"signature":     func(raw []byte) { raw[0] = 'x' },
		"version":       func(raw []byte) { raw[8] = 2 },
		"hash type":     func(raw []byte) { raw[12] = 0 },
		"algorithm":     func(raw []byte) { copy(raw[32:], "sha 256") },
		"no algorithm":  func(raw []byte) { copy(raw[32:], make([]byte, 32)) },
		"block size":    func(raw []byte) { raw[64] = 1 },
		"no data":       func(raw []byte) { copy(raw[72:], make([]byte, 8)) },
		"endless data":  func(raw []byte) { copy(raw[72:], bytes.Repeat([]byte{0xff}, 8)) },
		"endless salt":  func(raw []byte) { raw[81] = 0xff },
		"hash blk size": func(raw []byte) { raw[70] = 0xff },
	}
	for name, harm := range damage {
		raw := superblock()
		harm(raw)
		if _, err := ParseSuperblock(raw); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseSuperblock(superblock()[:100]); err == nil {
		t.Error("short: accepted")
	}
}

func TestRootHashThatIsNotHexIsRefused(t *testing.T) {
	sb, _ := ParseSuperblock(superblock())
	for _, root := range []string{"", "xyz", "00 ignore_corruption"} {
		if _, err := sb.Table("a", "b", root); err == nil {
			t.Errorf("%q: accepted", root)
		}
	}
}

func TestMapperMessageHasTheKernelsLayout(t *testing.T) {
	msg := message("root", flagReadOnly, target("1 a b", 16))
	le := binary.LittleEndian
	if le.Uint32(msg[offDataSize:]) != uint32(len(msg)) || le.Uint32(msg[offTargets:]) != 1 {
		t.Error("header")
	}
	spec := msg[ioctlHeader:]
	if le.Uint64(spec[8:]) != 16 || string(bytes.TrimRight(spec[24:40], "\x00")) != "verity" {
		t.Error("target")
	}
	if !bytes.HasPrefix(spec[targetHeader:], []byte("1 a b\x00")) {
		t.Error("parameters")
	}
}
