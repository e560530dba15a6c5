package e2e

import (
	"encoding/asn1"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/router/control"
)

// Policies that must be refused: each with its own message and audit record, and what was in
// force stays in force.
func TestRefusedPolicies(t *testing.T) {
	t.Parallel()
	h := hospital(t, "e2e-policy", nil)
	good := func() *policy.Document {
		d, err := h.Provider.Policy(h.A, h.Contracts())
		must(t, err)
		return d
	}
	unchecked := func(d *policy.Document) []byte {
		payload, err := json.Marshal(d)
		must(t, err)
		jws, err := h.Provider.SignUnchecked(payload)
		must(t, err)
		return jws
	}
	stranger, err := lab.NewProvider(lab.GroupA, lab.GroupB)
	must(t, err)

	for _, c := range []struct {
		name, code string
		jws        func() []byte
	}{
		{"bad signature", "policy-signature", func() []byte {
			jws, err := h.Provider.Sign(good())
			must(t, err)
			i := strings.LastIndexByte(string(jws), '.') + 10 // inside the signature
			if jws[i] == 'A' {
				jws[i] = 'B'
			} else {
				jws[i] = 'A'
			}
			return jws
		}},
		{"older serial", "policy-serial-older", func() []byte {
			d := good()
			d.Serial = 0
			s, err := h.A.Status(t.Context())
			must(t, err)
			if s.Policy.Serial < 1 {
				t.Fatalf("the running policy has serial %d", s.Policy.Serial)
			}
			// The running one is the first that was issued; raise it, then offer what is older.
			newer := good()
			must(t, h.A.InstallPolicy(t.Context(), h.Provider, newer))
			d.Serial = s.Policy.Serial
			return unchecked(d)
		}},
		{"other device", "policy-other-device", func() []byte {
			d, err := h.Provider.Policy(h.B, h.Contracts())
			must(t, err)
			d.Serial = 1000
			return unchecked(d)
		}},
		{"expired", "policy-expired", func() []byte {
			d := good()
			d.NotBefore, d.NotAfter = time.Now().Add(-48*time.Hour).UTC().Truncate(time.Second), time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
			return unchecked(d)
		}},
		{"failing tests", "policy-tests-failed", func() []byte {
			d := good()
			d.Tests = append(d.Tests, policy.Test{
				Name: "b-reaches-the-scanner", From: h.Modality.Addr.String(), To: h.Scanner.Addr.String(),
				Protocol: "tcp", Port: 22, Expect: policy.ExpectAllow,
			})
			return unchecked(d)
		}},
		{"unknown signer", "policy-signer-untrusted", func() []byte {
			jws, err := stranger.Sign(good())
			must(t, err)
			return jws
		}},
	} {
		jws := c.jws()
		before, err := h.A.Status(t.Context())
		must(t, err)
		after := lastAudit(t, h.A)
		out, err := h.A.InstallJWS(t.Context(), jws)
		if err == nil {
			t.Errorf("%s: installed:\n%s", c.name, out)
			continue
		}
		t.Logf("%s: %v", c.name, err)
		if !strings.Contains(err.Error(), c.code) {
			t.Errorf("%s: the message does not name %s: %v", c.name, c.code, err)
		}
		wantAudit(t, h.A, after, "policy-refused", c.code)
		now, err := h.A.Status(t.Context())
		must(t, err)
		if now.Policy.Serial != before.Policy.Serial || !now.Policy.Installed {
			t.Errorf("%s: the policy in force is %+v, was %+v", c.name, now.Policy, before.Policy)
		}
	}
	burst(t, h.Modality, h.Archive, 3, time.Millisecond) // what was allowed before still is

	// The serial never goes back, also across a restart.
	old := good()
	old.Serial = 1
	must(t, h.A.Daemon.Stop(10*time.Second))
	must(t, h.A.StartDaemon(t.Context()))
	if _, err := h.A.InstallJWS(t.Context(), unchecked(old)); err == nil || !strings.Contains(err.Error(), "policy-serial") {
		t.Errorf("an older policy after a restart: %v", err)
	}
}

