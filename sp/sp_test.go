package sp_test

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/sp"
	"wardgate/sp/compile"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// A change reaches the devices that it concerns, as policies that they accept, and no others.
func TestApplyMakesThePoliciesThatChange(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		tags := map[string]string{}
		for name, want := range map[string]string{devA: "a-b a-c", devB: "a-b", devC: "a-c"} {
			doc, tag := i.policy(w.devices[name], "")
			if got := connections(doc); got != want {
				t.Errorf("%s: connections %q, want %q", name, got, want)
			}
			tags[name] = tag
		}
		i.settled()
		before := i.head(devB)
		k := slices.IndexFunc(w.content.Contracts, func(c registry.Contract) bool { return c.Name == "a-c" })
		w.content.Contracts[k].Title, w.content.Contracts[k].Flows = "smaller", w.content.Contracts[k].Flows[:1]
		i.apply()
		for _, name := range []string{devA, devC} {
			doc, _ := i.policy(w.devices[name], tags[name])
			if doc.Serial <= uint64(w.Now().Unix()) {
				t.Errorf("%s: serial %d did not grow", name, doc.Serial)
			}
		}
		i.settled()
		if got := i.head(devB); got != before {
			t.Errorf("b has %+v, had %+v: nothing changed for it", got, before)
		}
		// What says nothing new makes no policies.
		a := i.head(devA)
		w.content.Contracts[k].Title = "another title, which is no matter of policies"
		i.apply()
		i.settled()
		if got := i.head(devA); got != a {
			t.Errorf("a has %+v, had %+v", got, a)
		}
	})
}

func TestLongPoll(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		b := w.devices[devB]
		if r := i.poll(&b.tls, "", ""); r.status != http.StatusForbidden {
			t.Errorf("before it is registered: %d", r.status)
		}
		i.apply()
		_, tag := i.policy(b, "")
		i.settled()
		if r := i.poll(&b.tls, tag, ""); r.status != http.StatusNotModified || r.header.Get("ETag") != tag {
			t.Errorf("what it has: %d %v", r.status, r.header)
		}
		if r := i.poll(&b.tls, tag, "0"); r.status != http.StatusNotModified || r.header.Get("Preference-Applied") != "wait=0" {
			t.Errorf("wait=0: %d %v", r.status, r.header)
		}
		got := make(chan *reply, 1)
		go func() { got <- i.poll(&b.tls, tag, "50") }()
		w.content.Contracts = slices.DeleteFunc(w.content.Contracts, func(c registry.Contract) bool { return c.Name == "a-b" })
		i.apply()
		if r := <-got; r.status != http.StatusOK || r.header.Get("ETag") == tag || r.header.Get("Content-Type") != "application/jose" {
			t.Fatalf("after the change: %d %s", r.status, r.body)
		}
		doc, tag := i.policy(b, tag)
		if connections(doc) != "" {
			t.Errorf("connections %q", connections(doc))
		}
		// Stopping ends the wait at once, with what is true.
		i.settled()
		if r := i.poll(&b.tls, tag, "0"); r.status != http.StatusNotModified {
			t.Errorf("before it stops: %d", r.status)
		}
		for len(w.waits) > 0 {
			<-w.waits
		}
		r := must(http.NewRequestWithContext(w.context(), http.MethodGet, "https://"+i.addr+"/v1/policy", nil))(t)
		r.Header.Set("If-None-Match", tag)
		r.Header.Set("Prefer", "wait=3000")
		status := make(chan string, 1)
		go func() {
			res, err := w.client(&b.tls).Do(r)
			if err != nil {
				status <- err.Error()
				return
			}
			res.Body.Close()
			status <- res.Status
		}()
		<-w.waits
		i.stop()
		if s := <-status; s != "304 Not Modified" {
			t.Errorf("the poll that waited when it stopped: %s", s)
		}
	})
}

