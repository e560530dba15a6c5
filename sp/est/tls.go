package est

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"time"

	"wardgate/internal/certs"
)

// The channel binding of RFC 9266, section 2.
const (
	bindingLabel  = "EXPORTER-Channel-Binding"
	bindingOctets = 32
)

// Binding returns what a request over this TLS connection carries as challengePassword: the
// tls-exporter of RFC 9266 in base64 (RFC 7030, section 3.5).
func Binding(cs *tls.ConnectionState) (string, error) {
	if cs == nil || cs.Version < tls.VersionTLS13 {
		return "", errors.New("channel binding: expected TLS 1.3, where the exporter belongs to one connection alone (RFC 9266, section 4.2)")
	}
	b, err := cs.ExportKeyingMaterial(bindingLabel, nil, bindingOctets)
	if err != nil {
		return "", fmt.Errorf("channel binding: %w", err)
	}
	return string(encodeBody(b)), nil
}

// TLSConfig returns what the enrolment server needs of TLS: version 1.3, and a client certificate
// where the client has one. That the client has the certificate's key is TLS's to show; the chain is
// judged by internal/certs for each request, because a TLS alert could not tell the client why it is
// refused (and cacerts and csrattrs are for everybody: RFC 7030, sections 4.1.2 and 4.5.1). Only what
// is out of all bounds is refused in the handshake. server returns the server's own certificate.
func TLSConfig(server func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: server,
		ClientAuth:     tls.RequestClientCert,
		// RFC 7030 is spoken over HTTP/1.1; strongSwan knows no other.
		NextProtos: []string{"http/1.1"},
		// strongSwan reads an answer in two parts at most: small first records break it.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) > certs.MaxIntermediates+1 {
				return fmt.Errorf("expected at most %d certificates from the client, got %d", certs.MaxIntermediates+1, len(cs.PeerCertificates))
			}
			for _, c := range cs.PeerCertificates {
				if len(c.Raw) > certs.MaxCertificateBytes {
					return fmt.Errorf("expected certificates of at most %d octets, got one of %d", certs.MaxCertificateBytes, len(c.Raw))
				}
			}
			return nil
		},
	}
}

// Limits of the HTTP server, for everything that comes before the handler.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 20 * time.Second
	idleTimeout    = 30 * time.Second
	maxHeader      = 8 << 10
)

// HTTPServer returns a server with limits fit for enrolment: headers and bodies must arrive in time,
// answers be read in time, and connections do not stay open for nothing.
func HTTPServer(h http.Handler, t *tls.Config) *http.Server {
	s := &http.Server{
		Handler: h, TLSConfig: t,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout,
		WriteTimeout: 2 * requestTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	return s
}

func curveOID(c elliptic.Curve) (asn1.ObjectIdentifier, bool) {
	switch c {
	case elliptic.P256():
		return asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, true
	case elliptic.P384():
		return asn1.ObjectIdentifier{1, 3, 132, 0, 34}, true
	case elliptic.P521():
		return asn1.ObjectIdentifier{1, 3, 132, 0, 35}, true
	}
	return nil, false
}

func onCurve(pub crypto.PublicKey, c elliptic.Curve) bool {
	k, ok := pub.(*ecdsa.PublicKey)
	return ok && k.Curve == c
}
