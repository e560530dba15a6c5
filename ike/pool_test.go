package ike_test

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"wardgate/ike"
)

func leaseOf(name string, v6 bool) ike.LeaseQuery {
	return ike.LeaseQuery{Peer: "c", IDs: []ike.Identity{fqdn(name + ".example")}, IPv6: v6}
}

func TestPool(t *testing.T) {
	t.Parallel()
	p := must(ike.NewPool([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/29"), netip.MustParsePrefix("2001:db8::/126")}, netip.MustParseAddr("10.9.0.2")))
	want := func(name string, v6 bool, addr string) {
		t.Helper()
		a, ok := p.Lease(leaseOf(name, v6))
		if got := a.Addr().String(); ok != (addr != "") || ok && (got != addr || a.Bits() != a.Addr().BitLen()) {
			t.Errorf("%s has %v %v, want %q", name, a, ok, addr)
		}
	}
	release := func(name, addr string) { p.Release(leaseOf(name, false), netip.MustParseAddr(addr)) }
	want("a", false, "10.9.0.1") // neither the network's address nor the reserved one
	want("a", false, "10.9.0.1")
	want("a", true, "2001:db8::1")
	for i, n := range []string{"b", "c", "d", "e"} {
		want(n, false, fmt.Sprintf("10.9.0.%d", i+3))
	}
	want("f", false, "")
	release("c", "10.9.0.4")
	release("a", "10.9.0.1")
	release("a", "10.9.0.1")
	release("x", "10.9.0.77")
	want("a", false, "10.9.0.1") // the one of before
	want("f", false, "10.9.0.4") // of the one who left first
	want("c", false, "")
	release("f", "10.9.0.4")
	q := leaseOf("g", false)
	q.Want = netip.MustParseAddr("10.9.0.4")
	if a, ok := p.Lease(q); !ok || a.Addr() != q.Want {
		t.Errorf("got %v %v, want %v", a, ok, q.Want)
	}
	q = leaseOf("h", true)
	q.Want = netip.MustParseAddr("2001:db8::3")
	if a, ok := p.Lease(q); !ok || a.Addr() != q.Want {
		t.Errorf("got %v %v, want %v", a, ok, q.Want)
	}
	want("i", true, "2001:db8::2")
	want("j", true, "")
	wide := must(ike.NewPool([]netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}))
	q = leaseOf("k", true)
	q.Want = netip.MustParseAddr("2001:db8:77::1:2:3:4")
	if a, ok := wide.Lease(q); !ok || a.Addr() != netip.MustParseAddr("2001:db8:1::1:2:3:4") {
		t.Errorf("got %v %v, want the interface identifier that was asked for", a, ok)
	}
	for _, bad := range [][]netip.Prefix{nil, {{}}, {netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}} {
		if _, err := ike.NewPool(bad); err == nil {
			t.Errorf("a pool of %v", bad)
		}
	}
}

// TestPoolProperties: whatever comes and goes, an address is one peer's, of the networks, and not
// reserved; and none is refused while one is free.
func TestPoolProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		network := netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), rapid.IntRange(26, 32).Draw(t, "bits"))
		free := map[netip.Addr]bool{}
		for a := network.Addr(); network.Contains(a); a = a.Next() {
			free[a] = true
		}
		if len(free) > 2 {
			delete(free, network.Addr())
			for a := range free {
				if !network.Contains(a.Next()) {
					delete(free, a)
				}
			}
		}
		all := len(free)
		p := must(ike.NewPool([]netip.Prefix{network}))
		has, seen := map[string]netip.Addr{}, map[string]bool{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			name := fmt.Sprint("n", rapid.IntRange(0, 40).Draw(t, "peer"))
			if a, ok := has[name]; ok && rapid.Bool().Draw(t, "leaves") {
				p.Release(leaseOf(name, false), a)
				delete(has, name)
				free[a] = true
				continue
			}
			q := leaseOf(name, false)
			if rapid.Bool().Draw(t, "wants") {
				q.Want = netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "want")})
			}
			got, ok := p.Lease(q)
			before, had := has[name]
			switch {
			case had && (!ok || got.Addr() != before):
				t.Fatalf("%s had %v and has %v %v", name, before, got, ok)
			case had:
			case ok != (len(free) > 0):
				t.Fatalf("%d of %d are free, got %v %v", len(free), all, got, ok)
			case ok && !free[got.Addr()]:
				t.Fatalf("%v is not free", got)
			case ok && free[q.Want] && got.Addr() != q.Want && !seen[name]:
				t.Fatalf("%v was free and wanted, got %v", q.Want, got)
			case ok:
				delete(free, got.Addr())
				has[name], seen[name] = got.Addr(), true
			}
		}
	})
}
