package router

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/zap"

	"wardgate/router/config"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// TestFormerRemotes: what was remote stays remote for the kernel, over restarts, until a zone of the
// facility takes the addresses or the operator takes the line out.
func TestFormerRemotes(t *testing.T) {
	dir := t.TempDir()
	r := &Router{log: zap.NewNop(), cfg: &config.Config{Daemon: config.Daemon{StateDir: dir}}}
	local := prefixes("10.1.0.0/16", "2001:db8:1::/48")
	for i, step := range []struct{ remotes, local, want []netip.Prefix }{
		{prefixes("10.2.1.0/24", "10.3.1.7/32"), local, prefixes("10.2.1.0/24", "10.3.1.7/32")},
		{prefixes("10.3.1.7/32"), local, prefixes("10.3.1.7/32", "10.2.1.0/24")}, // the contract with B has ended
		{nil, local, prefixes("10.2.1.0/24", "10.3.1.7/32")},
		{prefixes("10.2.1.0/24", "10.2.1.0/24"), local, prefixes("10.2.1.0/24", "10.2.1.0/24", "10.3.1.7/32")}, // and is back
		{nil, append(prefixes("10.2.0.0/16"), local...), prefixes("10.3.1.7/32")},                              // the facility has been renumbered
		{nil, local, prefixes("10.3.1.7/32", "10.2.1.0/24")},                                                   // and back
	} {
		if got := r.formerRemotes(step.remotes, step.local); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i+1, got, step.want)
		}
	}
	// the operator
	if err := writeRemotes(dir, prefixes("10.3.1.7/32")); err != nil {
		t.Fatal(err)
	}
	if got := r.formerRemotes(nil, local); !slices.Equal(got, prefixes("10.3.1.7/32")) {
		t.Errorf("after the operator's change: %v", got)
	}
	// A damaged file takes nothing away, and is left as it is: its copy counts.
	path, spare := filepath.Join(dir, formerRemotesFile), filepath.Join(dir, formerRemotesCopy)
	for _, bad := range []string{"{", `["10.2.1.7/24"]`, `["x"]`, `["::ffff:10.2.1.0/120"]`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := r.formerRemotes(prefixes("10.9.0.0/16"), local); !slices.Equal(got, prefixes("10.9.0.0/16", "10.3.1.7/32")) {
			t.Errorf("%s: %v", bad, got)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != bad {
			t.Errorf("%s was replaced by %s", bad, b)
		}
		if _, err := readRemotes(path); err == nil {
			t.Errorf("%s was taken", bad)
		}
		if r.remotesErr == nil || r.remotesErr.Code != codeRemotesDamaged {
			t.Errorf("%s: the status says %v", bad, r.remotesErr)
		}
	}
	// Both are damaged, or the copy is gone, and the kernel has nothing: everything private that is not
	// ours counts as a former partner's.
	for _, damage := range []func() error{func() error { return os.WriteFile(spare, []byte("?"), 0o600) }, func() error { return os.Remove(spare) }} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		got := r.formerRemotes(prefixes("203.0.113.0/24"), local)
		holds := func(a string) bool {
			return slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
		}
		for a, want := range map[string]bool{
			"203.0.113.9": true, "10.3.1.7": true, "10.2.1.9": true, "10.0.255.255": true, "172.31.0.1": true, "192.168.99.9": true, "fd00:99::1": true,
			"10.1.0.0": false, "10.1.255.255": false, "8.8.8.8": false, "2001:db8:1::1": false,
		} {
			if holds(a) != want && !slices.ContainsFunc(r.connected(), func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) }) {
				t.Errorf("with nothing known %s is remote: %v, want %v", a, holds(a), want)
			}
		}
		if r.remotesErr == nil || r.remotesErr.Code != codeRemotesGuessed {
			t.Errorf("the status says %v", r.remotesErr)
		}
	}
	// The operator mends it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := r.formerRemotes(prefixes("10.9.0.0/16"), local); !slices.Equal(got, prefixes("10.9.0.0/16")) || r.remotesErr != nil {
		t.Errorf("after the file was removed: %v, and the status says %v", got, r.remotesErr)
	}
}

func TestWithout(t *testing.T) {
	for _, c := range []struct{ from, out, want []netip.Prefix }{
		{prefixes("10.0.0.0/30"), prefixes("10.0.0.1/32"), prefixes("10.0.0.0/32", "10.0.0.2/31")},
		{prefixes("10.0.0.0/30"), prefixes("10.0.0.0/8"), nil},
		{prefixes("10.0.0.0/30", "fd00::/126"), prefixes("192.0.2.0/24", "fd00::2/127"), prefixes("10.0.0.0/30", "fd00::/127")},
		{prefixes("10.0.0.0/8"), prefixes("10.0.0.0/9", "10.128.0.0/9"), nil},
	} {
		if got := without(c.from, c.out); !slices.Equal(got, c.want) {
			t.Errorf("%v without %v: %v, want %v", c.from, c.out, got, c.want)
		}
	}
}

func TestFormerRemotesAreBounded(t *testing.T) {
	var known []netip.Prefix
	for i := range 3 * maxFormerRemotes {
		known = append(known, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
	}
	now := prefixes("10.2.1.0/24")
	tell, all := withFormer(known, now, nil)
	if len(all) != maxFormerRemotes || len(tell) != maxFormerRemotes || !slices.Contains(all, now[0]) || all[len(all)-2] != known[len(known)-1] {
		t.Errorf("%d remembered, %d told", len(all), len(tell))
	}
	// A policy with more than that is told and remembered whole.
	if tell, all := withFormer(nil, known, nil); len(tell) != len(known) || len(all) != len(known) {
		t.Errorf("%d told, %d remembered of %d", len(tell), len(all), len(known))
	}
}
