package addresswatch

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long something that must happen may take.
const patience = 10 * time.Second

// netns puts the test into a network namespace of its own; the thread ends with the test.
func netns(t *testing.T) (fd int) {
	t.Helper()
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a network namespace is needed and cannot be made: %v", err)
		}
		t.Skipf("a network namespace is needed and cannot be made: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	// A router: towards the internet (wan), another line (wan2), and a zone (lan).
	ip(t, "link set lo up")
	for _, dev := range []string{"wan", "wan2", "lan"} {
		ip(t, "link add "+dev+" type veth peer name far-"+dev)
		if err := os.WriteFile("/proc/thread-self/net/../sys/net/ipv6/conf/"+dev+"/accept_dad", []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		ip(t, "link set "+dev+" up", "link set far-"+dev+" up")
	}
	ip(t, "addr add 198.51.100.2/24 dev wan", "addr add 10.1.0.1/24 dev lan", "addr add 203.0.113.2/24 dev wan2",
		"-6 addr add 2001:db8:1::2/64 dev wan nodad", "-6 addr add fd00:1::1/64 dev lan nodad", "route add default via 198.51.100.1")
	return fd
}

func ip(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func want(t *testing.T, what string, q Query, list ...string) {
	t.Helper()
	q.NotOn = []string{"lan"}
	got, err := Outer(q)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, addrs(list...)) {
		t.Errorf("%s: %v; want %v", what, got, list)
	}
}

// TestOuter: whatever leads out of the machine counts, in the order of use; zones never do.
func TestOuter(t *testing.T) {
	netns(t)
	want(t, "one way out", Query{}, "198.51.100.2", "2001:db8:1::2")
	partner := Query{Towards: addrs("203.0.113.9")}
	want(t, "a partner on the other line", partner, "203.0.113.2", "198.51.100.2", "2001:db8:1::2")
	want(t, "in use on the other line", Query{InUse: addrs("203.0.113.2", "203.0.113.77")}, "198.51.100.2", "203.0.113.2", "2001:db8:1::2")
	want(t, "the daemon listens at one", Query{Only: addrs("203.0.113.2")}, "203.0.113.2")
	want(t, "partner inside a zone", Query{Towards: addrs("10.1.0.9"), InUse: addrs("10.1.0.1"), Only: nil}, "198.51.100.2", "2001:db8:1::2")
	ip(t, "addr add 198.51.100.3/24 dev wan")
	want(t, "two on a line", Query{}, "198.51.100.2", "198.51.100.3", "2001:db8:1::2")
	if got := Source(netip.MustParseAddr("203.0.113.9"), 0); got != addrs("203.0.113.2")[0] {
		t.Errorf("source is %v; want 203.0.113.2", got)
	}
	if got := Source(netip.MustParseAddr("2001:db8:2::1"), 0); got.IsValid() {
		t.Errorf("source is %v; want none: there is no way", got)
	}
	ip(t, "route add default via 203.0.113.1 metric 100")
	want(t, "a line that stands by", Query{}, "198.51.100.2", "198.51.100.3", "203.0.113.2", "2001:db8:1::2")
	ip(t, "route del default via 203.0.113.1", "link set wan down")
	want(t, "no way out", Query{})
	ip(t, "route add default via 203.0.113.1")
	want(t, "the other line", Query{}, "203.0.113.2")
	ip(t, "-6 addr add 2001:db8:2::2/64 dev wan2 nodad", "-6 addr add 2001:db8:2::3/64 dev wan2 nodad preferred_lft 0")
	want(t, "one that passes away", Query{}, "203.0.113.2", "2001:db8:2::2")
	want(t, "unless it is in use", Query{InUse: addrs("2001:db8:2::3")}, "203.0.113.2", "2001:db8:2::3", "2001:db8:2::2")
}

// TestWatch: a lease that is replaced is noticed, whatever its steps are; the last one counts.
func TestWatch(t *testing.T) {
	fd := netns(t)
	seen := make(chan []netip.Addr, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- Watch(ctx, func() {
			list, err := Outer(Query{NotOn: []string{"lan"}})
			if err != nil {
				t.Error(err)
			}
			seen <- list
		})
	}()
	wait := func(list ...string) {
		t.Helper()
		var got []netip.Addr
		limit := time.After(patience)
		for {
			select {
			case got = <-seen:
				if slices.Equal(got, addrs(list...)) {
					return
				}
			case err := <-done:
				t.Fatalf("the watch ended: %v", err)
			case <-limit:
				t.Fatalf("after %v our addresses were taken for %v; want %v", patience, got, list)
			}
		}
	}
	wait("198.51.100.2", "2001:db8:1::2")
	for _, a := range []string{"198.51.100.7", "198.51.100.8"} {
		ip(t, "addr flush dev wan", "addr add "+a+"/24 dev wan", "route replace default via 198.51.100.1")
		wait(a)
	}
	ip(t, "addr flush dev wan")
	wait()
	time.Sleep(2 * atMost) // also after a quiet while
	ip(t, "addr add 198.51.100.9/24 dev wan", "route replace default via 198.51.100.1")
	wait("198.51.100.9")
	ip(t, "link set wan down", "route replace default via 203.0.113.1")
	wait("203.0.113.2")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v; want context.Canceled", err)
	}
}
