package config

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

// LoadAnchors reads the certificates of [policy] anchors. A file without a certificate, or with
// something else in it, is an error.
func (p *Policy) LoadAnchors() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, path := range p.Anchors {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("policy anchor: %w", err)
		}
		n := 0
		for {
			var block *pem.Block
			if block, data = pem.Decode(data); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("policy anchor %s: PEM block %q: expected only CERTIFICATE", path, block.Type)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("policy anchor %s: certificate %d: %w", path, n+1, err)
			}
			out = append(out, cert)
			n++
		}
		if n == 0 {
			return nil, fmt.Errorf("policy anchor %s: no certificate found: expected PEM (-----BEGIN CERTIFICATE-----)", path)
		}
	}
	return out, nil
}

// LoadCRLs reads the revocation lists of [policy] crls, PEM or DER.
func (p *Policy) LoadCRLs() ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	for _, path := range p.CRLs {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("policy CRL: %w", err)
		}
		ders := [][]byte{}
		for rest := data; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "X509 CRL" {
				return nil, fmt.Errorf("policy CRL %s: PEM block %q: expected only X509 CRL", path, block.Type)
			}
			ders = append(ders, block.Bytes)
		}
		if len(ders) == 0 {
			ders = append(ders, data)
		}
		for _, der := range ders {
			crl, err := x509.ParseRevocationList(der)
			if err != nil {
				return nil, fmt.Errorf("policy CRL %s: neither PEM nor DER revocation list: %w", path, err)
			}
			out = append(out, crl)
		}
	}
	return out, nil
}