// Peers that must be refused: each with its own code in the audit record, without a CHILD SA.
func TestRefusedPeers(t *testing.T) {
	t.Parallel()
	h := bareHospital(t, "e2e-peers")
	p := h.Provider

	otherDevice, err := p.Forge(h.C, lab.GroupB, nil) // somebody else's device certificate
	must(t, err)
	stranger, err := lab.NewProvider(lab.GroupA, lab.GroupB)
	must(t, err)
	revoked, err := p.Forge(h.B, lab.GroupA, nil)
	must(t, err)
	ca := p.CA.Services[lab.GroupA]
	must(t, ca.Revoke(revoked.Certs[1][0].SerialNumber, time.Now().Add(-time.Minute), 1))
	crls, err := ca.CRLs(time.Now().Add(-time.Second), 24*time.Hour)
	must(t, err)

	// A is the only one that runs; its policy carries the revocation list.
	must(t, h.A.WriteConfig(""), h.A.StartDaemon(t.Context()))
	d, err := p.Policy(h.A, h.Contracts())
	must(t, err)
	for i := range d.Services {
		if d.Services[i].Name == lab.GroupA {
			d.Services[i].CRLs = strings.SplitAfter(strings.TrimSpace(string(labca.EncodeCRLs(crls)))+"\n", "-----END X509 CRL-----\n")
			d.Services[i].CRLs = d.Services[i].CRLs[:len(crls)]
		}
	}
	must(t, h.A.InstallPolicy(t.Context(), p, d))

	forge := func(change func(role string, r *labca.Request)) func() *lab.Identity {
		return func() *lab.Identity {
			id, err := p.Forge(h.B, lab.GroupA, change)
			must(t, err)
			return id
		}
	}
	only := func(want string, change func(*labca.Request)) func(string, *labca.Request) {
		return func(role string, r *labca.Request) {
			if role == want {
				change(r)
			}
		}
	}
	serverAuth := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	for i, c := range []struct {
		name, code string
		id         func() *lab.Identity
		target     lab.RogueTarget
	}{
		{"service certificate of another device", "cert-not-bound", forge(only("service", func(r *labca.Request) {
			r.Device = otherDevice.Certs[0][0].Raw
		})), lab.RogueTarget{}},
		{"service certificate bound to no device", "cert-not-bound", forge(only("service", func(r *labca.Request) { r.Unbound = true })), lab.RogueTarget{}},
		{"device certificate alone", "device-only", forge(nil), lab.RogueTarget{Rounds: 1}},
		{"service certificate alone", "", func() *lab.Identity {
			id := forge(nil)()
			return &lab.Identity{IDs: id.IDs[1:], Certs: id.Certs[1:], Keys: id.Keys[1:]}
		}, lab.RogueTarget{Rounds: 1}},
		{"expired", "cert-expired", forge(only("service", func(r *labca.Request) {
			r.At, r.Life = time.Now().Add(-20*time.Hour), time.Hour
		})), lab.RogueTarget{}},
		{"not yet valid", "cert-not-yet-valid", forge(only("service", func(r *labca.Request) {
			r.At = time.Now().Add(time.Hour)
		})), lab.RogueTarget{}},
		{"expired device", "cert-expired", forge(only("device", func(r *labca.Request) {
			r.At, r.Life = time.Now().Add(-20*time.Hour), time.Hour
		})), lab.RogueTarget{}},
		{"wrong CA", "unknown-ca", func() *lab.Identity {
			id, err := stranger.Forge(h.B, lab.GroupA, nil)
			must(t, err)
			return id
		}, lab.RogueTarget{}},
		{"revoked", "cert-revoked", func() *lab.Identity { return revoked }, lab.RogueTarget{}},
		{"wrong extended key usage", "cert-wrong-eku", forge(only("service", func(r *labca.Request) {
			r.EKUs = []asn1.ObjectIdentifier{serverAuth}
		})), lab.RogueTarget{}},
		{"group that the contract is not for", "", func() *lab.Identity {
			id, err := p.Forge(h.B, lab.GroupB, nil)
			must(t, err)
			return id
		}, lab.RogueTarget{Service: lab.GroupB}},
	} {
		after := lastAudit(t, h.A)
		// Each from an address of its own: the record takes one refusal of a kind from one
		// address in ten seconds.
		from := netip.AddrFrom4([4]byte{198, 18, 0, byte(100 + i)})
		must(t, h.B.Router.Addr(lab.WANDev, netip.PrefixFrom(from, 24).String()))
		r, err := h.Lab.Rogue(h.B.Router, from)
		must(t, err)
		target := c.target
		target.Peer = h.A
		if target.Service == "" {
			target.Service = lab.GroupA
		}
		target.Local, target.Remote = []netip.Prefix{h.Modality.Zone.Prefix}, []netip.Prefix{netip.PrefixFrom(h.Archive.Addr, 32)}
		err = r.Connect(within(t, 8*time.Second), p, c.id(), target)
		if err == nil {
			t.Errorf("%s: a tunnel was made", c.name)
		}
		if cerr := r.Close(); cerr != nil {
			t.Errorf("%s: %v", c.name, cerr)
		}
		rec := wantAudit(t, h.A, after, "auth-refused", c.code)
		t.Logf("%s: %s %v", c.name, rec.Event, rec.Detail)
		s, err := h.A.Connection(t.Context(), "a-b")
		must(t, err)
		if s.State == control.ConnUp {
			t.Errorf("%s: connection a-b is up", c.name)
		}
	}

	// And the right one is taken: the refusals above were for the reason that they gave.
	r, err := h.Lab.Rogue(h.B.Router, h.B.WAN)
	must(t, err)
	id := forge(nil)()
	must(t, r.Connect(within(t, 8*time.Second), p, id, lab.RogueTarget{
		Peer: h.A, Service: lab.GroupA,
		Local: []netip.Prefix{h.Modality.Zone.Prefix}, Remote: []netip.Prefix{netip.PrefixFrom(h.Archive.Addr, 32)},
	}))
	must(t, r.Close())
}

