package pkichip_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"wardgate/internal/labca"
	"wardgate/pkichip"
)

// service returns what List says of a service.
func (b *bench) service(c *pkichip.Chip, name string) []pkichip.Credential {
	b.tb.Helper()
	all, err := c.List(b.ctx())
	must(b.tb, err)
	var out []pkichip.Credential
	for _, x := range all {
		if x.Layer == pkichip.LayerService && x.Service == name {
			out = append(out, x)
		}
	}
	return out
}

// wantService checks that a service has so many usable certificates, so many keys that wait, and nothing else.
func (b *bench) wantService(c *pkichip.Chip, name string, usable, waiting int) {
	b.tb.Helper()
	list := b.service(c, name)
	for _, x := range list {
		switch {
		case x.Cert != nil && x.Signer != nil:
			usable--
		case x.Signer != nil:
			waiting--
		}
		if x.Signer != nil {
			must(b.tb, checkSignature(x.Signer))
		}
	}
	if usable != 0 || waiting != 0 {
		b.tb.Errorf("service %s: %s", name, describe(list))
	}
	for _, x := range list {
		if x.Signer == nil {
			b.tb.Errorf("service %s has leftovers: %s", name, describe(list))
		}
	}
}

func describe(list []pkichip.Credential) string {
	s := fmt.Sprintf("%d entries", len(list))
	for _, x := range list {
		s += fmt.Sprintf("; %x: key %t, public key %t, certificate %t", x.ID, x.Signer != nil, x.Public != nil, x.Cert != nil)
	}
	return s
}

// objects counts what SoftHSM has on disk beside the token itself.
func (b *bench) objects() int {
	b.tb.Helper()
	files, err := filepath.Glob(filepath.Join(b.tokens(), "*", "*.object"))
	must(b.tb, err)
	return len(files) - 1
}

// again asks for another certificate for a key, valid from a moment later.
func (b *bench) again(cert *x509.Certificate, service string, later time.Duration) *x509.Certificate {
	b.tb.Helper()
	next, err := b.lab.Services[service].Issue(labca.Request{
		Public: cert.PublicKey, DNSNames: cert.DNSNames, At: cert.NotBefore.Add(later), Device: b.deviceDER,
	})
	must(b.tb, err)
	return next
}

// Layer 2 has two certificates of a service after a power failure in the middle of Store: both are
// listed, the newer serves, and storing it again removes the rest. Also when both are for one key.
func TestStoreCutShort(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	must(t, c.Store(f.ctx(), f.storeService("group-a", f.request(c, "group-a", pkichip.P256))))
	clean := f.objects()
	for _, sameKey := range []bool{false, true} {
		both := false
		for n := 1; ; n++ {
			creds, err := c.Credentials(f.ctx())
			must(t, err)
			var next *x509.Certificate
			if sameKey {
				next = f.again(creds[1].Cert, "group-a", time.Second)
			} else {
				next = f.request(c, "group-a", pkichip.P256)
			}
			f.set(fmt.Sprintf("die-before %d", n))
			err = c.Store(f.ctx(), f.storeService("group-a", next))
			f.set()
			if err == nil {
				if n < 3 {
					t.Errorf("Store changes the token %d times only", n-1)
				}
				break
			}
			if !errors.Is(err, pkichip.ErrChipRestarting) {
				t.Fatalf("the process dies before change %d: %v", n, err)
			}
			waitEvent(t, c, pkichip.EventRestarted)
			usable := 0
			for _, x := range f.service(c, "group-a") {
				if x.Cert != nil && x.Signer != nil {
					must(t, checkSignature(x.Signer))
					usable++
				}
			}
			if usable == 0 {
				t.Fatalf("nothing to work with before change %d: %s", n, describe(f.service(c, "group-a")))
			}
			both = both || usable == 2
			now, err := c.Credentials(f.ctx())
			must(t, err)
			switch old := creds[1].Cert; {
			case len(now) != 2:
				t.Errorf("before change %d: %d credentials", n, len(now))
			case n == 1 && !now[1].Cert.Equal(old):
				t.Error("another certificate serves, but nothing has changed")
			case n > 1 && !now[1].Cert.Equal(next) && next.NotBefore.After(old.NotBefore):
				t.Errorf("before change %d the older certificate serves", n)
			}
			must(t, c.Store(f.ctx(), f.storeService("group-a", next)))
			f.wantService(c, "group-a", 1, 0)
			must(t, c.Store(f.ctx(), f.storeService("group-a", next))) // there is nothing left to do
			if got := f.objects(); got != clean {
				t.Errorf("%d objects on the token, expected %d", got, clean)
			}
		}
		if !both {
			t.Errorf("same key %t: there never were two certificates", sameKey)
		}
	}
}

