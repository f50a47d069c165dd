package psp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

const patience = 200 * time.Millisecond

// scripted is a processor that hears one request and sends what it is told.
func scripted(t *testing.T, wantRequest int, sends ...[]byte) *Client {
	t.Helper()
	return newClient(func() (Port, error) {
		guest, host := net.Pipe()
		go func() {
			defer host.Close()
			heard := make([]byte, wantRequest)
			if _, err := io.ReadFull(host, heard); err != nil {
				return
			}
			for _, each := range sends {
				if _, err := host.Write(each); err != nil {
					return
				}
			}
		}()
		return guest, nil
	})
}

func good(payload []byte) []byte {
	out := request(0, payload)
	out[5] = 0
	return out
}

func reportOver(data [ReportDataSize]byte) []byte {
	report := make([]byte, ReportSize)
	copy(report[reportDataOffset:], data[:])
	report[measureOffset] = 0xab
	return report
}

func TestARequestIsExactlyWhatTheAgentExpects(t *testing.T) {
	if got := hex.EncodeToString(request(commandChain, nil)); got != "53505350"+"0102"+"0000" {
		t.Error(got)
	}
	var data [ReportDataSize]byte
	got := request(commandReport, data[:])
	if len(got) != 72 || hex.EncodeToString(got[:8]) != "53505350"+"0101"+"4000" {
		t.Errorf("%x", got)
	}
}

func TestAReportOverTheDataIsReturned(t *testing.T) {
	data := [ReportDataSize]byte{1, 2, 3}
	report, err := scripted(t, 72, good(reportOver(data))).Report(data, patience)
	if err != nil || !bytes.Equal(report, reportOver(data)) || Measurement(report)[:2] != "ab" {
		t.Fatal(err)
	}
}

func TestALateAnswerToAnotherQuestionIsDropped(t *testing.T) {
	data := [ReportDataSize]byte{1}
	stale := good(reportOver([ReportDataSize]byte{9}))
	report, err := scripted(t, 72, stale, good(reportOver(data))).Report(data, patience)
	if err != nil || !bytes.Equal(report, reportOver(data)) {
		t.Fatal(err)
	}
	table := good(tableOf([]byte("v"), []byte("s"), []byte("r")))
	chain, err := scripted(t, 8, stale, table).Chain(patience)
	if err != nil || string(chain.VCEK) != "v" || string(chain.ASK) != "s" || string(chain.ARK) != "r" {
		t.Fatal(chain, err)
	}
}

func TestAProcessorThatIsAwayIsToldApartFromOneThatRefuses(t *testing.T) {
	refused := request(0, nil)
	refused[5] = 1
	for name, c := range map[string]struct {
		sends []byte
		want  error
	}{
		"closed at once": {nil, ErrAway},
		"half an answer": {good(reportOver([ReportDataSize]byte{}))[:100], ErrAway},
		"garbage":        {bytes.Repeat([]byte("x"), 64), ErrAway},
		"refused":        {refused, ErrRefused},
	} {
		if _, err := scripted(t, 72, c.sends).Report([ReportDataSize]byte{}, patience); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestASilentProcessorIsNotWaitedForLonger(t *testing.T) {
	client := newClient(func() (Port, error) {
		guest, host := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, host) }()
		return guest, nil
	})
	begin := time.Now()
	if _, err := client.Chain(patience); !errors.Is(err, ErrAway) || time.Since(begin) > 5*time.Second {
		t.Error(err)
	}
}

func tableOf(vcek, ask, ark []byte) []byte {
	offset := 4 * entrySize
	var head, tail []byte
	for i, guid := range []string{guidVCEK, guidASK, guidARK} {
		blob := [][]byte{vcek, ask, ark}[i]
		raw, _ := hex.DecodeString(guid)
		entry := make([]byte, entrySize)
		copy(entry, raw)
		binary.LittleEndian.PutUint32(entry[16:], uint32(offset+len(tail)))
		binary.LittleEndian.PutUint32(entry[20:], uint32(len(blob)))
		head, tail = append(head, entry...), append(tail, blob...)
	}
	return append(append(head, make([]byte, entrySize)...), tail...)
}

func TestAMalformedTableIsRefused(t *testing.T) {
	whole := tableOf([]byte("v"), []byte("s"), []byte("r"))
	beyond := append([]byte{}, whole...)
	beyond[20] = 200
	for name, table := range map[string][]byte{
		"empty": {}, "no end": whole[:3*entrySize], "beyond": beyond,
		"without an ARK": append(append([]byte{}, whole[:2*entrySize]...), make([]byte, entrySize)...),
	} {
		if _, err := parseTable(table); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
