package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxPEMBlocks bounds the number of certificates or lists in one file.
const maxPEMBlocks = 256

// ParseCertificate parses one certificate in DER within the bounds of the profile. Errors are
// *Error of class TooLarge or Malformed.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificateBytes {
		return nil, &Error{
			Class: TooLarge, Expected: fmt.Sprintf("at most %d octets", MaxCertificateBytes),
			Got: fmt.Sprintf("%d", len(der)), Do: "have a smaller certificate issued",
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &Error{Class: Malformed, Expected: "an X.509 certificate in DER", Got: parseText(err), Do: "have the certificate issued again", Err: err}
	}
	return c, nil
}

// ParseCertificates parses one or more certificates: PEM blocks "CERTIFICATE", or one
// certificate in DER. Anything else in a PEM file than such blocks and text between them is an
// error, and so is a file without one.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	err := eachPEM(data, "CERTIFICATE", MaxCertificateBytes, func(der []byte) error {
		c, err := ParseCertificate(der)
		out = append(out, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ParseCRLs parses one or more revocation lists: PEM blocks "X509 CRL", or one list in DER.
func ParseCRLs(data []byte) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	err := eachPEM(data, "X509 CRL", MaxCRLBytes, func(der []byte) error {
		c, err := x509.ParseRevocationList(der)
		if err != nil {
			return &Error{Class: Malformed, Expected: "an X.509 revocation list in DER", Got: parseText(err), Do: "fetch the list again from its issuer", Err: err}
		}
		out = append(out, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// EncodePEM returns the certificates as PEM blocks.
func EncodePEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a bytes.Buffer does not fail
	}
	return b.Bytes()
}

func eachPEM(data []byte, kind string, maxDER int, f func(der []byte) error) error {
	if len(data) > maxPEMBlocks*maxDER*2 || (len(data) > 2*maxDER && !bytes.Contains(data, []byte("-----BEGIN"))) {
		return &Error{Class: TooLarge, Expected: fmt.Sprintf("at most %d octets for each %s", maxDER, kind), Got: fmt.Sprintf("%d octets", len(data)), Do: "split the file"}
	}
	if len(data) > 0 && data[0] == 0x30 { // DER
		return f(data)
	}
	n := 0
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return &Error{Class: Malformed, Expected: "whole PEM blocks " + kind, Got: "a damaged one", Do: "copy the file again"}
			}
			break
		}
		if block.Type != kind {
			return &Error{Class: Malformed, Expected: "PEM blocks " + kind, Got: "a block " + Quote(block.Type), Do: "give a file with nothing else in it"}
		}
		if n++; n > maxPEMBlocks {
			return &Error{Class: TooLarge, Expected: fmt.Sprintf("at most %d PEM blocks", maxPEMBlocks), Got: "more", Do: "split the file"}
		}
		if len(block.Bytes) > maxDER {
			return &Error{Class: TooLarge, Expected: fmt.Sprintf("at most %d octets for each %s", maxDER, kind), Got: fmt.Sprintf("%d octets", len(block.Bytes)), Do: "have a smaller one issued"}
		}
		if err := f(block.Bytes); err != nil {
			return err
		}
	}
	if n == 0 {
		return &Error{Class: Malformed, Expected: "at least one PEM block " + kind + " or one in DER", Got: "none", Do: "check that this is the right file"}
	}
	return nil
}

// parseText is the text of an error of the parser, which may carry octets of the certificate.
func parseText(err error) string { return Quote(err.Error()) }

// at fills in whose certificate an *Error is about.
func at(err error, cert *x509.Certificate) error {
	if e, ok := errors.AsType[*Error](err); ok && e.Subject == "" {
		e.Subject = SubjectOf(cert)
	}
	return err
}