// A key that waits makes room for the next one of its service; what is in use stays. Cut short
// anywhere, the next Generate leaves one key that waits and nothing else.
func TestGenerateCutShort(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	must(t, c.Store(f.ctx(), f.storeService("group-a", f.request(c, "group-a", pkichip.P256))))
	_, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	must(t, err)
	clean := f.objects()
	for n := 1; ; n++ {
		f.set(fmt.Sprintf("die-before %d", n))
		_, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
		f.set()
		if err == nil {
			if n != 4 {
				t.Errorf("Generate changes the token %d times, expected 3", n-1)
			}
			break
		}
		waitEvent(t, c, pkichip.EventRestarted)
		creds, err := c.Credentials(f.ctx())
		must(t, err)
		if len(creds) != 2 {
			t.Errorf("before change %d: %d credentials", n, len(creds))
		}
		_, err = c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
		must(t, err)
		f.wantService(c, "group-a", 1, 1)
		if got := f.objects(); got != clean {
			t.Errorf("before change %d: %d objects on the token, expected %d", n, got, clean)
		}
	}
}

// Delete removes all that a service has. Cut short anywhere, List shows that something is left
// until the next Delete.
func TestDeleteCutShort(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	clean := f.objects()
	for n := 1; ; n++ {
		must(t, c.Store(f.ctx(), f.storeService("group-a", f.request(c, "group-a", pkichip.P256))))
		f.request(c, "group-a", pkichip.P256)
		f.set(fmt.Sprintf("die-before %d", n))
		err := c.Delete(f.ctx(), "group-a")
		f.set()
		if err == nil {
			if n != 7 { // intermediate, two pairs of keys, certificate
				t.Errorf("Delete changes the token %d times, expected 6", n-1)
			}
		} else {
			waitEvent(t, c, pkichip.EventRestarted)
			if len(f.service(c, "group-a")) == 0 {
				t.Errorf("before change %d: nothing is listed, but there are %d objects more than before", n, f.objects()-clean)
			}
			must(t, c.Delete(f.ctx(), "group-a"))
		}
		if got := f.objects(); got != clean || len(f.service(c, "group-a")) != 0 {
			t.Errorf("before change %d: %d objects left, %s", n, got-clean, describe(f.service(c, "group-a")))
		}
		if err == nil {
			return
		}
	}
}

// The chip process is killed at random instants, also in the middle of a call of the module:
// nothing that served stops serving, and the next try leaves nothing behind.
func TestKilledWhileChanging(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	must(t, c.Store(b.ctx(), b.storeService("group-a", b.request(c, "group-a", pkichip.P256))))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	renew := func() error {
		key, err := c.Generate(b.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
		if err != nil {
			return err
		}
		csr, err := c.CSR(b.ctx(), key, "a.group-a.example", time.Now())
		if err != nil {
			return err
		}
		cert, err := b.lab.Services["group-a"].IssueFromCSR(labca.FromCSR{
			CSR: csr, At: time.Now().Add(-time.Minute), DeviceAnchors: []*x509.Certificate{b.lab.Device.Anchor()}, DeviceCA: b.lab.Device.Intermediates(),
		})
		must(t, err)
		return c.Store(b.ctx(), b.storeService("group-a", cert))
	}
	start := time.Now()
	must(t, renew())
	took := time.Since(start)
	for round := range 25 {
		pid, after := c.Status().PID, time.Duration(random.Int64N(int64(took)+1))
		killed := make(chan error, 1)
		time.AfterFunc(after, func() { killed <- syscall.Kill(pid, syscall.SIGKILL) })
		err := renew()
		must(t, <-killed)
		if err != nil && !errors.Is(err, pkichip.ErrChipRestarting) {
			t.Fatalf("round %d: %v", round, err)
		}
		waitEvent(t, c, pkichip.EventRestarted)
		creds, err := c.Credentials(b.ctx())
		must(t, err)
		if len(creds) != 2 {
			t.Fatalf("round %d: %d credentials; %s", round, len(creds), describe(b.service(c, "group-a")))
		}
		must(t, checkSignature(creds[1].Signer))
		must(t, renew())
		b.wantService(c, "group-a", 1, 0)
	}
}

// Another program changes the token, such as `wardgate token` beside the daemon: what List and
// Credentials say follows at once, and so do the signers.
func TestChangedByAnotherProgram(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	must(t, c.Store(b.ctx(), b.storeService("group-a", b.request(c, "group-a", pkichip.P256))))
	before, err := c.Credentials(b.ctx())
	must(t, err)
	must(t, checkSignature(before[1].Signer)) // its handle is remembered now

	other := b.start(nil)
	next := b.request(other, "group-a", pkichip.P256)
	must(t, checkSignature(before[1].Signer))
	must(t, other.Store(b.ctx(), b.storeService("group-a", next)))
	after, err := c.Credentials(b.ctx())
	must(t, err)
	if len(after) != 2 || !after[1].Cert.Equal(next) {
		t.Fatalf("%d credentials", len(after))
	}
	must(t, checkSignature(after[1].Signer))
	if err := checkSignature(before[1].Signer); !errors.Is(err, pkichip.ErrNoKey) {
		t.Errorf("the old key: %v", err)
	}
	must(t, other.Delete(b.ctx(), "group-a"))
	if list := b.service(c, "group-a"); len(list) != 0 {
		t.Errorf("after deleting: %s", describe(list))
	}
	if err := checkSignature(after[1].Signer); !errors.Is(err, pkichip.ErrNoKey) {
		t.Errorf("the deleted key: %v", err)
	}
}