// Two instances share the work: each device gets each policy once, from either.
func TestTwoInstances(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		const n = 40
		w := newWorld(t, url)
		star := registrytest.Star(n)
		w.content = star
		d := newDevice(t, registrytest.DeviceCA(t), "member-0.devices.example")
		for k := range w.content.Devices {
			if w.content.Devices[k].Name == d.name {
				w.content.Devices[k].Certificate = string(certs.EncodePEM(d.cert))
			}
		}
		one, two := w.start(), w.start()
		one.apply()
		_, tag := two.policy(d, "")
		one.settled()
		const changes = 3
		for c := range changes {
			w.content.Services[0].Rules.Lifetimes.IKE += 1e9 * 3600
			[]*instance{one, two}[c%2].apply()
			_, tag = []*instance{two, one}[c%2].policy(d, tag)
			one.settled()
		}
		first := uint64(w.Now().Unix())
		list := must(one.Store().ChangesSince(w.context(), 0, 0))(t)
		if len(list) != n+1 {
			t.Fatalf("%d devices have a policy, want %d", len(list), n+1)
		}
		for _, h := range list {
			if h.Serial != first+changes {
				t.Errorf("%s: serial %d, want %d: a policy was missed or made twice", h.Device, h.Serial, first+changes)
			}
		}
	})
}

// Work that an instance claimed and did not finish is done by another one when the lease ends.
func TestAnInstanceThatDied(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		dead := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
		reg := w.registry()
		p := &sp.Plan{Registry: reg, Affected: compile.Affected(nil, reg)}
		must(dead.Apply(w.context(), p, "test", ""))(t)
		if got := must(dead.Store().Claim(w.context(), "policy", "dead", 10, time.Hour, w.Now()))(t); len(got) != 3 {
			t.Fatalf("%d claims", len(got))
		}
		if err := dead.Close(); err != nil {
			t.Fatal(err)
		}
		i := w.start() // looks at everything once when it starts, so what is left to show is that the claims end
		i.policy(w.devices[devA], "")
		w.pass(time.Hour)
		i.settled()
		if q := must(i.Store().Queue(w.context(), "policy"))(t); q.Leased != 0 || q.Waiting != 0 {
			t.Errorf("queue %+v", q)
		}
	})
}

func TestRestartAndRenewal(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		_, tag := i.policy(w.devices[devA], "")
		i.settled()
		before := i.head(devA)
		<-w.waits
		i.stop()

		i = w.start()
		w.eventually("the new instance has looked at all devices", func() bool {
			q := must(i.Store().Queue(w.context(), "policy-time"))(t)
			c := must(i.Store().Claim(w.context(), "policy-time", "test", 1, time.Nanosecond, w.Now().Add(-time.Hour)))(t)
			return q.Waiting+q.Leased+len(c) == 0
		})
		i.settled()
		if got := i.head(devA); got != before {
			t.Errorf("after a restart %+v, had %+v", got, before)
		}
		if r := i.poll(&w.devices[devA].tls, tag, "0"); r.status != http.StatusNotModified {
			t.Errorf("after a restart: %d", r.status)
		}
		w.pass(time.Duration(w.cfg.Policy.Life)/2 + time.Minute)
		doc, _ := i.policy(w.devices[devA], tag)
		if doc.Serial <= before.Serial || !doc.NotAfter.After(before.NotAfter) {
			t.Errorf("renewed: serial %d until %v, had %d until %v", doc.Serial, doc.NotAfter, before.Serial, before.NotAfter)
		}
		if i.settled(); i.head(devA).Content != before.Content {
			t.Error("the renewed policy says something else")
		}
	})
}

// What begins and ends by itself does so.
func TestTimePasses(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		for k := range w.content.Contracts {
			if c := &w.content.Contracts[k]; c.Name == "a-b" {
				c.Until = w.Now().Add(time.Hour)
			}
		}
		i := w.start()
		i.apply()
		doc, tag := i.policy(w.devices[devB], "")
		if connections(doc) != "a-b" {
			t.Fatalf("connections %q", connections(doc))
		}
		w.pass(time.Hour)
		if doc, _ = i.policy(w.devices[devB], tag); connections(doc) != "" {
			t.Errorf("after the contract's end: %q", connections(doc))
		}
	})
}

