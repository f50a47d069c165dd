// Package conf reads the two documents that the host hands to the guest on
// disks: the measured workload config and the unmeasured external config.
package conf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// MaxPayload bounds a config document.
const MaxPayload = 1 << 20

// Payload strips the NUL padding that fills a config disk.
func Payload(disk []byte) ([]byte, error) {
	payload := bytes.TrimRight(disk, "\x00")
	switch {
	case len(payload) == 0:
		return nil, errors.New("the disk is empty")
	case len(payload) > MaxPayload:
		return nil, errors.New("the payload is larger than 1 MiB")
	}
	return payload, nil
}

// CheckHash compares the payload with the SHA-256 of the kernel command line,
// which is measured.
func CheckHash(payload []byte, want string) error {
	if want == "" {
		return errors.New("no tinfoil-config-hash= on the kernel command line")
	}
	sum := sha256.Sum256(payload)
	if got := hex.EncodeToString(sum[:]); !strings.EqualFold(got, want) {
		return errors.New("config hash mismatch: the disk has " + got + ", the command line wants " + want)
	}
	return nil
}
