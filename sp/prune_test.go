package sp_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"wardgate/sp"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// The server removes what is kept no longer, and nothing else: what was issued and has not ended, the
// newest policies and the record stay, serial numbers go on, and the database contradicts itself nowhere.
func TestPrune(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.cfg.Database.Keep, w.cfg.Database.KeepPolicies = sp.Duration(300*time.Hour), 2
		w.cfg.Services.Life = sp.Duration(24 * time.Hour)
		i := w.start()
		i.apply()
		a := w.devices[devA]
		_, tag := i.policy(a, "")
		old, r := i.enrol(a, "group-a")
		if old == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		list := i.crl(old.Leaf)
		entries := len(must(i.Store().Entries(w.context(), 0, 0))(t))
		first := i.head(devA)
		for range 4 {
			w.pass(time.Duration(w.cfg.Policy.Life)/2 + time.Minute)
			_, tag = i.policy(a, tag)
			i.settled()
		}
		w.pass(200 * time.Hour) // the first certificate ended more than 300 hours ago
		current, r := i.enrol(a, "group-a")
		if current == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		w.eventually("what is old is gone", func() bool {
			_, err := i.Store().Policy(w.context(), devA, first.Serial)
			certificates := must(i.Store().CertificatesOf(w.context(), devA, 0))(t)
			return errors.Is(err, store.ErrTooOld) && len(certificates) == 1
		})
		w.eventually("everybody's policy is renewed", func() bool {
			for name := range w.devices {
				if !i.head(name).Created.Equal(w.Now()) {
					return false
				}
			}
			return true
		})
		i.settled()
		if got := must(i.Store().CertificatesOf(w.context(), devA, 0))(t); got[0].Serial != store.SerialText(current.Leaf.SerialNumber) {
			t.Errorf("kept %s", got[0].Serial)
		}
		if r := i.poll(current, "", "0"); r.status != http.StatusOK {
			t.Errorf("the certificate that is in use: %d %s", r.status, r.body)
		}
		if head := i.head(devA); head.Serial <= first.Serial {
			t.Errorf("serial %d, had %d", head.Serial, first.Serial)
		}
		if l := i.crl(current.Leaf); l.Number.Cmp(list.Number) <= 0 {
			t.Errorf("number of the list %v, had %v", l.Number, list.Number)
		}
		if n := len(must(i.Store().Entries(w.context(), 0, 0))(t)); n <= entries {
			t.Errorf("%d entries on the record, had %d", n, entries)
		}
		if err := i.Store().Check(w.context()); err != nil {
			t.Error(err)
		}
		must(i.Prune(w.context()))(t) // policies that were made since
		if done := must(i.Prune(w.context()))(t); done != (store.Pruned{}) {
			t.Errorf("pruned again: %+v", done)
		}
	})
}

// However short what is to be kept is, certificates stay as long as a list may have to name them.
func TestPruneKeepsWhatListsName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.cfg.Database.Keep = sp.Duration(time.Hour)
	w.cfg.Services.Life = sp.Duration(24 * time.Hour)
	i := w.start()
	i.apply()
	i.policy(w.devices[devA], "")
	c, r := i.enrol(w.devices[devA], "group-a")
	if c == nil {
		t.Fatalf("%d %s", r.status, r.body)
	}
	must(i.Store().Revoke(w.context(), store.Revocation{Device: devA, Reason: store.KeyCompromise, Who: "test"}, w.Now()))(t)
	w.pass(24*time.Hour + 2*time.Duration(w.cfg.Policy.Life) - time.Minute)
	must(i.Prune(w.context()))(t)
	if n := len(i.crl(c.Leaf).RevokedCertificateEntries); n != 1 {
		t.Errorf("%d entries in the list, want the one that ended less than a list's life ago", n)
	}
}

// Policies of devices that are gone end first and are renewed by nobody. They keep nobody else from it.
func TestRenewalBehindManyThatAreGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	i := w.start()
	i.apply()
	_, tag := i.policy(w.devices[devA], "")
	i.settled()
	before := i.head(devA)
	soon := w.Now().Add(time.Hour)
	const batch = store.MaxBatch
	for n := 0; n <= store.MaxPage; n += batch {
		list := make([]store.Policy, batch)
		for k := range list {
			list[k] = store.Policy{
				PolicyHead: store.PolicyHead{Device: fmt.Sprintf("gone-%d.devices.example", n+k), Serial: 1, Content: store.Hash{1}, Revision: 1, Created: w.Now(), NotAfter: soon},
				Signer:     "test", JWS: []byte("x"),
			}
		}
		must(i.Store().PutPolicies(w.context(), "test", list, nil, w.Now()))(t)
	}
	w.pass(time.Duration(w.cfg.Policy.Life)/2 + time.Minute)
	doc, _ := i.policy(w.devices[devA], tag)
	if doc.Serial <= before.Serial {
		t.Errorf("serial %d, had %d", doc.Serial, before.Serial)
	}
}