// Enrolment through the real server, and what revoking the device does.
func TestEnrolAndRevoke(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a, b := w.devices[devA], w.devices[devB]
		docA, tagA := i.policy(a, "")
		if connections(docA) != "a-b a-c" {
			t.Fatalf("connections %q", connections(docA))
		}
		svc, r := i.enrol(b, "group-a")
		if svc == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if got := svc.Leaf.DNSNames; !slices.Equal(got, []string{"b.group-a.example"}) {
			t.Errorf("names %q", got)
		}
		if err := certs.CheckRelated(svc.Leaf, b.cert.Raw); err != nil {
			t.Error(err)
		}
		if _, r := i.enrol(b, "group-b"); r.status != http.StatusForbidden || !strings.Contains(string(r.body), "not joined") {
			t.Errorf("a service that it has not joined: %d %s", r.status, r.body)
		}
		i.recorded("enrolment-refused", "est-not-a-member")
		if n := len(i.crl(svc.Leaf).RevokedCertificateEntries); n != 0 {
			t.Errorf("%d revoked", n)
		}
		// The service certificate is as good for the policy as the device's.
		_, tagB := i.policy(b, "")
		if r := i.poll(svc, tagB, "0"); r.status != http.StatusNotModified {
			t.Errorf("by service certificate: %d %s", r.status, r.body)
		}
		waiting := make(chan *reply, 1)
		go func() { waiting <- i.poll(svc, tagB, "50") }()

		done := must(i.RevokeDevice(w.context(), devB, store.KeyCompromise, "test", "stolen"))(t)
		if done.Certificates != 1 || !slices.Equal(done.Peers, []string{devA}) {
			t.Errorf("%+v", done)
		}
		if r := <-waiting; r.status != http.StatusForbidden {
			t.Errorf("the poll that waited: %d %s", r.status, r.body)
		}
		docA, _ = i.policy(a, tagA)
		if connections(docA) != "a-c" {
			t.Errorf("a's connections %q", connections(docA))
		}
		listed := false
		for _, s := range docA.Services {
			for _, text := range s.CRLs {
				for _, l := range must(certs.ParseCRLs([]byte(text)))(t) {
					for _, e := range l.RevokedCertificateEntries {
						listed = listed || e.SerialNumber.Cmp(svc.Leaf.SerialNumber) == 0
					}
				}
			}
		}
		if !listed {
			t.Error("a's policy has no list that names the certificate")
		}
		if l := i.crl(svc.Leaf); len(l.RevokedCertificateEntries) != 1 || l.RevokedCertificateEntries[0].SerialNumber.Cmp(svc.Leaf.SerialNumber) != 0 {
			t.Errorf("list %+v", l.RevokedCertificateEntries)
		}
		if r := i.poll(svc, "", "0"); r.status != http.StatusForbidden || r.problem(t) != "device-revoked" {
			t.Errorf("by service certificate: %d %s", r.status, r.body)
		}
		if r := i.poll(&b.tls, "", "0"); r.status != http.StatusForbidden || r.problem(t) != "device-revoked" {
			t.Errorf("by device certificate: %d %s", r.status, r.body)
		}
		if _, r := i.enrol(b, "group-a"); r.status != http.StatusForbidden {
			t.Errorf("enrolment: %d %s", r.status, r.body)
		}
		// Once more changes nothing.
		again := must(i.RevokeDevice(w.context(), devB, store.KeyCompromise, "test", ""))(t)
		if again.Certificates != 0 || again.Revision != done.Revision || len(again.Peers) != 0 {
			t.Errorf("again: %+v", again)
		}
		if _, err := i.RevokeDevice(w.context(), "nobody.example", store.Unspecified, "test", ""); !errors.Is(err, sp.ErrNoDevice) {
			t.Errorf("a device that there is not: %v", err)
		}
	})
}

