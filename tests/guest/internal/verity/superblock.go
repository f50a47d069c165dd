// Package verity reads the dm-verity superblock of a hash partition and sets up
// the device-mapper target that it describes.
//
// The kernel takes every parameter but the root hash from the caller, and the
// superblock is not covered by the root hash. That is safe: a wrong salt, block
// size or algorithm yields another tree, and so another root hash.
package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strconv"
)

// SuperblockSize is the size of the on-disk structure; the tree begins at the
// next hash block.
const SuperblockSize = 512

const maxSaltSize = 256

// Superblock is the header that `veritysetup format` writes at the start of the
// hash partition (version 1, hash type 1).
type Superblock struct {
	Algorithm     string
	DataBlockSize uint32
	HashBlockSize uint32
	DataBlocks    uint64
	Salt          []byte
}

// ParseSuperblock decodes the first SuperblockSize bytes of a hash partition.
func ParseSuperblock(raw []byte) (*Superblock, error) {
	if len(raw) < SuperblockSize {
		return nil, errors.New("verity superblock: too short")
	}
	if !bytes.Equal(raw[:8], []byte("verity\x00\x00")) {
		return nil, errors.New("verity superblock: wrong signature")
	}
	le := binary.LittleEndian
	if le.Uint32(raw[8:]) != 1 || le.Uint32(raw[12:]) != 1 {
		return nil, errors.New("verity superblock: version or hash type is not 1")
	}
	sb := &Superblock{
		Algorithm:     string(bytes.TrimRight(raw[32:64], "\x00")),
		DataBlockSize: le.Uint32(raw[64:]),
		HashBlockSize: le.Uint32(raw[68:]),
		DataBlocks:    le.Uint64(raw[72:]),
	}
	saltSize := int(le.Uint16(raw[80:]))
	if saltSize > maxSaltSize {
		return nil, errors.New("verity superblock: salt too long")
	}
	sb.Salt = append([]byte(nil), raw[88:88+saltSize]...)
	return sb, sb.check()
}

func (sb *Superblock) check() error {
	if sb.Algorithm == "" || bytes.ContainsAny([]byte(sb.Algorithm), " \t\n") {
		return errors.New("verity superblock: no usable algorithm name")
	}
	for _, size := range []uint32{sb.DataBlockSize, sb.HashBlockSize} {
		if size < 512 || size > 1<<16 || size&(size-1) != 0 {
			return errors.New("verity superblock: block size out of range")
		}
	}
	if sb.DataBlocks == 0 || sb.DataBlocks > 1<<40 {
		return errors.New("verity superblock: number of data blocks out of range")
	}
	return nil
}

// Sectors is the size of the mapped device in 512-byte sectors.
func (sb *Superblock) Sectors() uint64 {
	return sb.DataBlocks * uint64(sb.DataBlockSize) / 512
}

// Table is the parameter line of the kernel's verity target, as in
// Documentation/admin-guide/device-mapper/verity.rst.
func (sb *Superblock) Table(dataDev, hashDev, rootHash string) (string, error) {
	if _, err := hex.DecodeString(rootHash); err != nil || rootHash == "" {
		return "", errors.New("roothash is not hexadecimal")
	}
	salt := "-"
	if len(sb.Salt) > 0 {
		salt = hex.EncodeToString(sb.Salt)
	}
	u := func(n uint64) string { return strconv.FormatUint(n, 10) }
	// The tree starts at hash block 1: block 0 holds the superblock.
	return "1 " + dataDev + " " + hashDev + " " + u(uint64(sb.DataBlockSize)) + " " +
		u(uint64(sb.HashBlockSize)) + " " + u(sb.DataBlocks) + " 1 " + sb.Algorithm + " " +
		rootHash + " " + salt, nil
}
