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

// identity is the TLS key and certificate that are served now. They exist in
// memory only and differ at every boot.
type identity struct {
	current atomic.Value // of *tls.Certificate
}

// renew makes another key and a self-signed certificate for it, and returns the
// hex SHA-256 of its SubjectPublicKeyInfo.
func (id *identity) renew(domain string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return "", err
	}
	if domain == "" {
		domain = "enclave.invalid"
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "reference guest"},
		DNSNames:     []string{domain},
		// A guest's clock may be behind the verifier's.
		NotBefore:   now.Add(-24 * time.Hour),
		NotAfter:    now.Add(90 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	id.current.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf})
	sum := id.spki()
	return hex.EncodeToString(sum[:]), nil
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

func (id *identity) tlsConfig() *tls.Config {
	return &tls.Config{
		GetCertificate: id.get,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		// The cheapest key exchanges: a handshake is the dearest thing here.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
	}
}

func (g *guest) makeIdentity() (outcome, error) {
	spki, err := g.identity.renew(g.domain())
	if err != nil {
		return outcome{}, err
	}
	return done("spki sha256 %s", spki)
}

func (g *guest) domain() string {
	if p := g.current(); p != nil {
		return p.external.Metadata["domain"]
	}
	return ""
}
