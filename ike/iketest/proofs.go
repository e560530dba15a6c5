package iketest

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"

	"wardgate/ike"
)

func (p *Plan) rounds() int {
	if p.Auth == AuthPSK {
		return 1
	}
	return 2
}

func nodeID(i, round int) ike.Identity {
	return ike.Identity{Type: ike.IDFQDN, Data: fmt.Sprintf("%c%d.example", 'a'+i, round)}
}

// signer is a token that is as slow, and fails, as the plan says.
type signer struct {
	key ed25519.PrivateKey
	n   *simNode
}

func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

var errToken = errors.New("the token does not answer")

func (s *signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.n.fail {
		return nil, errToken
	}
	return s.key.Sign(rand, digest, opts)
}

type authorityKey struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

type credential struct {
	der []byte
	key ed25519.PrivateKey
}

// The certificates are the same in every process, so that a seed always gives the same run.
var authority = sync.OnceValue(func() authorityKey {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "simulator"},
		NotBefore: Epoch.Add(-24 * time.Hour), NotAfter: Epoch.Add(1000 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.ParseCertificate(create(t, t, key.Public(), key))
	if err != nil {
		panic(err)
	}
	return authorityKey{cert, key}
})

var credentials = sync.OnceValue(func() (out [maxNodes][2]credential) {
	ca := authority()
	for i := range out {
		for round := range out[i] {
			key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(16*i + round + 2)}, ed25519.SeedSize))
			t := &x509.Certificate{
				SerialNumber: big.NewInt(int64(16*i + round + 2)), Subject: pkix.Name{CommonName: nodeID(i, round).Data},
				NotBefore: Epoch.Add(-time.Hour), NotAfter: Epoch.Add(1000 * 24 * time.Hour), DNSNames: []string{nodeID(i, round).Data},
				KeyUsage: x509.KeyUsageDigitalSignature,
			}
			out[i][round] = credential{create(t, ca.cert, key.Public(), ca.key), key}
		}
	}
	return out
})

func create(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) []byte {
	der, err := x509.CreateCertificate(zeroReader{}, t, parent, pub, key)
	if err != nil {
		panic(err)
	}
	return der
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// verifyKnown accepts the certificates of the simulator for their names, without the cost of
// looking at a chain: that is tested elsewhere.
func verifyKnown(q ike.CertQuery) error {
	for i, c := range credentials() {
		for round := range c {
			if bytes.Equal(c[round].der, q.Leaf) && round == q.Round && q.ID.Equal(nodeID(i, round)) {
				return nil
			}
		}
	}
	return errors.New("not a certificate of the simulator for this identity and round")
}
