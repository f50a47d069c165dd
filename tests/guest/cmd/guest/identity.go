package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"sync/atomic"
	"time"
)

// identity is the TLS key and certificate that the evidence binds. They exist in
// memory only and differ at every boot. Until they are published, the shim shows
// others.
type identity struct {
	current   atomic.Value // of *tls.Certificate
	published int32
}

// renew makes another key and a self-signed certificate for it, and returns the
// hex SHA-256 of its SubjectPublicKeyInfo.
func (id *identity) renew(domain string) (string, error) {
	if domain == "" {
		domain = "enclave.invalid"
	}
	cert, err := selfSigned(domain)
	if err != nil {
		return "", err
	}
	id.current.Store(cert)
	sum := id.spki()
	return hex.EncodeToString(sum[:]), nil
}

// selfSigned makes a key, and a certificate for these names.
func selfSigned(names ...string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "reference guest"},
		DNSNames:     names,
		// A guest's clock may be behind the verifier's.
		NotBefore:   now.Add(-24 * time.Hour),
		NotAfter:    now.Add(90 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func (id *identity) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert, ok := id.current.Load().(*tls.Certificate); ok {
		return cert, nil
	}
	return nil, errors.New("no identity")
}

// spki is the SHA-256 of the SubjectPublicKeyInfo that is served now.
func (id *identity) spki() (sum [32]byte) {
	if cert, err := id.get(nil); err == nil {
		sum = sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	}
	return sum
}

func (id *identity) pem() string {
	cert, err := id.get(nil)
	if err != nil {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
}

// makeIdentity refuses a host that names no domain, as the public guest does.
func (g *guest) makeIdentity() (outcome, error) {
	p := g.current()
	if p != nil && p.table.NeedsDomain && p.external.Env["DOMAIN"] == "" && !p.workload.Shim.DummyAttestation {
		return outcome{}, errors.New("DOMAIN not set in the external config")
	}
	spki, err := g.identity.renew(g.domain())
	if err != nil {
		return outcome{}, err
	}
	return done("%s, spki sha256 %s", g.domain(), spki)
}

// publishIdentity gives the shim the certificate. An old image does so only when its
// containers are about to start.
func (g *guest) publishIdentity() (outcome, error) {
	if !g.table().LateKey {
		atomic.StoreInt32(&g.identity.published, 1)
	}
	if !g.table().Early443 {
		if err := g.startShim(); err != nil {
			return outcome{}, err
		}
	}
	return done("self-signed")
}

func (g *guest) domain() string {
	p := g.current()
	switch {
	case p == nil:
		return ""
	case p.external.Env["DOMAIN"] != "":
		return p.external.Env["DOMAIN"]
	case p.table.NeedsDomain:
		return "localhost"
	default:
		return p.external.Metadata["domain"]
	}
}

// proves tells whether this boot's evidence is a processor's and not a dummy.
func (g *guest) proves() bool {
	p := g.current()
	if p == nil || !p.table.DummyLocalhost {
		return true
	}
	return g.domain() != "localhost" && !p.workload.Shim.DummyAttestation
}
