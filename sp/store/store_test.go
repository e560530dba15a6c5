package store_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wardgate/policy"
	"wardgate/sp/registry"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	os.Exit(storetest.Main(m))
}

// t0 is when the tests play.
var t0 = time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC)

func open(tb testing.TB, url string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Options{URL: url, Poll: 10 * time.Millisecond})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			tb.Error(err)
		}
	})
	return s
}

// each runs a test on a new store of each kind, and checks that it is sound afterwards.
func each(t *testing.T, run func(t *testing.T, s *store.Store)) {
	t.Helper()
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		s := open(t, url)
		run(t, s)
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func want(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("expected the error %q, came %v", kind, err)
	}
}

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// get is for calls that must work.
func get[T any](v T, err error) func(tb testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		ok(tb, err)
		return v
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-expected +came)\n%s", d)
	}
}

func hash(s string) store.Hash { return sha256.Sum256([]byte(s)) }

// members is a registry of so many members with a title each.
func members(tb testing.TB, n int, title string) *registry.Registry {
	tb.Helper()
	var c registry.Content
	for i := range n {
		c.Members = append(c.Members, registry.Member{Name: fmt.Sprintf("m%04d", i), Title: title})
	}
	return get(registry.New(c))(tb)
}

// certificate is a device's, as the registry holds it.
func certificate(tb testing.TB, name string) string {
	tb.Helper()
	key := get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: t0, NotAfter: t0.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	der := get(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(tb)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// whole is a registry with an object of each kind.
func whole(tb testing.TB) registry.Content {
	tb.Helper()
	device := func(name, member, prefix, gateway string) registry.Device {
		return registry.Device{
			Name: name, Member: member, Certificate: certificate(tb, name), Gateways: []string{gateway}, State: registry.Active,
			Zones: []registry.Zone{{Name: "imaging", Level: policy.LevelSZ, Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, Interfaces: []string{"lan0"}}},
		}
	}
	return registry.Content{
		Members: []registry.Member{{Name: "hospital-a", Title: "Hospital A \u2013 \u65e5\u672c\u8a9e"}, {Name: "clinic-b", Title: "Clinic B"}},
		Devices: []registry.Device{
			device("a.devices.example", "hospital-a", "10.1.0.0/24", "203.0.113.1"),
			device("b.devices.example", "clinic-b", "10.2.0.0/24", "203.0.113.2"),
		},
		Services: []registry.Service{{
			Name: "group-a", Title: "Group A", Category: policy.CategoryProcessing, Auth: policy.AuthCertificate, Domain: "group-a.example",
			Rules: registry.Rules{Suites: policy.Suites{IKE: []string{"aes256gcm16-prfsha384-x25519"}, ESP: []string{"aes256gcm16-x25519"}}},
		}},
		Memberships: []registry.Membership{{Device: "a.devices.example", Service: "group-a"}, {Device: "b.devices.example", Service: "group-a", Until: t0.AddDate(1, 0, 0)}},
		Contracts: []registry.Contract{{
			Name: "a-b", Service: "group-a", Start: policy.StartOnDemand,
			Parties: [2]registry.Party{{Device: "a.devices.example"}, {Device: "b.devices.example"}},
			Flows: []registry.Flow{{
				Name: "dicom", From: "b.devices.example", Protocol: "tcp", Ports: []registry.Ports{{First: 104, Last: 104}},
				Sources: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}, Destinations: []netip.Prefix{netip.MustParsePrefix("10.1.0.10/32")},
			}},
		}},
	}
}

func TestRegistryComesBack(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		empty, at, err := s.Current(ctx)
		ok(t, err)
		if at != 0 || len(empty.Members()) != 0 {
			t.Errorf("expected an empty registry at revision 0, came %d members at %d", len(empty.Members()), at)
		}
		c := whole(t)
		r1 := get(registry.New(c))(t)
		a1 := get(s.Apply(ctx, store.Change{Registry: r1, Who: "operator", Why: "first"}, t0))(t)
		same(t, [4]int{int(a1.Revision), a1.Added, a1.Changed, a1.Removed}, [4]int{1, 8, 0, 0})

		c.Members[1].Title = "Clinic B, renamed"
		c.Contracts = nil
		r2 := get(registry.New(c))(t)
		a2 := get(s.Apply(ctx, store.Change{Expected: 1, Registry: r2, Who: "operator", Why: "the contract ended"}, t0.Add(time.Hour)))(t)
		same(t, [4]int{int(a2.Revision), a2.Added, a2.Changed, a2.Removed}, [4]int{2, 0, 1, 1})
		a3 := get(s.Apply(ctx, store.Change{Expected: 2, Registry: r1, Who: "operator"}, t0.Add(2*time.Hour)))(t)
		same(t, [4]int{int(a3.Revision), a3.Added, a3.Changed, a3.Removed}, [4]int{3, 1, 1, 0})
		if a3.Hash != a1.Hash || a2.Hash == a1.Hash {
			t.Error("expected equal hashes for equal registries, and others for others")
		}

		// Read by an instance that did not write them, too.
		for _, r := range []*store.Store{s, again(t, s)} {
			for rev, expected := range map[store.Revision]*registry.Registry{1: r1, 2: r2, 3: r1} {
				same(t, jsonOf(t, get(r.At(ctx, rev))(t)), jsonOf(t, expected))
			}
			now, at, err := r.Current(ctx)
			ok(t, err)
			if at != 3 {
				t.Errorf("expected revision 3, came %d", at)
			}
			same(t, jsonOf(t, now), jsonOf(t, r1))
			same(t, get(r.History(ctx, 0, 0))(t), []store.Applied{a3, a2, a1})
			same(t, get(r.History(ctx, 3, 1))(t), []store.Applied{a2})
			_, err = r.At(ctx, 4)
			want(t, err, store.ErrNotFound)
		}
	})
}

