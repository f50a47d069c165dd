// Package evidence makes the contract's attestation documents, versions 2 and 3.
// Pure: who signs the reports is passed in.
package evidence

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"regexp"

	"refguest/internal/psp"
)

// The formats of the public contract.
const (
	home             = "https://tinfoil.sh/"
	FormatV2         = home + "predicate/sev-snp-guest/v2"
	formatV3         = home + "predicate/attestation/v3"
	FormatDummy      = home + "predicate/dummy/v2"
	formatReport     = home + "format/sev-snp-report/v1"
	formatKeys       = home + "crypto-material/v1"
	formatDevices    = home + "device-evidence/v1"
	formatTLSKey     = home + "key/spki-fp-sha256/v1"
	formatHPKEKey    = home + "key/x25519-hpke/v1"
	formatVCEK       = home + "collateral/amd-vcek/v1"
	reportDataMethod = home + "report-data/v1"
)

// Keys are what the evidence binds: the hash of the TLS key, and the HPKE key.
type Keys struct {
	TLS  [32]byte
	HPKE [32]byte
}

// Signer returns a report over the report data.
type Signer func([psp.ReportDataSize]byte) ([]byte, error)

var nonceForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Nonce reads a nonce in its only form: 64 lower-case hex digits.
func Nonce(text string) (nonce [32]byte, ok bool) {
	if !nonceForm.MatchString(text) {
		return nonce, false
	}
	_, err := hex.Decode(nonce[:], []byte(text))
	return nonce, err == nil
}

// ReportDataV2 is what a report without a nonce is over.
func ReportDataV2(keys Keys) (data [psp.ReportDataSize]byte) {
	copy(data[:32], keys.TLS[:])
	copy(data[32:], keys.HPKE[:])
	return data
}

// V2 makes a document without freshness.
func V2(keys Keys, sign Signer) ([]byte, error) {
	report, err := sign(ReportDataV2(keys))
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	zipper := gzip.NewWriter(&packed)
	_, _ = zipper.Write(report) // a buffer takes everything
	_ = zipper.Close()
	return json.Marshal(map[string]string{"format": FormatV2, "body": encode(packed.Bytes())})
}

// Dummy makes the document of a machine that proves nothing.
func Dummy(keys Keys) ([]byte, error) {
	data := ReportDataV2(keys)
	return json.Marshal(map[string]string{"format": FormatDummy, "body": hex.EncodeToString(data[:])})
}

type item struct {
	ID     string `json:"id"`
	Format string `json:"format"`
	Data   string `json:"data"`
}

type section struct {
	Format string `json:"format"`
	Items  []item `json:"items"`
}

type challenge struct {
	Nonce      string `json:"nonce"`
	ReportData string `json:"report_data"`
	Method     string `json:"report_data_algorithm"`
}

type endorsed struct {
	Keys    string `json:"crypto_material_hash"`
	Devices string `json:"device_evidence_hash"`
}

type cpuEvidence struct {
	Format   string   `json:"format"`
	Report   string   `json:"report_base64"`
	Endorsed endorsed `json:"endorsed"`
}

type vcekData struct {
	VCEK  string `json:"vcek_der_base64"`
	Chain string `json:"cert_chain_pem"`
}

type collateral struct {
	ID       string   `json:"id"`
	Role     string   `json:"role"`
	Format   string   `json:"format"`
	Subjects []string `json:"subjects"`
	Data     vcekData `json:"data"`
}

type documentV3 struct {
	Format     string       `json:"format"`
	Challenge  challenge    `json:"challenge"`
	CPU        cpuEvidence  `json:"cpu_evidence"`
	Keys       string       `json:"crypto_material"`
	Devices    string       `json:"device_evidence"`
	Collateral []collateral `json:"collateral"`
}

// V3 makes the document that answers a nonce. Without a chain it carries no collateral.
func V3(nonce [32]byte, keys Keys, chain *psp.Chain, sign Signer) ([]byte, error) {
	material, err := json.Marshal(section{formatKeys, []item{
		{"tls", formatTLSKey, hex.EncodeToString(keys.TLS[:])},
		{"hpke", formatHPKEKey, hex.EncodeToString(keys.HPKE[:])},
	}})
	if err != nil {
		return nil, err
	}
	devices, err := json.Marshal(section{formatDevices, []item{}})
	if err != nil {
		return nil, err
	}
	materialHash, devicesHash := sha256.Sum256(material), sha256.Sum256(devices)
	data := ReportDataV3(nonce, materialHash, devicesHash)
	report, err := sign(data)
	if err != nil {
		return nil, err
	}
	endorsements := []collateral{}
	if chain != nil {
		endorsements = append(endorsements, endorsement(chain))
	}
	return json.Marshal(documentV3{
		Format:    formatV3,
		Challenge: challenge{hex.EncodeToString(nonce[:]), hex.EncodeToString(data[:]), reportDataMethod},
		CPU: cpuEvidence{formatReport, encode(report),
			endorsed{hex.EncodeToString(materialHash[:]), hex.EncodeToString(devicesHash[:])}},
		Keys:       encode(material),
		Devices:    encode(devices),
		Collateral: endorsements,
	})
}

// ReportDataV3 is what the report of a document over this nonce is over.
func ReportDataV3(nonce, material, devices [32]byte) (data [psp.ReportDataSize]byte) {
	text := []byte(reportDataMethod)
	for _, part := range [][32]byte{nonce, material, devices} {
		text = append(text, part[:]...)
	}
	sum := sha256.Sum256(text)
	copy(data[:], sum[:])
	return data
}

func endorsement(chain *psp.Chain) collateral {
	return collateral{
		ID: "cpu-endorsement", Role: "endorsement", Format: formatVCEK, Subjects: []string{"cpu"},
		// As AMD's service orders them: the intermediate, then the root.
		Data: vcekData{encode(chain.VCEK), certificate(chain.ASK) + certificate(chain.ARK)},
	}
}

func certificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func encode(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }
