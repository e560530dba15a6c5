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

	"github.com/vishvananda/netns"
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

// wire is two namespaces with a cable between them.
type wire struct {
	ours, theirs string // names of the namespaces
	our, their   netip.Addr
}

func newWire(t *testing.T) *wire {
	t.Helper()
	id := fmt.Sprintf("wgio%d-%d", os.Getpid(), serial.Add(1))
	w := &wire{ours: id + "a", theirs: id + "b", our: netip.MustParseAddr("198.18.7.1"), their: netip.MustParseAddr("198.18.7.2")}
	for _, ns := range []string{w.ours, w.theirs} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	run(t, "ip", "link", "add", "eth0", "netns", w.ours, "type", "veth", "peer", "name", "eth0", "netns", w.theirs)
	run(t, "ip", "-n", w.ours, "addr", "add", w.our.String()+"/24", "dev", "eth0")
	run(t, "ip", "-n", w.theirs, "addr", "add", w.their.String()+"/24", "dev", "eth0")
	run(t, "ip", "-n", w.theirs, "addr", "add", "10.2.0.1/24", "dev", "lo")
	run(t, "ip", "-n", w.ours, "link", "set", "eth0", "up")
	run(t, "ip", "-n", w.theirs, "link", "set", "eth0", "up")
	return w
}

// listen opens a UDP socket inside of a namespace; it stays there.
func listen(t *testing.T, ns string, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	runtime.LockOSThread()
	here, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatal(err)
	}
	defer here.Close()
	there, err := netns.GetFromName(ns)
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		runtime.UnlockOSThread()
		t.Fatal(err)
	}
	c, lerr := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err := netns.Set(here); err != nil {
		// This thread must not be used again: it stays locked and dies with the goroutine.
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
	if lerr != nil {
		t.Fatal(lerr)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
