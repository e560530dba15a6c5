package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// checkRevocation judges c by the lists of its issuer. It returns when the list that was used
// must be replaced (the zero time when none was used).
//
// RFC 5280, section 6.3.3, for complete lists signed by the certificate's own issuer. Of several
// the newest counts. A list with a critical extension that is not understood (a delta list, a
// list restricted to some certificates or reasons) is no proof that c is good, but whoever it
// names is refused all the same: that errs on the safe side.
func checkRevocation(c, issuer *x509.Certificate, lists []*x509.RevocationList, require bool, when time.Time) (nextUpdate time.Time, err error) {
	var best *x509.RevocationList
	why := "none by that CA"
	for _, l := range lists {
		if l == nil || !bytes.Equal(l.RawIssuer, issuer.RawSubject) {
			continue
		}
		if len(l.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(l.AuthorityKeyId, issuer.SubjectKeyId) {
			why = "one by another key of that CA"
			continue
		}
		if err := CheckCRL(l, issuer); err != nil {
			why = "one that cannot be trusted: " + err.Error()
			continue
		}
		if oid := unknownCritical(l); oid != nil {
			if e := revokedBy(l, c); e != nil {
				return time.Time{}, e
			}
			why = "one with the critical extension " + oid.String() + ", which is not understood"
			continue
		}
		if best == nil || newer(l, best) {
			best = l
		}
	}
	if best == nil {
		if !require {
			return time.Time{}, nil
		}
		return time.Time{}, &Error{
			Class: CRLMissing, Expected: "a revocation list by " + SubjectOf(issuer), Got: why,
			Do: "have a policy installed that carries the CA's current list",
		}
	}
	if e := revokedBy(best, c); e != nil {
		return time.Time{}, e
	}
	if !require {
		return best.NextUpdate, nil
	}
	stale := func(got string) error {
		return &Error{
			Class: CRLExpired, Expected: "a revocation list by " + SubjectOf(issuer) + " that is current at " + stamp(when), Got: got,
			Do: "check this machine's clock; if it is right, have a policy installed that carries the CA's current list",
		}
	}
	switch {
	case best.NextUpdate.IsZero():
		return time.Time{}, stale("one that does not say when it ends")
	case when.After(best.NextUpdate):
		return time.Time{}, stale("one that ended on " + stamp(best.NextUpdate))
	case when.Before(best.ThisUpdate):
		return time.Time{}, stale("one that begins on " + stamp(best.ThisUpdate))
	}
	return best.NextUpdate, nil
}

// CheckCRL returns nil when list is signed by issuer, whose key may sign lists (RFC 5280, section
// 4.2.1.3: cRLSign when keyUsage is present), with an algorithm of the profile.
func CheckCRL(list *x509.RevocationList, issuer *x509.Certificate) error {
	fail := func(class Class, expected, got string, err error) error {
		return &Error{Class: class, Subject: SubjectOf(issuer), Expected: expected, Got: got, Do: "fetch the list again from its issuer", Err: err}
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		name, _ := dnString(list.RawIssuer)
		return fail(CRLMissing, "a list by this CA", "one by "+Quote(name), nil)
	}
	if hasExtension(issuer, oidExtKeyUsage) && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fail(KeyUsage, "keyUsage cRLSign", keyUsageText(issuer.KeyUsage), nil)
	}
	if !strongSignature(list.SignatureAlgorithm) {
		return fail(WeakKey, "a list signed with SHA-2 or Ed25519", Quote(list.SignatureAlgorithm.String()), nil)
	}
	if err := CheckPublicKey(issuer.PublicKey); err != nil {
		return at(err, issuer)
	}
	if err := checkListSignature(list, issuer); err != nil {
		return fail(CRLMissing, "a list signed by this CA", "a signature that does not verify", err)
	}
	return nil
}

// maxListSignatures bounds how many signatures of lists are remembered: 32 octets each.
const maxListSignatures = 1024