// Who leaves a service by a change of files loses its certificates of that service, and of no other.
func TestLeavingAServiceEndsItsCertificates(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a := w.devices[devA]
		left, r1 := i.enrol(a, "group-a")
		kept, r2 := i.enrol(a, "group-b")
		if left == nil || kept == nil {
			t.Fatalf("enrolment failed: %d %s, %d %s", r1.status, r1.body, r2.status, r2.body)
		}
		w.content.Contracts = slices.DeleteFunc(w.content.Contracts, func(c registry.Contract) bool { return c.Name == "a-b" })
		w.content.Memberships = slices.DeleteFunc(w.content.Memberships, func(m registry.Membership) bool { return m.Device == devA && m.Service == "group-a" })
		i.apply()
		i.settled()
		if r := i.poll(left, "", "0"); r.status != http.StatusForbidden || r.problem(t) != "cert-revoked" {
			t.Errorf("the one that it left: %d %s", r.status, r.body)
		}
		if r := i.poll(kept, "", "0"); r.status != http.StatusOK {
			t.Errorf("the one that it kept: %d %s", r.status, r.body)
		}
		if n := len(i.crl(kept.Leaf).RevokedCertificateEntries); n != 0 {
			t.Errorf("%d revoked of the one that it kept", n)
		}
	})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a := w.devices[devA]
		stranger := newDevice(t, registrytest.DeviceCA(t), "stranger.devices.example")
		twin := newDevice(t, registrytest.DeviceCA(t), devA) // a's name, another certificate
		other := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: registrytest.At.Add(-2 * time.Hour)}))(t)
		foreign := newDevice(t, other, devA)
		foreign.tls.Certificate = append(foreign.tls.Certificate, labca.DER(other.Intermediates())...)
		json := http.Header{"Content-Type": {"application/json"}}
		for _, c := range []struct {
			name string
			do   func() *reply
			want int
			code string
		}{
			{"nobody", func() *reply { return i.poll(nil, "", "0") }, 403, "no-certificate"},
			{"not registered", func() *reply { return i.poll(&stranger.tls, "", "0") }, 403, "not-registered"},
			{"another certificate with the name", func() *reply { return i.poll(&twin.tls, "", "0") }, 403, "not-registered"},
			{"a foreign device CA", func() *reply { return i.poll(&foreign.tls, "", "0") }, 403, "cert-unknown-ca"},
			{"report by nobody", func() *reply { return i.do(nil, "POST", "/v1/report", json, []byte("{}")) }, 403, "no-certificate"},
			{"report of no type", func() *reply { return i.do(&a.tls, "POST", "/v1/report", nil, []byte("{}")) }, 415, "bad-type"},
			{"malformed report", func() *reply { return i.do(&a.tls, "POST", "/v1/report", json, []byte("{")) }, 400, "malformed"},
			{"unknown key in a report", func() *reply { return i.do(&a.tls, "POST", "/v1/report", json, []byte(`{"device":"b"}`)) }, 400, "malformed"},
			{"two reports in one", func() *reply { return i.do(&a.tls, "POST", "/v1/report", json, []byte("{}{}")) }, 400, "malformed"},
			{"a serial that cannot be", func() *reply {
				return i.do(&a.tls, "POST", "/v1/report", json, []byte(`{"policy_serial":18446744073709551615}`))
			}, 400, "malformed"},
			{"oversized report", func() *reply {
				return i.do(&a.tls, "POST", "/v1/report", json, []byte(`{"version":"`+strings.Repeat("x", 300<<10)+`"}`))
			}, 413, "too-large"},
		} {
			r := c.do()
			if r.status != c.want || r.problem(t) != c.code {
				t.Errorf("%s: %d %s, want %d %s", c.name, r.status, r.body, c.want, c.code)
			}
			i.recorded("request-refused", c.code)
		}
		for _, path := range []string{"/v1/../etc/passwd", "/v1/policy/b.devices.example", "/v1/nothing", "/.well-known/est/../group-a/cacerts"} {
			if r := i.do(&a.tls, http.MethodGet, path, nil, nil); r.status < 300 {
				t.Errorf("%s: %d", path, r.status)
			}
		}
		if r := i.do(&a.tls, http.MethodPost, "/v1/policy", nil, nil); r.status != http.StatusMethodNotAllowed {
			t.Errorf("POST: %d", r.status)
		}
	})
}