// An instance that follows reads what changed, one that was just opened reads everything: both come to the
// same, also where the first one missed some revisions, and asked for an old one in between.
func TestFollowerReadsTheSameRegistry(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		full := whole(t)
		follower := again(t, s)
		const revisions = 24
		for rev := store.Revision(1); rev <= revisions; rev++ {
			c := get(killedRegistry(rev))(t).Content()
			c.Members = append(c.Members, full.Members...)
			c.Devices, c.Services, c.Memberships = full.Devices, full.Services, full.Memberships
			switch rev % 4 {
			case 0: // without contract, and then also without membership and device
			case 1:
				c.Memberships = c.Memberships[:1]
			case 2:
				c.Memberships, c.Devices = nil, c.Devices[:1]
			case 3:
				c.Contracts = full.Contracts
			}
			r := get(registry.New(c))(t)
			get(s.Apply(ctx, store.Change{Expected: rev - 1, Registry: r, Who: "operator"}, t0))(t)
			if rev%5 == 0 {
				continue
			}
			now, at, err := follower.Current(ctx)
			ok(t, err)
			if at != rev {
				t.Fatalf("expected revision %d, came %d", rev, at)
			}
			same(t, jsonOf(t, now), jsonOf(t, r))
			same(t, jsonOf(t, get(again(t, s).At(ctx, rev))(t)), jsonOf(t, r))
			if rev > 3 {
				old := rev - 3
				same(t, jsonOf(t, get(follower.At(ctx, old))(t)), jsonOf(t, get(again(t, s).At(ctx, old))(t)))
			}
		}
	})
}

// Recent is never older than what this instance applied or saw, and asks where nobody has asked lately.
func TestRecent(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		other := again(t, s)
		apply := func(by *store.Store, rev store.Revision) {
			t.Helper()
			get(by.Apply(ctx, store.Change{Expected: rev - 1, Registry: get(killedRegistry(rev))(t), Who: "op"}, t0))(t)
		}
		recent := func(while time.Duration, want store.Revision) {
			t.Helper()
			r, rev, err := s.Recent(ctx, while)
			ok(t, err)
			if rev != want {
				t.Errorf("revision %d, want %d", rev, want)
			}
			same(t, jsonOf(t, r), jsonOf(t, get(s.At(ctx, rev))(t)))
		}
		recent(time.Hour, 0)
		apply(s, 1)
		recent(time.Hour, 1)
		apply(other, 2)
		recent(time.Hour, 2) // nobody has asked for the heads yet
		get(s.Heads(ctx))(t)
		recent(time.Hour, 2)
		apply(other, 3)
		recent(0, 3)         // too long ago
		recent(time.Hour, 3) // what was read once is not forgotten
		apply(other, 4)
		get(s.Heads(ctx))(t)
		recent(time.Hour, 4) // seen, though not read
		apply(s, 5)
		recent(time.Hour, 5) // its own
	})
}

// again is another instance on the same database.
func again(t *testing.T, s *store.Store) *store.Store { return open(t, s.URL()) }

func jsonOf(tb testing.TB, r *registry.Registry) string {
	tb.Helper()
	return string(get(json.Marshal(r))(tb))
}

func TestApplyExpectsTheRevision(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		a1 := get(s.Apply(ctx, store.Change{Registry: members(t, 3, "one"), Who: "x"}, t0))(t)
		_, err := s.Apply(ctx, store.Change{Registry: members(t, 4, "two"), Who: "y"}, t0)
		want(t, err, store.ErrConflict)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) || *conflict != (store.ConflictError{Expected: 0, Current: 1}) {
			t.Errorf("expected a conflict of 0 with 1, came %v", err)
		}
		_, err = s.Apply(ctx, store.Change{Expected: 7, Registry: members(t, 4, "two"), Who: "y"}, t0)
		want(t, err, store.ErrConflict)

		// The same again is no revision and makes no work.
		same(t, get(s.Apply(ctx, store.Change{Expected: 1, Registry: members(t, 3, "one"), Who: "z", Jobs: []store.Job{{Kind: "compile", Item: "a"}}}, t0))(t), a1)
		same(t, get(s.Queue(ctx, "compile"))(t), store.Queue{})

		// Of many at the same time, one wins each revision.
		other := again(t, s)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 16 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				at := []*store.Store{s, other}[i%2]
				_, err := at.Apply(ctx, store.Change{Expected: 1, Registry: members(t, 3, fmt.Sprint("title ", i)), Who: "z", Jobs: []store.Job{{Kind: "compile", Item: fmt.Sprint("d", i)}}}, t0)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("expected one of 16 to win, came %d", won)
		}
		if q := get(s.Queue(ctx, "compile"))(t); q.Waiting != 1 {
			t.Errorf("expected the work of the one that won, came %+v", q)
		}
	})
}

