package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"time"

	"golang.org/x/crypto/curve25519"

	"refguest/internal/behaviour"
	"refguest/internal/evidence"
	"refguest/internal/machine"
	"refguest/internal/psp"
)

const (
	simulated     = "SIMULATED — NOT CONFIDENTIAL"
	pspPatience   = 3 * time.Second
	pspAgainAfter = 50 * time.Millisecond
)

// attester is what the machine has to prove itself with. Published once, by the
// stage cpu-attestation; without it there is no TEE.
type attester struct {
	client *psp.Client
	chain  *psp.Chain
	hpke   [32]byte
	dummy  bool // the document without a nonce proves nothing
}

// attestCPU finds the secure processor and asks it once. The agent that plays it
// may not be there yet, or not now: it is waited for, as one waits for hardware.
func (g *guest) attestCPU() (outcome, error) {
	node, err := machine.FindPSP()
	absent := errors.Is(err, machine.ErrNoPSP)
	if absent && g.proves() {
		return skipped("no TEE")
	}
	hpke, err := newHPKEKey()
	if err != nil {
		return outcome{}, err
	}
	a := &attester{hpke: hpke, dummy: !g.proves()}
	if !absent {
		a.client = psp.NewClient(node)
	}
	if a.dummy {
		g.attester.Store(a)
		return done("a dummy: no domain but localhost")
	}
	keys := evidence.Keys{TLS: g.identity.spki(), HPKE: hpke}
	for {
		var report []byte
		if a.chain, err = a.client.Chain(pspPatience); err == nil {
			report, err = a.client.Report(evidence.ReportDataV2(keys), pspPatience)
		}
		if err == nil {
			g.attester.Store(a)
			return done("%s: measurement %s", simulated, psp.Measurement(report))
		}
		if !errors.Is(err, psp.ErrAway) {
			return outcome{}, err
		}
		time.Sleep(pspAgainAfter)
	}
}

// newHPKEKey returns the public half of a new X25519 key. Nothing is encrypted
// to it here, so that the private half is not kept.
func newHPKEKey() (public [32]byte, err error) {
	private := make([]byte, curve25519.ScalarSize)
	if _, err = rand.Read(private); err != nil {
		return public, err
	}
	raw, err := curve25519.X25519(private, curve25519.Basepoint)
	copy(public[:], raw)
	return public, err
}

// attestation serves the documents: version 3 over a nonce, else version 2.
func (g *guest) attestation(w http.ResponseWriter, r *http.Request) {
	a, _ := g.attester.Load().(*attester)
	if a == nil {
		refuseEvidence(w, "this machine has no TEE to attest it", "failed")
		return
	}
	trick := g.table().Evidence(g.age())
	if trick == behaviour.EvidenceNever {
		refuseEvidence(w, "no evidence, as told", "pending")
		return
	}
	asked := r.URL.Query()
	nonce, ok := evidence.Nonce(asked.Get("nonce"))
	if asked.Has("nonce") && !ok {
		writeJSON(w, http.StatusBadRequest, refusal{Error: refusalError{
			Message: "nonce must be 64 lower-case hex digits", Type: "bad_request", Status: "failed"}})
		return
	}
	if a.client == nil && asked.Has("nonce") {
		shimError(w, http.StatusInternalServerError, "Failed to build attestation")
		return
	}
	body, err := a.document(trick, g.identity.spki(), asked.Has("nonce"), nonce)
	if err != nil {
		refuseEvidence(w, err.Error(), "pending")
		return
	}
	// Exactly the document: what came after it would make it malformed.
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// document makes the one that is asked for, or the wrong one that the table wants.
func (a *attester) document(trick string, tls [32]byte, fresh bool, nonce [32]byte) ([]byte, error) {
	keys := evidence.Keys{TLS: tls, HPKE: a.hpke}
	sign := func(data [psp.ReportDataSize]byte) ([]byte, error) {
		return a.client.Report(data, pspPatience)
	}
	switch {
	case trick == behaviour.EvidenceDummy, a.dummy && !fresh:
		return evidence.Dummy(keys)
	}
	switch trick {
	case behaviour.EvidenceV2Only:
		fresh = false
	case behaviour.EvidenceOtherKey:
		keys.TLS = sha256.Sum256([]byte("a key that no connection shows"))
	case behaviour.EvidenceOldNonce:
		nonce = [32]byte{}
	}
	if !fresh {
		return evidence.V2(keys, sign)
	}
	return evidence.V3(nonce, keys, a.chain, sign)
}

func refuseEvidence(w http.ResponseWriter, message, status string) {
	writeJSON(w, http.StatusServiceUnavailable, refusal{Error: refusalError{
		Message: message, Type: "attestation_unavailable", Status: status}})
}

// predicate is the format of the evidence without a nonce, empty where there is none.
func (g *guest) predicate() string {
	a, _ := g.attester.Load().(*attester)
	switch {
	case a == nil:
		return ""
	case a.dummy:
		return evidence.FormatDummy
	default:
		return evidence.FormatV2
	}
}
