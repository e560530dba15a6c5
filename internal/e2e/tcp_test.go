package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
)

// Where no UDP gets through, IKE and ESP go over TCP (RFC 9329) by themselves: up, with data both
// ways, over rekeys, over broken TCP connections, in both versions of IP and through a NAT; and over
// UDP again when that works.

// blockUDP has the middle drop UDP and ESP, as a guest network does.
func blockUDP(t *testing.T, n *lab.Line, on bool) {
	t.Helper()
	const none = "table inet noudp\ndelete table inet noudp\n"
	rules := none
	if on {
		rules += `table inet noudp {
	chain forward {
		type filter hook forward priority 0; policy accept;
		udp dport { 500, 4500 } counter drop
		udp sport { 500, 4500 } counter drop
		meta l4proto 50 counter drop
	}
}
`
	}
	must(t, n.Middle.Nft(rules))
}

// cutTCP has the middle reset whatever goes through the TCP connections that stand, and not new ones: a
// middlebox that has lost its state.
func cutTCP(ctx context.Context, t *testing.T, n *lab.Line) {
	t.Helper()
	must(t, n.Middle.Nft(`table inet cut
delete table inet cut
table inet cut {
	set ports { type inet_service; }
	chain forward {
		type filter hook forward priority 1; policy accept;
		tcp dport 4500 tcp sport @ports counter reject with tcp reset
		tcp sport 4500 tcp dport @ports counter reject with tcp reset
	}
}
`))
	out, err := n.Sides[0].Router.Run(ctx, "ss", "-Htn", "state", "established", "dport", "=", ":4500")
	must(t, err)
	out2, err := n.Sides[1].Router.Run(ctx, "ss", "-Htn", "state", "established", "dport", "=", ":4500")
	must(t, err)
	for line := range strings.Lines(out + out2) {
		f := strings.Fields(line)
		if len(f) < 4 {
			t.Fatalf("ss says %q", line)
		}
		must(t, n.Middle.Nft(fmt.Sprintf("add element inet cut ports { %s }\n", f[2][strings.LastIndexByte(f[2], ':')+1:])))
	}
}

// overTCP waits until both sides say that the connection uses TCP, or does not.
func overTCP(ctx context.Context, t *testing.T, n *lab.Line, want bool) {
	t.Helper()
	for _, f := range n.Sides {
		must(t, lab.WaitFor(ctx, fmt.Sprintf("%s to have TCP %v", f.Title, want), 10*time.Second, func() error {
			c, err := f.Connection(ctx, "a-b")
			if err == nil && (len(c.SAs) == 0 || c.TCP != want) {
				err = fmt.Errorf("the connection is %s, with %d SAs, TCP %v", c.State, len(c.SAs), c.TCP)
			}
			return err
		}))
	}
}

func bothWays(ctx context.Context, t *testing.T, n *lab.Line, v6 bool, size int64) {
	t.Helper()
	for from := range 2 {
		s := &tcpStream{from: n.Hosts[from], to: n.Hosts[1-from], src: n.Addr(from, v6), dst: netip.AddrPortFrom(n.Addr(1-from, v6), lab.LinePorts[0]), size: size, seed: uint64(from)}
		start := time.Now()
		must(t, s.run(ctx))
		t.Logf("%d octets from side %d in %v", size, from, time.Since(start))
	}
}

func TestTCPFallback(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-tcp")
	ctx := within(t, 170*time.Second)
	blockUDP(t, n, true)
	must(t, n.Start(ctx, false, "", nil))
	ping(ctx, t, n, false)
	overTCP(ctx, t, n, true)
	bothWays(ctx, t, n, false, 50<<20)

	t.Run("broken", func(t *testing.T) {
		before, err := n.Sides[0].Connection(ctx, "a-b")
		must(t, err)
		for range 3 {
			cutTCP(ctx, t, n)
			bothWays(ctx, t, n, false, 1<<20)
		}
		after, err := n.Sides[0].Connection(ctx, "a-b")
		must(t, err)
		if before.SAs[0].SPIIn != after.SAs[0].SPIIn || before.SAs[0].SPIOut != after.SAs[0].SPIOut || !before.Since.Equal(after.Since) {
			t.Errorf("the SAs are others: %+v, before %+v", after.SAs, before.SAs)
		}
		again := readLog(t, n, "wardgated-a")
		if got := strings.Count(again, `"again": true`); got < 3 {
			t.Errorf("the TCP connection was opened anew %d times, want 3", got)
		}
		if log := readLog(t, n, "wardgated-b"); strings.Contains(log, "TCP connection to the peer's gateway stands") {
			t.Error("the responder opened a TCP connection")
		}
	})

	t.Run("stranger", func(t *testing.T) {
		// Whatever else comes to the port is closed, and hurts nobody.
		for _, say := range []string{"GET / HTTP/1.1\\r\\n\\r\\n", "IKETCP\\000\\001", "IKETCP\\000\\000"} {
			cmd := fmt.Sprintf(`exec 3<>/dev/tcp/%s/4500; printf '%s' >&3; timeout 5 cat <&3 | wc -c`, n.Sides[1].WAN, say)
			if out, err := n.Middle.Run(ctx, "bash", "-c", cmd); err != nil || strings.TrimSpace(out) != "0" {
				t.Errorf("%q: %v %q; want the connection closed without a word", say, err, out)
			}
		}
		bothWays(ctx, t, n, false, 1<<20)
	})

	t.Run("UDP again", func(t *testing.T) {
		_, err := n.Sides[0].Control().Down(ctx, "a-b")
		must(t, err)
		blockUDP(t, n, false)
		ping(ctx, t, n, false)
		overTCP(ctx, t, n, false)
		bothWays(ctx, t, n, false, 1<<20)
	})
}

func readLog(t *testing.T, n *lab.Line, name string) string {
	t.Helper()
	b, err := os.ReadFile(n.Path("log", name+".log"))
	must(t, err)
	return string(b)
}