func cert(service, device string, n int64, from time.Time, life time.Duration) store.Certificate {
	serial := store.SerialText(big.NewInt(n))
	return store.Certificate{
		Service: service, Issuer: "ca", Serial: serial, Device: device, Key: hash("key " + serial), Request: hash("request " + service + device + serial),
		NotBefore: from, NotAfter: from.Add(life), DER: []byte("certificate " + serial),
	}
}

func TestCertificates(t *testing.T) {
	const week = 7 * 24 * time.Hour
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		c1 := cert("group-a", "a", 0xabc, t0, week)
		ok(t, s.Issue(ctx, store.Issue{Certificate: c1, Supersede: -1}, t0))
		c1.Issued = t0
		same(t, *get(s.Certificate(ctx, "group-a", "ca", "0abc"))(t), c1)
		same(t, *get(s.CurrentCertificate(ctx, "group-a", "a"))(t), c1)

		// The same request once more, and another one with a serial number that is taken.
		want(t, s.Issue(ctx, store.Issue{Certificate: c1}, t0), store.ErrReplay)
		double := cert("group-a", "b", 0xabc, t0, week)
		double.Request = hash("another")
		want(t, s.Issue(ctx, store.Issue{Certificate: double}, t0), store.ErrConflict)
		_, err := s.RequestSeen(ctx, double.Request)
		want(t, err, store.ErrNotFound) // nothing of what was refused stays

		// A valid one is there already.
		c2 := cert("group-a", "a", 2, t0.Add(5*24*time.Hour), week)
		now := t0.Add(5 * 24 * time.Hour)
		want(t, s.Issue(ctx, store.Issue{Certificate: c2, Supersede: -1}, now), store.ErrConflict)
		before := get(s.Heads(ctx))(t)
		ok(t, s.Issue(ctx, store.Issue{Certificate: c2, Supersede: time.Hour}, now))
		c2.Issued = now
		c1.Ends, c1.Reason = now.Add(time.Hour), store.Superseded
		same(t, *get(s.Certificate(ctx, "group-a", "ca", "0abc"))(t), c1)
		same(t, *get(s.CurrentCertificate(ctx, "group-a", "a"))(t), c2)
		if h := get(s.Heads(ctx))(t); h.Revocation != before.Revocation+1 {
			t.Errorf("expected the head of revocations to move by one from %d, came %d", before.Revocation, h.Revocation)
		}
		same(t, *get(s.CertificateForKey(ctx, "group-a", c1.Key))(t), c1)
		if !c1.Valid(now) || c1.Valid(now.Add(time.Hour)) {
			t.Error("expected the old one to be good for an hour beside the new one, and no longer")
		}
		same(t, get(s.Revoked(ctx, "group-a", "ca", now, now))(t), []store.Revoked(nil))
		end, found, err := s.NextEnd(ctx, "group-a", "ca", now)
		ok(t, err)
		same(t, []any{end, found}, []any{now.Add(time.Hour), true})
		same(t, get(s.Revoked(ctx, "group-a", "ca", now, now.Add(time.Hour)))(t), []store.Revoked{{Serial: "0abc", At: now.Add(time.Hour), Reason: store.Superseded}})
		// Lists hold it until it has expired.
		same(t, get(s.Revoked(ctx, "group-a", "ca", c1.NotAfter.Add(time.Second), now.Add(week)))(t), []store.Revoked(nil))

		// The same key again: only in the place of its own certificate, and never for another device.
		same1 := cert("group-a", "a", 10, now, week)
		same1.Key = c2.Key
		want(t, s.Issue(ctx, store.Issue{Certificate: same1}, now), store.ErrConflict)
		want(t, s.Issue(ctx, store.Issue{Certificate: with(same1, func(c *store.Certificate) { c.Device = "b" }), Replaces: c2.Serial}, now), store.ErrConflict)
		ok(t, s.Issue(ctx, store.Issue{Certificate: same1, Replaces: c2.Serial, Supersede: 365 * 24 * time.Hour}, now))
		if c := get(s.Certificate(ctx, "group-a", "ca", c2.Serial))(t); !c.Valid(now) || !c.Ends.Equal(c.NotAfter) || c.Revoked(c.NotAfter) {
			t.Errorf("expected one that was replaced to stay good until it expires, and not to be revoked, came %+v", c)
		}
		same(t, get(s.Revoked(ctx, "group-a", "ca", now, c2.NotAfter))(t), []store.Revoked{{Serial: "0abc", At: now.Add(time.Hour), Reason: store.Superseded}})
		same(t, get(s.CertificateForKey(ctx, "group-a", c2.Key))(t).Serial, same1.Serial)
		// Another CA of the service may use the same number.
		ok(t, s.Issue(ctx, store.Issue{Certificate: with(cert("group-a", "c", 2, now, week), func(c *store.Certificate) { c.Issuer, c.Key = "new ca", hash("new") })}, now))
		_, err = s.Certificate(ctx, "group-a", "third ca", c2.Serial)
		want(t, err, store.ErrNotFound)

		// Another service, another device, and one that follows an expired one.
		ok(t, s.Issue(ctx, store.Issue{Certificate: cert("group-b", "a", 2, now, week), Supersede: -1}, now))
		ok(t, s.Issue(ctx, store.Issue{Certificate: cert("group-a", "b", 3, now, time.Hour), Supersede: -1}, now))
		late := now.Add(30 * 24 * time.Hour)
		fourth := cert("group-a", "b", 4, late, week)
		ok(t, s.Issue(ctx, store.Issue{Certificate: fourth, Supersede: -1}, late))
		third := get(s.Certificate(ctx, "group-a", "ca", "03"))(t)
		if !third.Ends.Equal(third.NotAfter) {
			t.Errorf("expected one that expired to end where it expired, came %s and %s", third.Ends, third.NotAfter)
		}
		same(t, len(get(s.CertificatesOf(ctx, "a", 0))(t)), 4)
		same(t, len(get(s.Expiring(ctx, late, late.Add(8*24*time.Hour), 0))(t)), 1)
	})
}

