package policy

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wardgate/internal/certs"
)

// VerifyOptions are the facts that a policy file is checked against.
type VerifyOptions struct {
	Anchors       []*x509.Certificate    // pinned policy-signing anchors
	CRLs          []*x509.RevocationList // of the policy-signing chain; may be empty
	DeviceCertDER []byte                 // this device's certificate
	Installed     Installed              // the last accepted policy; zero when there never was one
	Now           time.Time
}

// Installed identifies the last policy that a device accepted. The caller keeps it across restarts
// (it is JSON-serializable) and writes it before the new policy is in force.
type Installed struct {
	Serial uint64 `json:"serial"`
	Digest Digest `json:"digest"`
}

// Check compares a document's serial number with the installed one: nil when the document is newer,
// or when it is the very same one (Same tells), ErrSerialOlder or ErrSerialReused otherwise.
func (in Installed) Check(doc *Document) error {
	switch {
	case doc.Serial < in.Serial:
		return &RefusedError{
			Kind: ErrSerialOlder, Expected: fmt.Sprintf("serial %d or later", in.Serial), Came: fmt.Sprint(doc.Serial),
			Do: "install the latest file; to go back to earlier rights the service provider signs them again with a new serial",
		}
	case doc.Serial == in.Serial && in != (Installed{}) && !in.Same(doc):
		return &RefusedError{
			Kind: ErrSerialReused, Expected: fmt.Sprintf("serial %d to be the policy that is installed (%v)", in.Serial, in.Digest), Came: "another one with the same serial (" + doc.digest.String() + ")",
			Do: "the service provider must give each policy a serial of its own",
		}
	}
	return nil
}

// Same reports whether a document is the installed one: installing it again changes nothing.
func (in Installed) Same(doc *Document) bool {
	return doc.Serial == in.Serial && !in.Digest.IsZero() && in.Digest == doc.digest
}

// Installed returns what the caller keeps once the document is accepted.
func (d *Document) Installed() Installed { return Installed{d.Serial, d.digest} }

// Verify checks a policy file in full, in this order: size and form, the signer's chain and its
// purpose, the signature, the JSON, the device, the serial number, the validity, the meaning, the
// policy's own tests. It returns the document with its compiled Table, or an error that is one of
// this package's kinds (Code names it) and says what was expected, what came and what to do. It
// changes nothing.
func Verify(jws []byte, opt VerifyOptions) (*Document, error) {
	if opt.Now.IsZero() {
		return nil, fmt.Errorf("%w: expected the time in VerifyOptions.Now, came the zero time", ErrOptions)
	}
	env, err := open(jws)
	if err != nil {
		return nil, err
	}
	signer, err := env.verifySigner(opt.Anchors, opt.CRLs, opt.Now)
	if err != nil {
		return nil, err
	}
	if err := env.verifySignature(signer); err != nil {
		return nil, err
	}
	doc, err := Parse(env.payload)
	if err != nil {
		return nil, err
	}
	if err := doc.checkDevice(opt.DeviceCertDER); err != nil {
		return nil, err
	}
	if err := opt.Installed.Check(doc); err != nil {
		return nil, err
	}
	if err := doc.checkValidity(opt.Now); err != nil {
		return nil, err
	}
	table, err := Compile(doc)
	if err != nil {
		return nil, err
	}
	if err := table.RunTests(); err != nil {
		return nil, err
	}
	doc.table = table
	return doc, nil
}

// checkDevice compares the document's device with this one.
func (d *Document) checkDevice(der []byte) error {
	cert, err := certs.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("%w: VerifyOptions.DeviceCertDER: %w", ErrOptions, err)
	}
	const do = "install the file that the service provider made for this device"
	sum := Digest(sha256.Sum256(cert.Raw))
	want, err := ParseDigest(d.Device.Fingerprint)
	if err != nil {
		return &RefusedError{Kind: ErrOtherDevice, Expected: "the fingerprint of a device certificate in device.fingerprint", Came: certs.Quote(d.Device.Fingerprint), Do: "have the policy signed again", Err: err}
	}
	if want != sum {
		return &RefusedError{
			Kind: ErrOtherDevice, Expected: "device certificate " + sum.String() + " (" + certs.SubjectOf(cert) + ")",
			Came: want.String() + " (" + certs.Quote(d.Device.ID) + ")", Do: do,
		}
	}
	if !vouches(cert, d.Device.ID) {
		return &RefusedError{
			Kind: ErrOtherDevice, Expected: "an identity of this device's certificate (" + certs.SubjectOf(cert) + ": " + certs.Quote(strings.Join(cert.DNSNames, ", ")) + ")",
			Came: certs.Quote(d.Device.ID), Do: do,
		}
	}
	return nil
}

// vouches reports whether a certificate vouches for an identity in one of the forms that a policy
// can write.
func vouches(cert *x509.Certificate, id string) bool {
	types := []certs.IDType{certs.IDFQDN}
	data := []byte(id)
	if a, err := netip.ParseAddr(id); err == nil {
		types, data = []certs.IDType{certs.IDIPv4Addr}, a.AsSlice()
		if a.Is6() {
			types[0] = certs.IDIPv6Addr
		}
	} else if strings.Contains(id, "@") {
		types[0] = certs.IDRFC822
	}
	return certs.MatchID(cert, certs.ID{Type: types[0], Data: data}) == nil
}

// checkValidity compares the document's validity with the time given. Both ends belong to it.
func (d *Document) checkValidity(now time.Time) error {
	const do = "check this device's clock; if it is right, install a current policy"
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case now.Before(d.NotBefore):
		return &RefusedError{Kind: ErrNotYetValid, Expected: "a policy valid at " + stamp(now), Came: "one valid from " + stamp(d.NotBefore), Do: do}
	case now.After(d.NotAfter):
		return &RefusedError{Kind: ErrExpired, Expected: "a policy valid at " + stamp(now), Came: "one valid until " + stamp(d.NotAfter), Do: do}
	}
	return nil
}

// Sign checks, compiles and tests the document, and signs it: what it returns is accepted by the
// device that it is for. chain is the signer's certificate and the ones between it and the anchor,
// leaf first; it must last as long as the policy, so that a device that restarts without reaching
// the service provider can still verify the policy that it has (REQUIREMENTS SP-5).
func Sign(doc *Document, signer crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	payload, err := json.MarshalIndent(doc, "", " ") // indented: faults are reported by line
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	parsed, err := Parse(payload)
	if err != nil {
		return nil, err
	}
	table, err := Compile(parsed)
	if err != nil {
		return nil, err
	}
	if err := table.RunTests(); err != nil {
		return nil, err
	}
	for _, c := range chain {
		if c.NotAfter.Before(doc.NotAfter) {
			return nil, &RefusedError{
				Kind: ErrSignerValidity, Expected: "certificates that last until the policy ends, " + doc.NotAfter.UTC().Format(time.RFC3339),
				Came: certs.SubjectOf(c) + ", which ends " + c.NotAfter.UTC().Format(time.RFC3339), Do: "shorten the policy's validity or renew the signer's certificate",
			}
		}
	}
	if len(chain) > 0 && !slices.ContainsFunc(chain[0].UnknownExtKeyUsage, certs.EKUPolicySigning.Equal) {
		return nil, &RefusedError{
			Kind: ErrSignerEKU, Expected: "a certificate with extendedKeyUsage " + certs.EKUName(certs.EKUPolicySigning),
			Came: certs.SubjectOf(chain[0]), Do: "sign with a certificate of the policy-signing CA",
		}
	}
	return SignPayload(payload, signer, chain)
}
