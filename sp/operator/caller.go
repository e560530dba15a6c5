package operator

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/localsocket"
)

// caller is who makes a request.
type caller struct {
	who, where string
	refused    *Problem // nil: may use the API
}

// socketCaller judges who is at a Unix socket: root, the centre's own user (whose are the database and the keys
// anyway), or a member of the group (gid below 0: none).
func socketCaller(p *localsocket.Peer, own uint32, gid int) caller {
	c := caller{who: p.String(), where: "socket"}
	if c.who == "" {
		c.who = "somebody of whom the kernel tells nothing"
	}
	if !p.May(own, gid) {
		c.refused = problem(http.StatusForbidden, CodeDenied, "root, or a member of the group of [operators] group", c.who, "use sudo, or ask the administrator to add you to that group")
	}
	return c
}

// Trust is by what operators' certificates are judged.
type Trust struct {
	Anchors []*x509.Certificate
	CRLs    []*x509.RevocationList
}

// judge says whether the other end of a TLS connection is an operator. It is asked when the connection is
// made and again for each request: certificates end and are revoked while connections last.
func judge(t *tls.ConnectionState, trust Trust, now time.Time) error {
	if t == nil || t.Version < tls.VersionTLS13 || len(t.PeerCertificates) == 0 {
		return errors.New("expected a client certificate over TLS 1.3, came none")
	}
	if len(t.PeerCertificates) > certs.MaxIntermediates+1 {
		return fmt.Errorf("expected at most %d certificates, came %d", certs.MaxIntermediates+1, len(t.PeerCertificates))
	}
	o := certs.Options{Leaf: t.PeerCertificates[0].Raw, Anchors: trust.Anchors, CRLs: trust.CRLs, EKU: certs.EKUClientAuth, At: now, Role: "operator"}
	for _, c := range t.PeerCertificates[1:] {
		o.Intermediates = append(o.Intermediates, c.Raw)
	}
	_, err := certs.VerifyChain(o)
	return err
}

// maxWho bounds how much of a subject is in the record, in octets; the fingerprint tells the rest.
const maxWho = 120

// operatorOf names the operator whose certificate it is.
func operatorOf(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	name := certs.SubjectOf(c)
	if len(name) > maxWho {
		name = name[:maxWho] + "…"
	}
	return name + " (certificate " + hex.EncodeToString(h[:8]) + ")"
}