// What is asked for many devices is what is asked for each.
func TestManyDevicesAtOnce(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		const n = 150 // more than one statement holds
		var devices []string
		var policies []store.Policy
		for i := range n {
			d := fmt.Sprintf("d%03d", i)
			devices = append(devices, d)
			if i%3 > 0 {
				policies = append(policies, pol(d, uint64(i+1), "x"))
			}
			life := time.Hour
			if i%5 == 0 {
				life = time.Minute // expired by then
			}
			ok(t, s.Issue(ctx, store.Issue{Certificate: cert("group-a", d, int64(i+1), t0, life)}, t0))
			if i%7 == 0 {
				get(s.Revoke(ctx, store.Revocation{Device: d, Reason: store.KeyCompromise, Who: "op"}, t0))(t)
			}
		}
		get(s.PutPolicies(ctx, "op", policies, nil, t0))(t)
		get(s.PutPolicies(ctx, "op", []store.Policy{pol("d001", 1000, "y")}, nil, t0))(t)

		now := t0.Add(2 * time.Minute)
		heads := get(s.HeadsOf(ctx, devices))(t)
		used := get(s.CertificatesInUse(ctx, devices, now))(t)
		for i, d := range devices {
			h, err := s.LatestHead(ctx, d)
			if got, there := heads[d]; there != (err == nil) || got != h {
				t.Errorf("%s: %+v, alone %+v, %v", d, got, h, err)
			}
			c := get(s.CurrentCertificate(ctx, "group-a", d))
			if is := i%5 > 0 && i%7 > 0; is {
				same(t, used[0], *c(t))
				used = used[1:]
			}
		}
		if len(used) > 0 {
			t.Errorf("%d certificates too many: %+v", len(used), used[0])
		}
		same(t, len(get(s.HeadsOf(ctx, nil))(t))+len(get(s.CertificatesInUse(ctx, nil, now))(t)), 0)
		_, err := s.HeadsOf(ctx, make([]string, store.MaxBatch+1))
		want(t, err, store.ErrInvalid)
		_, err = s.CertificatesInUse(ctx, make([]string, store.MaxBatch+1), now)
		want(t, err, store.ErrInvalid)
	})
}

func TestRevoke(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		for i, c := range []store.Certificate{
			cert("group-a", "a", 1, t0, time.Hour), cert("group-b", "a", 2, t0, time.Hour), cert("group-a", "b", 3, t0, time.Hour), cert("group-c", "a", 4, t0, time.Minute),
		} {
			ok(t, s.Issue(ctx, store.Issue{Certificate: c}, t0.Add(time.Duration(i))))
		}
		now := t0.Add(10 * time.Minute)
		_, err := s.Revoke(ctx, store.Revocation{Device: "nobody", Who: "op"}, now)
		want(t, err, store.ErrNotFound)
		_, err = s.Revoke(ctx, store.Revocation{Device: "a", Reason: 6, Who: "op"}, now)
		want(t, err, store.ErrInvalid) // on hold: there is no way back
		// The device is stolen: what has expired (group-c) needs no end.
		ended := get(s.Revoke(ctx, store.Revocation{Device: "a", Reason: store.CessationOfOperation, Who: "op", Why: "stolen"}, now))(t)
		if len(ended) != 2 || ended[0].Service != "group-a" || ended[1].Service != "group-b" || !ended[0].Ends.Equal(now) {
			t.Errorf("expected the ends of a's two certificates, came %+v", ended)
		}
		// Once more: nothing. With a worse reason: the same time, the worse reason.
		same(t, len(get(s.Revoke(ctx, store.Revocation{Device: "a", Who: "op"}, now.Add(time.Minute)))(t)), 0)
		ended = get(s.Revoke(ctx, store.Revocation{Service: "group-a", Issuer: "ca", Serial: "01", Reason: store.KeyCompromise, Who: "op"}, now.Add(time.Minute)))(t)
		if len(ended) != 1 || !ended[0].Ends.Equal(now) || ended[0].Reason != store.KeyCompromise {
			t.Errorf("expected the first time and the worse reason, came %+v", ended)
		}
		same(t, get(s.Revoked(ctx, "group-a", "ca", now, now))(t), []store.Revoked{{Serial: "01", At: now, Reason: store.KeyCompromise}})
		b := get(s.Certificate(ctx, "group-a", "ca", "03"))(t)
		if !b.Valid(now) {
			t.Error("expected b's certificate to stay valid")
		}
		// One that was to end later ends now.
		next := cert("group-a", "b", 5, now, time.Hour)
		ok(t, s.Issue(ctx, store.Issue{Certificate: next, Supersede: 30 * time.Minute}, now))
		same(t, len(get(s.Revoke(ctx, store.Revocation{Device: "b", Service: "group-a", Who: "op"}, now.Add(time.Second)))(t)), 2)
		same(t, len(get(s.Revoked(ctx, "group-a", "ca", now, now.Add(time.Second)))(t)), 3)
		same(t, [3]uint64{get(s.NextNumber(ctx, "crl/group-a"))(t), get(s.NextNumber(ctx, "crl/group-a"))(t), get(s.NextNumber(ctx, "crl/group-b"))(t)}, [3]uint64{1, 2, 1})
	})
}