func TestReport(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a := w.devices[devA]
		r := i.do(&a.tls, http.MethodPost, "/v1/report", http.Header{"Content-Type": {"application/json"}},
			[]byte(`{"version":"1","policy_serial":7,"not_after":"2026-04-02T00:00:00Z","connections":[{"name":"a-b","up":true}],"errors":[{"at":"2026-04-01T00:00:00Z","code":"x","text":"y"}]}`))
		if r.status != http.StatusNoContent {
			t.Fatalf("%d %s", r.status, r.body)
		}
		got := must(i.Store().Report(w.context(), devA))(t)
		if got.PolicySerial != 7 || got.Version != "1" || len(got.Connections) != 1 || !got.Connections[0].Up || len(got.Errors) != 1 || !got.Seen.Equal(w.Now()) {
			t.Errorf("%+v", got)
		}
	})
}

// A plan that was overtaken, and files that are wrong, change nothing.
func TestPlanRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
	defer c.Close()
	dir := t.TempDir()
	must2(sp.Export(dir, w.registry()))(t)
	first := must(c.Plan(w.context(), os.DirFS(dir)))(t)
	if len(first.Affected) != 3 || first.Text == "" || first.From != 0 {
		t.Errorf("plan %+v", first)
	}
	must(c.Apply(w.context(), first, "test", ""))(t)
	if _, err := c.Apply(w.context(), first, "test", ""); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the same plan again: %v", err)
	}
	if err := os.WriteFile(dir+"/members/clinic-b.toml", []byte("title = \"B\"\ncolour = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.Plan(w.context(), os.DirFS(dir))
	if !errors.Is(err, registry.ErrRefused) || !strings.Contains(err.Error(), "members/clinic-b.toml:2") {
		t.Errorf("a wrong file: %v", err)
	}
	if _, rev, err := c.Store().Current(w.context()); err != nil || rev != 1 {
		t.Errorf("revision %d, %v", rev, err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := "issuer = \"sp.example\"\n[database]\nurl = \"sqlite:x.db\"\n[server]\ncertificate = \"c\"\nkey = \"k\"\n[devices]\nanchors = [\"a\"]\n[services]\ndir = \"s\"\n[policy]\nkey = \"k\"\ncertificate = \"/c\"\n"
	c := must(sp.ParseConfig("/etc/x/y.toml", []byte(good)))(t)
	if c.Database.URL != "sqlite:/etc/x/x.db" || c.Policy.Key != "/etc/x/k" || c.Policy.Certificate != "/c" || c.Devices.Anchors[0] != "/etc/x/a" {
		t.Errorf("%+v", c)
	}
	for _, k := range []struct{ text, want string }{
		{good + "colour = 1\n", `y.toml:14:1: expected a key of docs/sp.md, came "policy.colour"`},
		{good + "life = \"3 days\"\n", `y.toml:14`},
		{good + "life = \"1m\"\n", "policy.life: expected 1h0m0s to 2160h0m0s, came 1m0s"},
		{good + "[server", "y.toml:14"},
		{strings.Replace(good, "anchors = [\"a\"]", "", 1), "devices.anchors: expected"},
		{strings.Replace(good, "issuer = \"sp.example\"", "issuer = 3", 1), "y.toml:1"},
		{"", "issuer: expected a host name"},
		{good + "[services]\n", "y.toml:14"},
	} {
		if _, err := sp.ParseConfig("y.toml", []byte(k.text)); !errors.Is(err, sp.ErrConfig) || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%q\n%v, want %q", k.text, err, k.want)
		}
	}
}
