package psp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// Chain holds DER certificates, from the processor's own to the root.
type Chain struct {
	VCEK, ASK, ARK []byte
}

// GUIDs of the certificate table (AMD GHCB 4.1.8.1).
const (
	guidVCEK  = "63da758de6644564adc5f4b93be8accd"
	guidASK   = "4ab7b379bbac4fe4a02f05aef327c782"
	guidARK   = "c0b406a4a803495297433fb6014cd0ae"
	entrySize = 24
)

var errTable = errors.New("the certificate table is not well-formed")

// parseTable reads entries of GUID, offset and length, ended by one of zeros.
func parseTable(table []byte) (*Chain, error) {
	found := map[string][]byte{}
	for at := 0; ; at += entrySize {
		if at+entrySize > len(table) {
			return nil, errTable
		}
		entry := table[at : at+entrySize]
		guid := hex.EncodeToString(entry[:16])
		offset := uint64(binary.LittleEndian.Uint32(entry[16:]))
		size := uint64(binary.LittleEndian.Uint32(entry[20:]))
		if guid == "00000000000000000000000000000000" {
			break
		}
		if offset+size > uint64(len(table)) {
			return nil, errTable
		}
		found[guid] = table[offset : offset+size]
	}
	chain := &Chain{VCEK: found[guidVCEK], ASK: found[guidASK], ARK: found[guidARK]}
	if len(chain.VCEK) == 0 || len(chain.ASK) == 0 || len(chain.ARK) == 0 {
		return nil, errTable
	}
	return chain, nil
}