func TestRequestsAreSeenOnce(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		r := store.Request{Hash: hash("csr"), Service: "group-a", Device: "a", Seen: t0, Keep: t0.Add(time.Hour)}
		other := again(t, s)
		var wg sync.WaitGroup
		results := make([]error, 12)
		for i := range results {
			wg.Add(1)
			go func() { defer wg.Done(); results[i] = []*store.Store{s, other}[i%2].SeeRequest(ctx, r) }()
		}
		wg.Wait()
		first := 0
		for _, err := range results {
			if err == nil {
				first++
			} else {
				want(t, err, store.ErrReplay)
			}
		}
		if first != 1 {
			t.Errorf("expected one of %d copies to be the first, came %d", len(results), first)
		}
		same(t, *get(s.RequestSeen(ctx, r.Hash))(t), r)
		c := cert("group-a", "a", 1, t0, time.Hour)
		c.Request = r.Hash
		want(t, s.Issue(ctx, store.Issue{Certificate: c}, t0), store.ErrReplay)
		same(t, get(s.Prune(ctx, store.Prune{}, t0.Add(time.Hour)))(t), store.Pruned{})
		same(t, get(s.Prune(ctx, store.Prune{}, t0.Add(2*time.Hour)))(t), store.Pruned{Requests: 1})
	})
}

func pol(device string, serial uint64, content string) store.Policy {
	return store.Policy{
		PolicyHead: store.PolicyHead{Device: device, Serial: serial, Content: hash(content), Revision: 1, Created: t0, NotAfter: t0.AddDate(0, 0, 30)},
		Signer:     "policy signer", JWS: []byte(fmt.Sprintf("%s.%d.%s", device, serial, content)),
	}
}

func TestPolicySerialsNeverGoBack(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		put := func(p ...store.Policy) ([]store.PolicyHead, error) { return s.PutPolicies(ctx, "op", p, nil, t0) }
		_, err := s.Latest(ctx, "a")
		want(t, err, store.ErrNotFound)
		h := get(put(pol("a", 1, "x"), pol("b", 5, "x")))(t)
		same(t, [2]uint64{h[0].Seq, h[1].Seq}, [2]uint64{1, 2})
		got := get(s.Latest(ctx, "b"))(t)
		expected := pol("b", 5, "x")
		expected.Seq, expected.JWSHash = 2, sha256.Sum256(expected.JWS)
		same(t, *got, expected)

		for _, serial := range []uint64{1, 4, 5} {
			_, err := put(pol("a", 9, "y"), pol("b", serial, "other"))
			want(t, err, store.ErrTooOld)
			var se *store.SerialError
			if !errors.As(err, &se) || se.Newest != 5 || se.Offered != serial {
				t.Errorf("expected which serial is the newest, came %v", err)
			}
		}
		// All or none: a's policy was not recorded, and the numbers were not used.
		same(t, get(s.LatestHead(ctx, "a"))(t).Serial, uint64(1))
		// The very same file again.
		same(t, get(put(pol("b", 5, "x")))(t)[0].Seq, uint64(2))
		same(t, get(put(pol("a", 2, "y"), pol("a", 3, "z")))(t)[1].Seq, uint64(4))
		changes := get(s.ChangesSince(ctx, 0, 0))(t)
		same(t, []string{changes[0].Device, changes[1].Device}, []string{"b", "a"})
		same(t, len(get(s.ChangesSince(ctx, 2, 0))(t)), 1)
		same(t, len(get(s.ChangesSince(ctx, 4, 0))(t)), 0)
		same(t, get(s.Heads(ctx))(t).Policy, uint64(4))
		var expiring []string
		for after := (store.PolicyHead{}); ; {
			one := get(s.PoliciesExpiring(ctx, t0.AddDate(0, 0, 31), after, 1))(t)
			if len(one) == 0 {
				break
			}
			after = one[0]
			expiring = append(expiring, after.Device)
		}
		same(t, expiring, []string{"a", "b"})
		same(t, len(get(s.PoliciesExpiring(ctx, t0, store.PolicyHead{}, 0))(t)), 0)

		same(t, get(s.Prune(ctx, store.Prune{Policies: 2, Step: 1}, t0))(t), store.Pruned{Policies: 1})
		_, err = s.Policy(ctx, "a", 1)
		want(t, err, store.ErrTooOld)
		_, err = s.Policy(ctx, "a", 7)
		want(t, err, store.ErrNotFound)
		same(t, get(s.Policy(ctx, "a", 2))(t).Serial, uint64(2))
		same(t, get(s.Latest(ctx, "a"))(t).Serial, uint64(3))
	})
}