// listSignatures remembers signatures of lists that held, because the same few lists are judged with every
// certificate and every policy. It keeps no verdict on anything else of a list, and none that was bad.
var listSignatures struct {
	sync.Mutex
	good map[[sha256.Size]byte]struct{}
}

// checkListSignature is issuer.CheckSignature for a list.
func checkListSignature(list *x509.RevocationList, issuer *x509.Certificate) error {
	check := func() error {
		return issuer.CheckSignature(list.SignatureAlgorithm, list.RawTBSRevocationList, list.Signature)
	}
	if len(issuer.RawSubjectPublicKeyInfo) == 0 {
		return check() // it was not parsed: nothing names its key
	}
	// Everything that the verdict follows from, each with its length in front: whose key, what was signed,
	// how and with what result.
	h := sha256.New()
	for _, part := range [][]byte{issuer.RawSubjectPublicKeyInfo, {byte(list.SignatureAlgorithm)}, list.RawTBSRevocationList, list.Signature} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	key := [sha256.Size]byte(h.Sum(nil))
	listSignatures.Lock()
	_, known := listSignatures.good[key]
	listSignatures.Unlock()
	if known {
		return nil
	}
	if err := check(); err != nil {
		return err
	}
	listSignatures.Lock()
	defer listSignatures.Unlock()
	if listSignatures.good == nil || len(listSignatures.good) >= maxListSignatures {
		listSignatures.good = map[[sha256.Size]byte]struct{}{}
	}
	listSignatures.good[key] = struct{}{}
	return nil
}

// newer orders two lists of one issuer: by number, and failing that by date.
func newer(a, b *x509.RevocationList) bool {
	if a.Number != nil && b.Number != nil {
		if c := a.Number.Cmp(b.Number); c != 0 {
			return c > 0
		}
	}
	return a.ThisUpdate.After(b.ThisUpdate)
}

// unknownCritical returns a critical extension of the list or of an entry that is not understood.
func unknownCritical(l *x509.RevocationList) asn1.ObjectIdentifier {
	known := func(oid asn1.ObjectIdentifier) bool {
		return oid.Equal(asn1.ObjectIdentifier{2, 5, 29, 20}) || // cRLNumber
			oid.Equal(asn1.ObjectIdentifier{2, 5, 29, 35}) || // authorityKeyIdentifier
			oid.Equal(asn1.ObjectIdentifier{2, 5, 29, 21}) // reasonCode
	}
	for _, e := range l.Extensions {
		if e.Critical && !known(e.Id) {
			return e.Id
		}
	}
	for i := range l.RevokedCertificateEntries {
		for _, e := range l.RevokedCertificateEntries[i].Extensions {
			if e.Critical && !known(e.Id) {
				return e.Id
			}
		}
	}
	return nil
}

func revokedBy(l *x509.RevocationList, c *x509.Certificate) error {
	for i := range l.RevokedCertificateEntries {
		e := &l.RevokedCertificateEntries[i]
		if e.SerialNumber == nil || e.SerialNumber.Cmp(c.SerialNumber) != 0 {
			continue
		}
		return &Error{
			Class: Revoked, Expected: "a certificate that is not revoked",
			Got: fmt.Sprintf("serial number %x, revoked on %s (%s)", c.SerialNumber, stamp(e.RevocationTime), reasonName(e.ReasonCode)),
			Do:  "the certificate must not be used any more: have a new one issued if the member still belongs to the service",
		}
	}
	return nil
}

// reasonName names a CRLReason (RFC 5280, section 5.3.1).
func reasonName(code int) string {
	names := map[int]string{
		0: "unspecified", 1: "key compromise", 2: "CA compromise", 3: "affiliation changed", 4: "superseded",
		5: "cessation of operation", 6: "certificate hold", 8: "removed from list", 9: "privilege withdrawn", 10: "AA compromise",
	}
	if n, ok := names[code]; ok {
		return n
	}
	return fmt.Sprintf("reason %d", code)
}
