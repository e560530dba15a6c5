package interop

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var serial atomic.Uint32

// needs skips the test, or fails it in CI, unless it runs as root and has the programs.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	missing := ""
	if os.Getuid() != 0 {
		missing = "root (network namespaces)"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = p
		}
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s", missing)
	}
	t.Skipf("missing: %s", missing)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// way is what lies between the two ends.
type way struct {
	v6  bool   // IPv6 alone; otherwise IPv4 alone
	nat behind // a router that translates addresses
}

// behind says who is behind the NAT.
type behind string

const (
	nobody behind = ""
	we     behind = "we"
	they   behind = "they"
)

// wire is two namespaces with a cable between them, or with a NAT.
type wire struct {
	t            *testing.T
	ours, theirs string // names of the namespaces
	our, their   netip.Addr

	nat     behind
	mid     string     // the namespace of the NAT
	outside netip.Addr // its address, by which those behind it are seen
}

// The protected networks, and the addresses in them that answer.
var (
	ourNets, theirNets   = []string{"10.1.0.0/24", "fd00:1::/64"}, []string{"10.2.0.0/24", "fd00:2::/64"}
	ourInner, theirInner = []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}, []netip.Addr{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00:2::1")}
)

func newWire(t *testing.T, how way) *wire {
	t.Helper()
	id := fmt.Sprintf("wgio%d-%d", os.Getpid(), serial.Add(1))
	w := &wire{t: t, ours: id + "a", theirs: id + "b", nat: how.nat, our: netip.MustParseAddr("198.18.7.1"), their: netip.MustParseAddr("198.18.7.2")}
	bits := "/24"
	if how.v6 {
		w.our, w.their, bits = netip.MustParseAddr("2001:db8:7::1"), netip.MustParseAddr("2001:db8:7::2"), "/64"
	}
	spaces := []string{w.ours, w.theirs}
	if how.nat != nobody {
		w.mid, w.their = id+"m", netip.MustParseAddr("198.18.8.2")
		spaces = append(spaces, w.mid)
	}
	for _, ns := range spaces {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	cable := func(ns1, dev1, ns2, dev2 string) {
		run(t, "ip", "link", "add", dev1, "netns", ns1, "type", "veth", "peer", "name", dev2, "netns", ns2)
	}
	addr := func(ns, dev, a string) {
		args := []string{"-n", ns, "addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad") // an address that is being checked for a double cannot be used
		}
		run(t, "ip", args...)
		run(t, "ip", "-n", ns, "link", "set", dev, "up")
	}
	if how.nat == nobody {
		cable(w.ours, "eth0", w.theirs, "eth0")
	} else {
		cable(w.ours, "eth0", w.mid, "eth0")
		cable(w.theirs, "eth0", w.mid, "eth1")
		addr(w.mid, "eth0", "198.18.7.254/24")
		addr(w.mid, "eth1", "198.18.8.254/24")
		run(t, "ip", "netns", "exec", w.mid, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	}
	addr(w.ours, "eth0", w.our.String()+bits)
	addr(w.theirs, "eth0", w.their.String()+bits)
	addr(w.theirs, "lo", theirInner[0].String()+"/24")
	addr(w.theirs, "lo", theirInner[1].String()+"/64")
	// Nobody outside has a route to what is behind the NAT.
	switch how.nat {
	case nobody:
	case we:
		w.outside = netip.MustParseAddr("198.18.8.254")
		run(t, "ip", "-n", w.ours, "route", "add", "default", "via", "198.18.7.254")
	case they:
		w.outside = netip.MustParseAddr("198.18.7.254")
		run(t, "ip", "-n", w.theirs, "route", "add", "default", "via", "198.18.8.254")
	}
	return w
}

// inside is the address of who is behind the NAT, and the NAT's interface to the outside.
func (w *wire) inside() (a netip.Addr, dev string) {
	if w.nat == we {
		return w.our, "eth1"
	}
	return w.their, "eth0"
}

// translate sets the NAT's rules, and forgets the connections that it knows: what comes from inside gets
// the ports base+500 to base+509 in place of 500, and base+4500 to base+4509 in place of 4500. With forward, the
// NAT's own ports 500 and 4500 lead inside.
func (w *wire) translate(base int, forward bool) {
	w.t.Helper()
	inside, dev := w.inside()
	rules := fmt.Sprintf(`table ip nat {
	counter keepalives { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname %[1]q udp dport 4500 udp length 9 counter name keepalives
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname %[1]q udp sport 500 masquerade to :%[2]d-%[3]d
		oifname %[1]q udp sport 4500 masquerade to :%[4]d-%[5]d
		oifname %[1]q masquerade
	}
`, dev, base+500, base+509, base+4500, base+4509)
	if forward {
		rules += fmt.Sprintf(`	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		iifname %q udp dport { 500, 4500 } dnat to %v
	}
`, dev, inside)
	}
	cmd := exec.Command("ip", "netns", "exec", w.mid, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader("flush ruleset\n" + rules + "}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("nft: %v\n%s", err, out)
	}
	ns, err := netns.GetFromName(w.mid)
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	if err := h.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		w.t.Fatalf("the NAT's connections: %v", err)
	}
}

// keepalives counts the NAT keepalives (RFC 3948) from inside since the rules were set.
func (w *wire) keepalives() int {
	w.t.Helper()
	out := run(w.t, "ip", "netns", "exec", w.mid, "nft", "list", "counter", "ip", "nat", "keepalives")
	var n int
	if _, err := fmt.Sscanf(out[strings.Index(out, "packets"):], "packets %d", &n); err != nil {
		w.t.Fatalf("%v:\n%s", err, out)
	}
	return n
}

// within runs f in a namespace. Sockets that f opens stay there.
func within(t *testing.T, ns string, f func() error) error {
	t.Helper()
	runtime.LockOSThread()
	here, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer here.Close()
	there, err := netns.GetFromName(ns)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	ferr := f()
	if err := netns.Set(here); err != nil {
		// This thread must not be used again: it stays locked and dies with the goroutine.
		return err
	}
	runtime.UnlockOSThread()
	return ferr
}

// listen opens a UDP socket inside of a namespace.
func listen(t *testing.T, ns string, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	if err := within(t, ns, func() (err error) {
		c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