// Two instances write policies at the same time while a third one follows: it sees each device's
// last one, and the numbers never appear out of order.
func TestFollowersMissNothing(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		const devices, rounds, writers = 10, 12, 4
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		instances := []*store.Store{s, again(t, s)}
		follower := again(t, s)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for r := range rounds {
					for d := w; d < devices; d += writers {
						_, err := instances[w%2].PutPolicies(ctx, "op", []store.Policy{pol(fmt.Sprint("d", d), uint64(r+1), fmt.Sprint(r))}, nil, t0)
						if err != nil {
							t.Error(err)
							cancel()
							return
						}
					}
				}
			}()
		}
		defer wg.Wait()
		seen, at := map[string]uint64{}, store.Heads{}
		for done := false; !done; {
			h, err := follower.Wait(ctx, at)
			ok(t, err)
			changes := get(follower.ChangesSince(ctx, at.Policy, 3))(t)
			for _, c := range changes {
				if c.Serial <= seen[c.Device] {
					t.Errorf("%s: expected a serial above %d, came %d", c.Device, seen[c.Device], c.Serial)
				}
				seen[c.Device] = c.Serial
				at.Policy = c.Seq
			}
			if len(changes) == 0 {
				at = h
			}
			done = len(seen) == devices
			for _, v := range seen {
				done = done && v == rounds
			}
		}
		same(t, get(s.Heads(ctx))(t).Policy, uint64(devices*rounds))
	})
}

func TestWaitWakesForOwnWritesAndOthers(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		// A poll that never comes in this test: what wakes is the write itself.
		s := get(store.Open(ctx, store.Options{URL: url, Poll: time.Hour}))(t)
		got := make(chan store.Heads)
		go func() {
			h, err := s.Wait(ctx, store.Heads{})
			if err != nil {
				t.Error(err)
			}
			got <- h
		}()
		get(s.PutPolicies(ctx, "op", []store.Policy{pol("a", 1, "x")}, nil, t0))(t)
		same(t, <-got, store.Heads{Policy: 1})

		other := open(t, url) // polls
		go func() {
			h, err := other.Wait(ctx, store.Heads{Policy: 1})
			if err != nil {
				t.Error(err)
			}
			got <- h
		}()
		get(s.Apply(ctx, store.Change{Registry: members(t, 1, "x"), Who: "op"}, t0))(t)
		same(t, <-got, store.Heads{Policy: 1, Registry: 1})

		// Closing ends the wait.
		failed := make(chan error)
		go func() { _, err := s.Wait(ctx, store.Heads{Policy: 1, Registry: 1}); failed <- err }()
		ok(t, s.Close())
		want(t, <-failed, store.ErrClosed)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err := other.Wait(gone, store.Heads{Policy: 1, Registry: 1})
		want(t, err, context.Canceled)
	})
}

func TestReports(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		full := store.Report{
			Device: "a", Seen: t0, Version: "1.2", PolicySerial: 1, NotAfter: t0.Add(time.Hour),
			Connections: []store.ConnectionState{{Name: "a-b", Up: true, Since: t0}}, Errors: []store.ReportedError{{At: t0, Code: "cert-expired", Text: "nul \x00 and \u65e5"}},
		}
		none := store.Report{Device: "B", Seen: t0.Add(time.Second), Connections: []store.ConnectionState{}, Errors: []store.ReportedError{}}
		ok(t, s.PutReports(ctx, []store.Report{full, none}))
		same(t, *get(s.Report(ctx, "a"))(t), full)
		// By octets on both databases, whatever the server's collation is.
		same(t, get(s.Reports(ctx, "", 0))(t), []store.Report{none, full})
		same(t, get(s.Reports(ctx, "B", 0))(t), []store.Report{full})
		same(t, get(s.Silent(ctx, t0.Add(time.Second), 0))(t), []store.Report{full})
		old := full
		old.Seen, old.Version = t0.Add(-time.Second), "1.1"
		ok(t, s.PutReports(ctx, []store.Report{old}))
		same(t, *get(s.Report(ctx, "a"))(t), full)
		get(s.PutPolicies(ctx, "op", []store.Policy{pol("a", 2, "x"), pol("C", 1, "x")}, nil, t0))(t)
		same(t, get(s.Behind(ctx, "", 0))(t), []store.Report{full})
		_, err := s.Report(ctx, "nobody")
		want(t, err, store.ErrNotFound)
		full.Errors[0].Text = strings.Repeat("x", store.MaxReport)
		want(t, s.PutReports(ctx, []store.Report{full}), store.ErrInvalid)
	})
}

func TestRecordIsChained(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		for i := range 3 {
			ok(t, s.Record(ctx, store.Event{At: t0, Event: "enrolment-refused", Who: "dev \x00\xff " + fmt.Sprint(i), What: strings.Repeat("\xff", 10_000), Where: "192.0.2.1", Result: store.ResultRefused, Detail: map[string]string{"why": "nul \x00"}}))
		}
		mark := get(s.RecordMark(ctx))(t)
		ok(t, s.Record(ctx, store.Event{At: t0, Event: "a", Result: store.ResultOK}, store.Event{At: t0, Event: "b", Result: store.ResultInfo}))
		end := get(s.VerifyRecord(ctx, mark))(t)
		same(t, end.Seq, uint64(5))
		same(t, get(s.VerifyRecord(ctx, store.Mark{}))(t), end)
		_, err := s.VerifyRecord(ctx, store.Mark{Seq: 2, Hash: hash("another")})
		want(t, err, store.ErrDamaged)
		_, err = s.VerifyRecord(ctx, store.Mark{Seq: 6, Hash: hash("cut off")})
		want(t, err, store.ErrDamaged)
		entries := get(s.Entries(ctx, 3, 0))(t)
		same(t, []string{entries[0].Event.Event, entries[1].Event.Event}, []string{"a", "b"})
		if entries[0].Prev != mark.Hash || entries[1].Prev != entries[0].Hash {
			t.Error("expected each entry to name the hash of the one before")
		}
		want(t, s.Record(ctx, store.Event{Event: "x", Result: "perhaps"}), store.ErrInvalid)
	})
}

