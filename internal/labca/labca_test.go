package labca_test

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Every kind of key, with and without an issuing CA between: what is issued is what package certs
// accepts, and the CA certificates carry the constraints of the profile.
func TestProfiles(t *testing.T) {
	for _, key := range []labca.KeyType{labca.P256, labca.P384, labca.RSA2048, labca.Ed25519} {
		for _, direct := range []bool{false, true} {
			for _, kind := range []labca.Kind{labca.Device, labca.Service, labca.Policy} {
				a, err := labca.New(labca.Options{Kind: kind, Name: "x", Domain: "x.example", Key: key, At: t0, Direct: direct, CRLURL: "http://crl.example/x"})
				must(t, err)
				k, err := labca.NewKey(key)
				must(t, err)
				c, err := a.Issue(labca.Request{Public: k.Public(), DNSNames: []string{"a.x.example"}, At: t0, Device: []byte("a device certificate")})
				must(t, err)
				eku := certs.EKUIPsecIKE
				if kind == labca.Policy {
					eku = certs.EKUPolicySigning
				}
				opt := certs.Options{Leaf: c.Raw, Intermediates: labca.DER(a.Intermediates()), Anchors: []*x509.Certificate{a.Anchor()}, EKU: eku, At: t0}
				if kind == labca.Service {
					opt.RelatedTo = []byte("a device certificate")
				}
				opt.CRLs, err = a.CRLs(t0, time.Hour)
				must(t, err)
				opt.RequireCRL = true
				v, err := certs.VerifyChain(opt)
				must(t, err)
				if want := map[bool]int{false: 3, true: 2}[direct]; len(v.Chain) != want {
					t.Errorf("%s %s: chain of %d, expected %d", kind, key, len(v.Chain), want)
				}
				ca := v.Chain[1]
				if !ca.MaxPathLenZero || ca.MaxPathLen != 0 || !ca.PermittedDNSDomainsCritical || len(ca.PermittedDNSDomains) != 1 {
					t.Errorf("%s %s: issuing CA without its constraints", kind, key)
				}
				if len(c.SerialNumber.Bytes()) != 16 || len(c.CRLDistributionPoints) != 1 {
					t.Errorf("%s %s: serial number %x, %v", kind, key, c.SerialNumber, c.CRLDistributionPoints)
				}
			}
		}
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	lab, err := labca.NewLab(dir, labca.P256, t0, "group-a")
	must(t, err)
	k, err := labca.NewKey(labca.P256)
	must(t, err)
	c, err := lab.Device.Issue(labca.Request{Public: k.Public(), DNSNames: []string{"a.devices.example"}, At: t0})
	must(t, err)
	must(t, lab.Device.Revoke(c.SerialNumber, t0, 4))
	_, err = lab.Device.CRLs(t0, time.Hour)
	must(t, err)
	lab.Device.Close()

	again, err := labca.Open(labca.Dir(dir, labca.Device, ""))
	must(t, err)
	if !again.Anchor().Equal(lab.Device.Anchor()) || len(again.Issued()) != 1 || again.Kind() != labca.Device || again.Domain() != "devices.example" {
		t.Errorf("opened again: %+v", again.Issued())
	}
	lists, err := again.CRLs(t0, time.Hour)
	must(t, err)
	if lists[0].Number.Cmp(big.NewInt(2)) != 0 || len(lists[0].RevokedCertificateEntries) != 1 || lists[0].RevokedCertificateEntries[0].ReasonCode != 4 {
		t.Errorf("list: number %v, %d entries", lists[0].Number, len(lists[0].RevokedCertificateEntries))
	}
	again.Close()

	if _, err := labca.Create(labca.Dir(dir, labca.Device, ""), labca.Options{Kind: labca.Device, Name: "device", At: t0}); err == nil {
		t.Error("an authority was overwritten")
	}
	if _, err := labca.Open(filepath.Join(dir, "none")); err == nil {
		t.Error("opened a folder that is not there")
	}
	must(t, os.WriteFile(filepath.Join(dir, "device", "ca.key"), []byte("junk"), 0o600))
	if _, err := labca.Open(filepath.Join(dir, "device")); err == nil || !strings.Contains(err.Error(), "ca.key") {
		t.Errorf("damaged key: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	lab, err := labca.NewLab("", labca.P256, t0, "group-a")
	must(t, err)
	a := lab.Services["group-a"]
	dk, err := labca.NewKey(labca.P256)
	must(t, err)
	device, err := lab.Device.Issue(labca.Request{Public: dk.Public(), DNSNames: []string{"a.devices.example"}, At: t0})
	must(t, err)
	sk, err := labca.NewKey(labca.P256)
	must(t, err)
	good := labca.FromCSR{At: t0.Add(time.Minute), DeviceAnchors: []*x509.Certificate{lab.Device.Anchor()}, DeviceCA: lab.Device.Intermediates()}
	csr := func(edit func(*certs.CSR)) []byte {
		t.Helper()
		proof, err := certs.NewRelatedCertRequest(rand.Reader, device, dk, t0)
		must(t, err)
		r := certs.CSR{DNSNames: []string{"a.group-a.example"}, Related: proof}
		if edit != nil {
			edit(&r)
		}
		der, err := r.Create(rand.Reader, sk)
		must(t, err)
		return der
	}
	try := func(name string, want certs.Class, edit func(*labca.FromCSR)) {
		t.Helper()
		r := good
		r.CSR = csr(nil)
		edit(&r)
		_, err := a.IssueFromCSR(r)
		if certs.ClassOf(err) != want || (want == certs.Unknown) != (err == nil) {
			t.Errorf("%s: %v, expected %v", name, err, want)
		}
	}
	try("good", certs.Unknown, func(*labca.FromCSR) {})
	try("no proof", certs.ProofOfDevice, func(r *labca.FromCSR) { r.CSR = csr(func(c *certs.CSR) { c.Related = nil }) })
	try("stale proof", certs.ProofOfDevice, func(r *labca.FromCSR) { r.At = t0.Add(25 * time.Hour) })
	try("altered", certs.CSRSignature, func(r *labca.FromCSR) { r.CSR[len(r.CSR)-1] ^= 1 })
	try("device by another CA", certs.UnknownCA, func(r *labca.FromCSR) { r.DeviceAnchors = []*x509.Certificate{a.Anchor()} })
	try("no device anchors", certs.AnchorsMissing, func(r *labca.FromCSR) { r.DeviceAnchors = nil })
	try("junk", certs.Malformed, func(r *labca.FromCSR) { r.CSR = []byte("junk") })
	other, err := lab.Device.Issue(labca.Request{Public: sk.Public(), DNSNames: []string{"b.devices.example"}, At: t0})
	must(t, err)
	try("another device's certificate", certs.ProofOfDevice, func(r *labca.FromCSR) { r.Device = other })
	r := good
	proof, err := certs.NewRelatedCertRequest(rand.Reader, device, dk, t0)
	must(t, err)
	r.CSR, err = certs.CSR{DNSNames: []string{"a.group-a.example"}, Related: proof}.Create(rand.Reader, dk)
	must(t, err)
	if _, err := a.IssueFromCSR(r); certs.ClassOf(err) != certs.ProofOfDevice {
		t.Errorf("the device's key for a service: %v", err)
	}
	must(t, lab.Device.Revoke(device.SerialNumber, t0, 1))
	lists, err := lab.Device.CRLs(t0, time.Hour)
	must(t, err)
	try("revoked device", certs.Revoked, func(r *labca.FromCSR) { r.DeviceCRLs = lists })
	if _, err := a.Issue(labca.Request{Public: sk.Public(), DNSNames: []string{"a.group-b.example"}, At: t0, Device: device.Raw}); !errors.Is(err, labca.ErrOutsideDomain) {
		t.Errorf("outside the domain: %v", err)
	}
	for _, bad := range []labca.Options{{Kind: "x", Name: "x", At: t0}, {Kind: labca.Device, Name: "../x", At: t0}, {Kind: labca.Device, Name: "x"}, {Kind: labca.Device, Name: "x", At: t0, Key: "dsa"}} {
		if _, err := labca.New(bad); err == nil {
			t.Errorf("made %+v", bad)
		}
	}
}
