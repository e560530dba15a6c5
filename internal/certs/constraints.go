package certs

import (
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// checkConstraintForms refuses name constraints of a form that crypto/x509 does not set against the names
// below: it passes over those when the extension is not critical. RFC 5280, section 4.2.1.10, has it
// critical always, and what a CA was not meant to certify it does not.
func checkConstraintForms(c *x509.Certificate) error {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidExtNameConstraints) {
			continue
		}
		if form := unknownConstraint(e.Value); form != "" {
			return &Error{Class: NameConstraint, Expected: "name constraints on names, mailboxes, URIs or addresses", Got: form, Do: "have the CA certificate issued again without them"}
		}
	}
	return nil
}

// unknownConstraint names the first form of name in NameConstraints that crypto/x509 does not know; empty:
// there is none.
func unknownConstraint(value []byte) string {
	const what = "some that cannot be read"
	var constraints, list cryptobyte.String
	s := cryptobyte.String(value)
	if !s.ReadASN1(&constraints, cbasn1.SEQUENCE) || !s.Empty() {
		return what
	}
	for !constraints.Empty() {
		var kind cbasn1.Tag
		if !constraints.ReadAnyASN1(&list, &kind) {
			return what
		}
		for !list.Empty() {
			var subtree, base cryptobyte.String
			var form cbasn1.Tag
			if !list.ReadASN1(&subtree, cbasn1.SEQUENCE) || !subtree.ReadAnyASN1(&base, &form) {
				return what
			}
			switch form &^ 0xe0 { // the tag numbers of GeneralName
			case 1, 2, 6, 7: // rfc822Name, dNSName, URI, iPAddress
			default:
				return fmt.Sprintf("a constraint on GeneralName form %d", form&^0xe0)
			}
		}
	}
	return ""
}

// constrainsNames tells whether a certificate has name constraints (RFC 5280, section 4.2.1.10).
func constrainsNames(c *x509.Certificate) bool { return hasExtension(c, oidExtNameConstraints) }