func TestLeases(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		job := func(item string, wanted uint64) store.Job {
			return store.Job{Kind: "compile", Item: item, Wanted: wanted}
		}
		claim := func(who string, n int, now time.Time) []store.Claim {
			t.Helper()
			return get(s.Claim(ctx, "compile", who, n, time.Minute, now))(t)
		}
		ok(t, s.Enqueue(ctx, []store.Job{job("a", 1), job("b", 1), job("a", 2), job("a", 1), {Kind: "other", Item: "a", Wanted: 1}}, t0))
		first := claim("one", 10, t0)
		if len(first) != 2 || first[0].Item != "a" || first[0].Wanted != 2 || first[0].Attempts != 1 || first[0].Token != 1 {
			t.Fatalf("expected a at 2 and b, came %+v", first)
		}
		same(t, len(claim("two", 10, t0)), 0)
		same(t, get(s.Queue(ctx, "compile"))(t), store.Queue{Leased: 2, Next: t0.Add(time.Minute)})

		// Asked for once more while it is done: done once more afterwards.
		ok(t, s.Enqueue(ctx, []store.Job{job("a", 3)}, t0))
		same(t, len(claim("two", 10, t0)), 0)
		ok(t, s.Finish(ctx, first[:1], t0))
		more := claim("two", 10, t0)
		if len(more) != 1 || more[0].Wanted != 3 || more[0].Token != 2 {
			t.Fatalf("expected a at 3, came %+v", more)
		}
		want(t, s.Finish(ctx, first[:1], t0), store.ErrLeaseLost) // finished already
		// The holder of b dies; its lease runs out, and another takes it.
		late := t0.Add(2 * time.Minute)
		ok(t, s.Extend(ctx, &more[0], 5*time.Minute, t0))
		b := claim("two", 10, late)
		if len(b) != 1 || b[0].Item != "b" || b[0].Attempts != 2 {
			t.Fatalf("expected b, the second time, came %+v", b)
		}
		want(t, s.Extend(ctx, &first[1], time.Minute, late), store.ErrLeaseLost)
		want(t, s.Fail(ctx, first[1], "late", late), store.ErrLeaseLost)
		// What the one that was thought dead made of it does not count, nor what it made with it.
		_, err := s.PutPolicies(ctx, "one", []store.Policy{pol("b", 1, "x")}, first[1:], late)
		want(t, err, store.ErrLeaseLost)
		_, err = s.Latest(ctx, "b")
		want(t, err, store.ErrNotFound)
		get(s.PutPolicies(ctx, "two", []store.Policy{pol("b", 1, "x")}, b, late))(t)
		// Failed work is tried again later, and says why it failed.
		ok(t, s.Fail(ctx, more[0], "no signer\x00", late.Add(time.Hour)))
		same(t, get(s.Queue(ctx, "compile"))(t), store.Queue{Waiting: 1, Failing: 1, Next: late.Add(time.Hour)})
		same(t, len(claim("one", 1, late)), 0)
		// A new wish does not wait for that.
		ok(t, s.Enqueue(ctx, []store.Job{job("a", 4)}, late))
		retry := claim("one", 1, late)
		if len(retry) != 1 || retry[0].Wanted != 4 || !strings.HasPrefix(retry[0].Error, "no signer") {
			t.Fatalf("expected a at 4 with its error, came %+v", retry)
		}
		ok(t, s.Finish(ctx, retry, late))
		// What was done is not done again.
		ok(t, s.Enqueue(ctx, []store.Job{job("a", 4), job("b", 1)}, late))
		same(t, get(s.Queue(ctx, "compile"))(t), store.Queue{})
		same(t, get(s.Prune(ctx, store.Prune{Jobs: time.Hour}, late.Add(2*time.Hour)))(t).Jobs, 2)
	})
}

