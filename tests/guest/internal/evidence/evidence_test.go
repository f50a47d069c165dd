package evidence

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"testing"

	"refguest/internal/psp"
)

var keys = Keys{TLS: [32]byte{1, 1, 1}, HPKE: [32]byte{2, 2, 2}}

func signed(data [psp.ReportDataSize]byte) ([]byte, error) {
	report := make([]byte, psp.ReportSize)
	copy(report[0x50:], data[:])
	return report, nil
}

func decoded(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAV3DocumentBindsNonceAndKeys(t *testing.T) {
	nonce, _ := Nonce(strings.Repeat("ab", 32))
	chain := &psp.Chain{VCEK: []byte("vcek"), ASK: []byte("ask"), ARK: []byte("ark")}
	raw, err := V3(nonce, keys, chain, signed)
	if err != nil {
		t.Fatal(err)
	}
	var doc documentV3
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	// The computation of the reference, over the exact bytes.
	material, devices := decoded(t, doc.Keys), decoded(t, doc.Devices)
	materialHash, devicesHash := sha256.Sum256(material), sha256.Sum256(devices)
	text := "https://tinfoil.sh/report-data/v1" + string(nonce[:]) + string(materialHash[:]) + string(devicesHash[:])
	sum := sha256.Sum256([]byte(text))
	want := append(sum[:], make([]byte, 32)...)
	report := decoded(t, doc.CPU.Report)
	if !bytes.Equal(report[0x50:0x90], want) || doc.Challenge.ReportData != hex.EncodeToString(want) {
		t.Errorf("report data %x", report[0x50:0x90])
	}
	if doc.Challenge.Nonce != strings.Repeat("ab", 32) ||
		doc.CPU.Endorsed.Keys != hex.EncodeToString(materialHash[:]) ||
		doc.CPU.Endorsed.Devices != hex.EncodeToString(devicesHash[:]) {
		t.Errorf("%s", raw)
	}
	if string(devices) != `{"format":"https://tinfoil.sh/device-evidence/v1","items":[]}` {
		t.Errorf("%s", devices)
	}
	if !bytes.Contains(material, []byte(`{"id":"tls","format":"https://tinfoil.sh/key/spki-fp-sha256/v1","data":"010101`)) {
		t.Errorf("%s", material)
	}
	endorsement := doc.Collateral[0]
	first, rest := pem.Decode([]byte(endorsement.Data.Chain))
	second, _ := pem.Decode(rest)
	if string(decoded(t, endorsement.Data.VCEK)) != "vcek" || string(first.Bytes) != "ask" || string(second.Bytes) != "ark" {
		t.Errorf("%+v", endorsement)
	}
}

func TestAV2DocumentIsThePackedReportOverTheKeys(t *testing.T) {
	raw, err := V2(keys, signed)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Format, Body string }
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	unzip, err := gzip.NewReader(bytes.NewReader(decoded(t, doc.Body)))
	if err != nil {
		t.Fatal(err)
	}
	report, err := io.ReadAll(unzip)
	if err != nil || len(report) != psp.ReportSize || doc.Format != "https://tinfoil.sh/predicate/sev-snp-guest/v2" {
		t.Fatal(doc.Format, err)
	}
	if !bytes.Equal(report[0x50:0x90], append(append([]byte{}, keys.TLS[:]...), keys.HPKE[:]...)) {
		t.Errorf("%x", report[0x50:0x90])
	}
}

func TestWithoutASignatureThereIsNoDocument(t *testing.T) {
	away := func([psp.ReportDataSize]byte) ([]byte, error) { return nil, psp.ErrAway }
	if _, err := V2(keys, away); !errors.Is(err, psp.ErrAway) {
		t.Error(err)
	}
	if _, err := V3([32]byte{}, keys, &psp.Chain{}, away); !errors.Is(err, psp.ErrAway) {
		t.Error(err)
	}
}

func TestANonceHasOneForm(t *testing.T) {
	for _, text := range []string{"", "ab", strings.Repeat("AB", 32), strings.Repeat("ab", 33),
		strings.Repeat("g", 64), strings.Repeat("ab", 32) + "\n"} {
		if _, ok := Nonce(text); ok {
			t.Errorf("%q taken", text)
		}
	}
}
