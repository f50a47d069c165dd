// Package psp speaks with a secure processor that the host's agent plays: the
// guest's end of the virtio-serial port sim-psp. The agent may be away for a
// while (it was restarted); then nothing is answered, and may be asked again.
package psp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	magic         = "SPSP"
	version       = 1
	commandReport = 1
	commandChain  = 2
	headerSize    = 8
	maxAnswer     = 16 << 10

	// ReportSize is the size of a SEV-SNP attestation report.
	ReportSize = 1184
	// ReportDataSize is the size of the report data that a guest chooses.
	ReportDataSize   = 64
	reportDataOffset = 0x50
	measureOffset    = 0x90
	measureSize      = 48
)

// Errors of a processor that answers, and of one that does not for now.
var (
	ErrRefused = errors.New("the secure processor cannot measure this machine")
	ErrAway    = errors.New("the secure processor does not answer")
)

// Port is what an opened virtio-serial port can do.
type Port interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// Client asks one question at a time.
type Client struct {
	open func() (Port, error)
	mu   sync.Mutex
}

// NewClient returns a client of the port with that device node.
func NewClient(node string) *Client {
	return newClient(func() (Port, error) {
		return os.OpenFile(node, os.O_RDWR|nonBlocking, 0)
	})
}

func newClient(open func() (Port, error)) *Client { return &Client{open: open} }

// Report returns a report over the report data.
func (c *Client) Report(data [ReportDataSize]byte, patience time.Duration) ([]byte, error) {
	return c.ask(commandReport, data[:], patience, func(payload []byte) bool {
		return len(payload) == ReportSize &&
			bytes.Equal(payload[reportDataOffset:reportDataOffset+ReportDataSize], data[:])
	})
}

// Chain returns the certificates that vouch for the processor.
func (c *Client) Chain(patience time.Duration) (chain *Chain, err error) {
	_, err = c.ask(commandChain, nil, patience, func(payload []byte) bool {
		chain, err = parseTable(payload)
		return err == nil
	})
	return chain, err
}

// Measurement is the launch digest that a report shows, in hex.
func Measurement(report []byte) string {
	return hex.EncodeToString(report[measureOffset : measureOffset+measureSize])
}

// ask sends a question and waits for its answer. An answer to an earlier question,
// for which nobody waited any more, may come first: it is read and dropped.
func (c *Client) ask(command byte, payload []byte, patience time.Duration,
	fits func([]byte) bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	port, err := c.open()
	if err != nil {
		return nil, err
	}
	defer port.Close()
	if err := port.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := port.Write(request(command, payload)); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrAway, err)
	}
	for {
		got, err := answer(port)
		if err != nil || fits(got) {
			return got, err
		}
	}
}

func request(command byte, payload []byte) []byte {
	out := make([]byte, headerSize, headerSize+len(payload))
	copy(out, magic)
	out[4], out[5] = version, command
	binary.LittleEndian.PutUint16(out[6:], uint16(len(payload)))
	return append(out, payload...)
}

func answer(port io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(port, header); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrAway, err)
	}
	size := int(binary.LittleEndian.Uint16(header[6:]))
	if string(header[:4]) != magic || header[4] != version || size > maxAnswer {
		return nil, fmt.Errorf("%w: what it sent is no answer", ErrAway)
	}
	if header[5] != 0 {
		return nil, ErrRefused
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(port, payload); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrAway, err)
	}
	return payload, nil
}