// The second round that is announced and never sent: no CHILD SA, no traffic, and what the peer
// made us keep is gone after 30 s.
func TestSecondRoundNeverSent(t *testing.T) {
	t.Parallel()
	h := bareHospital(t, "e2e-silent")
	must(t, h.A.WriteConfig(""), h.A.StartDaemon(t.Context()))
	d, err := h.Provider.Policy(h.A, h.Contracts())
	must(t, err)
	must(t, h.A.InstallPolicy(t.Context(), h.Provider, d))
	id, err := h.Provider.Forge(h.B, lab.GroupA, nil)
	must(t, err)
	after := lastAudit(t, h.A)
	r, err := h.Lab.Rogue(h.B.Router, h.B.WAN)
	must(t, err)
	defer func() { _ = r.Close() }() // its key never answers: nothing to expect of the good-bye
	start := time.Now()
	connected := make(chan error, 1)
	ctx := within(t, 60*time.Second)
	go func() {
		connected <- r.Connect(ctx, h.Provider, id, lab.RogueTarget{
			Peer: h.A, Service: lab.GroupA, Silent: true,
			Local: []netip.Prefix{h.Modality.Zone.Prefix}, Remote: []netip.Prefix{netip.PrefixFrom(h.Archive.Addr, 32)},
		})
	}()
	must(t, lab.WaitFor(t.Context(), "the refusal of the round that never came", 40*time.Second, func() error {
		records, err := h.A.Audit(after)
		if err != nil {
			return err
		}
		for _, rec := range records {
			if rec.Detail["code"] == "round-missing" {
				return nil
			}
		}
		select {
		case err := <-connected:
			if err == nil {
				t.Error("a tunnel was made")
			}
			connected <- err
		default:
		}
		return os.ErrNotExist
	}))
	if took := time.Since(start); took > 33*time.Second {
		t.Errorf("the half-open IKE SA was kept for %v; want at most 30 s", took)
	}
	s, err := h.A.Connection(t.Context(), "a-b")
	must(t, err)
	if s.State == control.ConnUp || s.Traffic.PacketsIn+s.Traffic.PacketsOut != 0 {
		t.Errorf("connection a-b: %s, %+v", s.State, s.Traffic)
	}
}

