package enroltest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/router/centre"
	"wardgate/sp/store"
)

// Issue 4, "Shown by" 5, what the device refuses: the policy before stays in force, an event tells why,
// and the next report tells the centre. The policies lie in the centre's own database, as if somebody had
// got hold of that.

// pair is a signer of policies.
type pair struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

// signer reads a key of the centre's folder: "policy" or "policy-root".
func (w *world) signer(name string) pair {
	w.Helper()
	k := must(tls.LoadX509KeyPair(filepath.Join(w.dir, name+".pem"), filepath.Join(w.dir, name+".key")))(w)
	return pair{k.PrivateKey.(crypto.Signer), w.pem(name + ".pem")}
}

// another makes a signer below a root.
func (w *world) another(root pair, from, until time.Time) pair {
	w.Helper()
	key := w.newKey()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "sp.example"}, DNSNames: []string{"sp.example"}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUPolicySigning},
	}
	der := must(x509.CreateCertificate(rand.Reader, c, root.chain[0], key.Public(), root.key))(w)
	return pair{key, []*x509.Certificate{must(x509.ParseCertificate(der))(w)}}
}

// plant puts a policy into the centre's database as a device's newest: the newest one of a device, changed
// and signed anew.
func (w *world) plant(device, of string, by pair, change func(*policy.Document)) {
	w.Helper()
	p := must(w.running.Store().Latest(w.context(), of))(w)
	doc, _, err := policy.Inspect(p.JWS)
	if err != nil {
		w.Fatal(err)
	}
	doc.Serial++
	if change != nil {
		change(doc)
	}
	jws := must(policy.SignPayload(must(json.Marshal(doc))(w), by.key, by.chain))(w)
	w.put(device, p.PolicyHead, jws)
}

// put makes a file a device's newest policy.
func (w *world) put(device string, head store.PolicyHead, jws []byte) {
	w.Helper()
	head.Device, head.Serial, head.Content[0] = device, w.head(device).Serial+1, head.Content[0]^1
	must(w.running.Store().PutPolicies(w.context(), "test", []store.Policy{{PolicyHead: head, Signer: "test", JWS: jws}}, nil, w.Now()))(w)
}

// refusesPolicy has a device run, plants a policy for it, and checks that the device refuses it for a
// reason. The next good policy is taken.
func refusesPolicy(t *testing.T, code string, plant func(w *world, a, b *device)) {
	t.Helper()
	w, a, b := hostile(t)
	a.joined()
	b.joined()
	before := a.sink.serial()
	_, stop := a.run()
	defer stop()
	w.waits()
	plant(w, a, b)
	w.eventually("the device refuses it", time.Second, func() bool {
		for _, e := range a.told(centre.EventFailed) {
			if strings.Contains(e.Text, code+":") && strings.HasPrefix(e.Text, string(centre.PolicyBad)) {
				return true
			}
		}
		return false
	})
	w.eventually("the centre is told", time.Second, func() bool {
		for _, e := range must(w.running.Store().Report(w.context(), devA))(w).Errors {
			if e.Code == string(centre.PolicyBad) && strings.Contains(e.Text, code) {
				return true
			}
		}
		return false
	})
	if got := a.sink.serial(); got != before {
		t.Errorf("policy %d is in force, want the one before, %d", got, before)
	}
	w.signerCRLs.Store(nil)
	w.leave(devA, "group-a")
	w.apply()
	w.eventually("the next policy is in force", time.Second, func() bool { return a.sink.serial() == w.head(devA).Serial })
	w.eventually("somebody is told that it works again", time.Second, func() bool { return len(a.told(centre.EventRecovered)) > 0 })
}

func TestRefusedPolicyForAnotherDevice(t *testing.T) {
	refusesPolicy(t, "policy-other-device", func(w *world, _, _ *device) { w.plant(devA, devB, w.signer("policy"), nil) })
}

func TestRefusedOlderPolicy(t *testing.T) {
	refusesPolicy(t, "policy-serial-older", func(w *world, _, _ *device) {
		w.plant(devA, devA, w.signer("policy"), func(d *policy.Document) { d.Serial -= 2 })
	})
}

func TestRefusedPolicyWithASerialUsedTwice(t *testing.T) {
	refusesPolicy(t, "policy-serial-reused", func(w *world, _, _ *device) {
		w.plant(devA, devA, w.signer("policy"), func(d *policy.Document) { d.Serial--; d.NotAfter = d.NotAfter.Add(time.Hour) })
	})
}

func TestRefusedPolicyByARevokedSigner(t *testing.T) {
	refusesPolicy(t, "policy-signer-revoked", func(w *world, _, _ *device) {
		root, signer := w.signer("policy-root"), w.signer("policy")
		der := must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: w.Now().Add(-time.Hour), NextUpdate: w.Now().Add(1000 * time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: signer.chain[0].SerialNumber, RevocationTime: w.Now().Add(-time.Minute), ReasonCode: 1}},
		}, root.chain[0], root.key))(w)
		w.signerCRLs.Store(&[]*x509.RevocationList{must(x509.ParseRevocationList(der))(w)})
		w.plant(devA, devA, signer, nil)
	})
}

func TestRefusedPolicyByAnExpiredSigner(t *testing.T) {
	refusesPolicy(t, "policy-signer-validity", func(w *world, _, _ *device) {
		w.plant(devA, devA, w.another(w.signer("policy-root"), w.Now().Add(-time.Hour), w.Now().Add(-time.Minute)), nil)
	})
}

func TestRefusedPolicyByAForeignSigner(t *testing.T) {
	refusesPolicy(t, "policy-signer-untrusted", func(w *world, _, _ *device) {
		key := w.newKey()
		// Named like the SP's root, and with another key.
		root := *w.signer("policy-root").chain[0]
		root.SerialNumber, root.PublicKey = big.NewInt(1), key.Public()
		der := must(x509.CreateCertificate(rand.Reader, &root, &root, key.Public(), key))(w)
		foreign := pair{key, []*x509.Certificate{must(x509.ParseCertificate(der))(w)}}
		w.plant(devA, devA, w.another(foreign, w.Now().Add(-time.Hour), w.Now().Add(1000*time.Hour)), nil)
	})
}

func TestRefusedPolicyBySomebodyElseOfTheSP(t *testing.T) {
	refusesPolicy(t, "policy-signer-eku", func(w *world, _, _ *device) {
		root := w.signer("policy-root")
		key := w.newKey()
		c := &x509.Certificate{
			SerialNumber: big.NewInt(78), Subject: pkix.Name{CommonName: "web.sp.example"}, NotBefore: w.Now().Add(-time.Hour), NotAfter: w.Now().Add(1000 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der := must(x509.CreateCertificate(rand.Reader, c, root.chain[0], key.Public(), root.key))(w)
		w.plant(devA, devA, pair{key, []*x509.Certificate{must(x509.ParseCertificate(der))(w)}}, nil)
	})
}

func TestRefusedPolicyThatWasChanged(t *testing.T) {
	refusesPolicy(t, "policy-signature", func(w *world, _, _ *device) {
		p := must(w.running.Store().Latest(w.context(), devA))(t)
		jws := bytes.Clone(p.JWS)
		i := bytes.LastIndexByte(jws, '.') + 3 // in the signature
		if jws[i] == 'A' {
			jws[i] = 'B'
		} else {
			jws[i] = 'A'
		}
		w.put(devA, p.PolicyHead, jws)
	})
}