func TestLimits(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		long := strings.Repeat("x", store.MaxName+1)
		c := cert("g", "a", 1, t0, time.Hour)
		for what, err := range map[string]error{
			"no registry":      second(s.Apply(ctx, store.Change{Who: "x"}, t0)),
			"nobody":           second(s.Apply(ctx, store.Change{Registry: members(t, 1, "x")}, t0)),
			"long why":         second(s.Apply(ctx, store.Change{Registry: members(t, 1, "x"), Who: "x", Why: strings.Repeat("x", store.MaxText+1)}, t0)),
			"NUL":              second(s.Apply(ctx, store.Change{Registry: members(t, 1, "x"), Who: "x\x00"}, t0)),
			"not UTF-8":        second(s.Apply(ctx, store.Change{Registry: members(t, 1, "x"), Who: "\xff"}, t0)),
			"long device":      s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Device = long })}, t0),
			"serial":           s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Serial = "0A" })}, t0),
			"serial 0":         s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Serial = "0" })}, t0),
			"half an octet":    s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Serial = "abc" })}, t0),
			"long serial":      s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Serial = strings.Repeat("f", 41) })}, t0),
			"no certificate":   s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.DER = nil })}, t0),
			"large":            s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.DER = make([]byte, store.MaxCertificate+1) })}, t0),
			"over":             s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.NotAfter = t0 })}, t0),
			"no key":           s.Issue(ctx, store.Issue{Certificate: with(c, func(c *store.Certificate) { c.Key = store.Hash{} })}, t0),
			"serial of policy": second(s.PutPolicies(ctx, "x", []store.Policy{pol("a", 0, "x")}, nil, t0)),
			"no policy":        second(s.PutPolicies(ctx, "x", []store.Policy{{PolicyHead: store.PolicyHead{Device: "a", Serial: 1}, Signer: "x"}}, nil, t0)),
			"many":             second(s.PutPolicies(ctx, "x", make([]store.Policy, store.MaxBatch+1), nil, t0)),
			"no lease":         second(s.Claim(ctx, "x", "y", 1, 0, t0)),
			"no job":           s.Enqueue(ctx, []store.Job{{Kind: "x", Item: "y"}}, t0),
			"no keep":          s.SeeRequest(ctx, store.Request{Service: "g", Device: "a", Seen: t0, Keep: t0}),
			"many events":      s.Record(ctx, make([]store.Event, store.MaxBatch+1)...),
			"long detail":      s.Record(ctx, store.Event{Event: "x", Result: "ok", Detail: map[string]string{"x": strings.Repeat("x", store.MaxDetail)}}),
		} {
			if !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: expected the error %q, came %v", what, store.ErrInvalid, err)
			}
		}
		same(t, get(s.Heads(ctx))(t), store.Heads{})
		same(t, get(s.RecordMark(ctx))(t).Seq, uint64(0))
	})
}

func second[T any](_ T, err error) error { return err }

func with(c store.Certificate, change func(*store.Certificate)) store.Certificate {
	change(&c)
	return c
}

// Many writers share transactions: one that fails takes nothing of the others with it, and one
// whose caller has gone away leaves nothing.
func TestWritersShareTransactions(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		const n = 200
		ctx := t.Context()
		gone, cancel := context.WithCancel(ctx)
		cancel()
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Add(1)
			go func() {
				defer wg.Done()
				c := cert("g", fmt.Sprint("d", i), int64(i/2+1), t0, time.Hour) // each serial twice
				c.Request = hash(fmt.Sprint("request ", i))
				ctx := ctx
				if i%10 == 0 {
					ctx = gone
				}
				errs[i] = s.Issue(ctx, store.Issue{Certificate: c}, t0)
			}()
		}
		wg.Wait()
		issued := 0
		for i := 0; i < n; i += 2 {
			for j, err := range errs[i : i+2] {
				_, seen := s.RequestSeen(ctx, hash(fmt.Sprint("request ", i+j)))
				switch {
				case err == nil:
					issued++
					ok(t, seen)
				case (i+j)%10 == 0:
					want(t, err, context.Canceled)
					want(t, seen, store.ErrNotFound)
				default:
					want(t, err, store.ErrConflict)
					want(t, seen, store.ErrNotFound)
				}
			}
		}
		same(t, issued, n/2)
		same(t, get(s.RecordMark(ctx))(t).Seq, uint64(n/2))
	})
}

func TestClosed(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		s := get(store.Open(t.Context(), store.Options{URL: url}))(t)
		ok(t, s.Close())
		want(t, s.Close(), store.ErrClosed)
		want(t, s.Record(t.Context(), store.Event{Event: "x", Result: "ok"}), store.ErrClosed)
		want(t, s.PutReports(t.Context(), nil), store.ErrClosed)
		_, err := s.Heads(t.Context())
		want(t, err, store.ErrClosed)
	})
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for url, kind := range map[string]error{
		"mysql://x": store.ErrInvalid, "": store.ErrInvalid,
		"sqlite:" + dir + "/no/centre.db": store.ErrUnavailable,
		"postgres:///x?host=" + dir:       store.ErrUnavailable,
	} {
		_, err := store.Open(t.Context(), store.Options{URL: url})
		want(t, err, kind)
	}
	ok(t, os.WriteFile(filepath.Join(dir, "text"), []byte(strings.Repeat("this is no database ", 100)), 0o600))
	_, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(dir, "text")})
	want(t, err, store.ErrDamaged)

	// A name with what means something in a URL, and nobody else may read it.
	name := filepath.Join(dir, "a b?mode=memory#%41.db")
	s := open(t, "sqlite:"+name)
	get(s.Apply(t.Context(), store.Change{Registry: members(t, 1, "x"), Who: "x"}, t0))(t)
	for _, n := range []string{name, name + "-wal", name + "-shm"} {
		if mode := get(os.Stat(n))(t).Mode().Perm(); mode != 0o600 {
			t.Errorf("%s: expected mode 0600, came %o", n, mode)
		}
	}
}

// Instances that start at the same moment on an empty database make its tables once.
func TestOpenTogether(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				s, err := store.Open(t.Context(), store.Options{URL: url})
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.SeeRequest(t.Context(), store.Request{Hash: hash(fmt.Sprint(i)), Service: "g", Device: "a", Seen: t0, Keep: t0.Add(time.Hour)}); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
	})
}