// A facility that has been taken over puts what it likes into its tunnel: A refuses all of it.
func TestPoisonedTunnel(t *testing.T) {
	t.Parallel()
	h := bareHospital(t, "e2e-poison")
	for _, f := range []*lab.Facility{h.A, h.C} {
		must(t, f.WriteConfig(""), f.StartDaemon(t.Context()))
		d, err := h.Provider.Policy(f, h.Contracts())
		must(t, err)
		must(t, f.InstallPolicy(t.Context(), h.Provider, d))
	}
	burst(t, h.Scanner, h.Centre, 3, time.Millisecond) // the tunnel A-C is up
	id, err := h.Provider.Forge(h.B, lab.GroupA, nil)
	must(t, err)
	r, err := h.Lab.Rogue(h.B.Router, h.B.WAN)
	must(t, err)
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	all := netip.MustParsePrefix("10.0.0.0/8")
	err = r.Connect(within(t, 10*time.Second), h.Provider, id, lab.RogueTarget{
		Peer: h.A, Service: lab.GroupA, Local: []netip.Prefix{all}, Remote: []netip.Prefix{all}, // A narrows this
	})
	must(t, err)
	archive, err := h.Archive.EchoUDP(addrPort(h.Archive, lab.EchoPort))
	must(t, err)
	defer archive.Close()
	good := lab.UDPPacket(addrPort(h.Modality, 4242), addrPort(h.Archive, lab.EchoPort), []byte("a good one"))
	must(t, r.Inject(good))
	must(t, lab.WaitFor(t.Context(), "the good packet", 5*time.Second, func() error {
		if archive.Total() == 0 || len(r.Received()) == 0 {
			return os.ErrNotExist
		}
		return nil
	}))
	for _, c := range []struct {
		name     string
		src, dst netip.AddrPort
	}{
		{"for C, from B's modality", addrPort(h.Modality, 4242), addrPort(h.Centre, lab.EchoPort)},
		{"for C, from A's scanner", addrPort(h.Scanner, 4242), addrPort(h.Centre, lab.EchoPort)},
		{"for the archive, from C's centre", addrPort(h.Centre, 4242), addrPort(h.Archive, lab.EchoPort)},
		{"for the archive, from A's own scanner", addrPort(h.Scanner, 4242), addrPort(h.Archive, lab.EchoPort)},
		{"for the archive, from the router of A", netip.AddrPortFrom(h.Archive.Zone.Gateway, 4242), addrPort(h.Archive, lab.EchoPort)},
		{"for the scanner, which is not in the contract", addrPort(h.Modality, 4242), addrPort(h.Scanner, lab.EchoPort)},
		{"for another port", addrPort(h.Modality, 4242), addrPort(h.Archive, lab.EchoPort+1)},
		{"for A's router", addrPort(h.Modality, 4242), netip.AddrPortFrom(h.Archive.Zone.Gateway, lab.EchoPort)},
		{"for A's internet address", addrPort(h.Modality, 4242), netip.AddrPortFrom(h.A.WAN, lab.EchoPort)},
		{"for B itself", addrPort(h.Modality, 4242), addrPort(h.Modality, lab.EchoPort)},
		{"for the internet", addrPort(h.Modality, 4242), netip.MustParseAddrPort("198.18.0.254:53")},
		{"for everybody", addrPort(h.Modality, 4242), netip.MustParseAddrPort("255.255.255.255:7007")},
		{"for a multicast group", addrPort(h.Modality, 4242), netip.MustParseAddrPort("224.0.0.251:5353")},
		{"for A's loopback", addrPort(h.Modality, 4242), netip.MustParseAddrPort("127.0.0.1:7007")},
	} {
		hosts := []*lab.Host{h.Archive, h.Scanner, h.Centre}
		var before []uint64
		for _, host := range hosts {
			n, err := host.IPReceived()
			must(t, err)
			before = append(before, n)
		}
		after := lastAudit(t, h.A)
		must(t, r.Inject(lab.UDPPacket(c.src, c.dst, []byte("poison"))))
		rec := wantAudit(t, h.A, after, "refused")
		t.Logf("%s: %s %s %v", c.name, rec.Event, rec.What, rec.Detail)
		for i, host := range hosts {
			n, err := host.IPReceived()
			must(t, err)
			if n != before[i] {
				t.Errorf("%s: %d packets arrived at %v", c.name, n-before[i], host.Addr)
			}
		}
	}
	// The tunnel lives on, for what is allowed.
	n := archive.Total()
	must(t, r.Inject(good))
	must(t, lab.WaitFor(t.Context(), "the good packet", 5*time.Second, func() error {
		if archive.Total() == n {
			return os.ErrNotExist
		}
		return nil
	}))
}
