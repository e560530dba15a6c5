package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"wardgate/internal/lab"
	"wardgate/policy"
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
		// Many of one address, and one that sends ESP of no SA.
		before := counters(ctx, t, n.Sides[1])["tcp_refused"]
		var conns []net.Conn
		must(t, n.Middle.Do(func() error {
			for range 20 {
				c, err := net.DialTimeout("tcp", netip.AddrPortFrom(n.Sides[1].WAN, 4500).String(), 5*time.Second)
				if errors.Is(err, syscall.ECONNRESET) && len(conns) > 0 {
					continue // refused
				}
				if err != nil {
					return err
				}
				conns = append(conns, c)
				if len(conns) == 1 {
					if _, err := c.Write(append([]byte("IKETCP"), bytes.Repeat([]byte{0, 10, 1, 2, 3, 4, 5, 6, 7, 8}, 100)...)); err != nil {
						return err
					}
				}
			}
			return nil
		}))
		must(t, conns[0].SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, err := conns[0].Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("ESP of no SA: %v; want the connection closed", err)
		}
		must(t, lab.WaitFor(ctx, "connections to be refused", 5*time.Second, func() error {
			c := counters(ctx, t, n.Sides[1])
			if got := c["tcp_refused"] - before; got < 3 || c["tcp_unproved"] > 16 {
				return fmt.Errorf("%d refused, %d taken; want at least 3 and at most 16", got, c["tcp_unproved"])
			}
			return nil
		}))
		bothWays(ctx, t, n, false, 1<<20)
		for _, c := range conns {
			c.Close()
		}
		must(t, lab.WaitFor(ctx, "strangers to be forgotten", 10*time.Second, func() error {
			if c := counters(ctx, t, n.Sides[1]); c["tcp_unproved"] != 0 || c["tcp_connections"] != 1 {
				return fmt.Errorf("%d connections, %d of strangers; want 1 and none", c["tcp_connections"], c["tcp_unproved"])
			}
			return nil
		}))
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

// Both ends rekey all the time, IKE and CHILD SAs, while data flows; over IPv4 through a NAT, and over
// IPv6. Nothing leaves but TCP.
func TestTCPRekeys(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-tcprk")
	ctx := within(t, 170*time.Second)
	must(t, n.Masquerade())
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4, NAT", true: "IPv6"}[v6], func(t *testing.T) {
			blockUDP(t, n, false) // counters from 0
			blockUDP(t, n, true)
			must(t, n.Start(ctx, v6, "tcp = \"always\"\n", func(_ int, d *policy.Document) {
				d.Lifetimes.IKE, d.Lifetimes.Child = policy.Duration(4*time.Second), policy.Duration(2*time.Second)
			}))
			defer func() { must(t, n.Stop()) }()
			wire, err := n.CaptureWhole(ctx, n.Middle, fmt.Sprintf("tcp-%v", v6), lab.MiddleDevs[1])
			must(t, err)
			ping(ctx, t, n, v6)
			overTCP(ctx, t, n, true)
			before, err := n.Sides[0].Connection(ctx, "a-b")
			must(t, err)
			must(t, wire.StopWhole(ctx))
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
				bothWays(ctx, t, n, v6, 20<<20)
			}
			after, err := n.Sides[0].Connection(ctx, "a-b")
			must(t, err)
			if !after.Since.Equal(before.Since) || after.SAs[0].SPIIn == before.SAs[0].SPIIn || !after.TCP || after.Encap {
				t.Errorf("%+v, before %+v; want it up all the time, rekeyed, over TCP", after, before)
			}
			for _, f := range n.Sides {
				for name, v := range counters(ctx, t, f) {
					switch name {
					case "drop_unknown_spi", "drop_not_authentic", "drop_replay", "drop_malformed_esp", "tcp_refused", "socket_out_datagrams":
						if v > 0 {
							t.Errorf("%s: %s is %d; want 0", f.Title, name, v)
						}
					}
				}
			}
			packets, err := wire.Packets()
			must(t, err)
			seen := 0
			for _, p := range packets {
				o, ok := outerOf(p)
				if !ok || o.src.IsLinkLocalUnicast() || o.dst.IsMulticast() || o.dst.IsLinkLocalUnicast() {
					continue // what every kernel says on a link
				}
				if o.proto != layers.IPProtocolTCP && o.proto != layers.IPProtocolICMPv6 {
					t.Errorf("on the wire: %v", p)
				}
				// RFC 9329, section 6.1: the same for every connection.
				if ip, ok := p.NetworkLayer().(*layers.IPv6); ok && o.proto == layers.IPProtocolTCP && ip.FlowLabel != 0 {
					t.Errorf("flow label %05x, want 0: %v", ip.FlowLabel, p)
				}
				seen++
			}
			if seen < 10 {
				t.Errorf("only %d packets on the wire", seen)
			}
		})
	}
}

// A peer without TCP: the attempt ends as it did, and says so.
func TestTCPNever(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-tcpno")
	ctx := within(t, 100*time.Second)
	must(t, n.Start(ctx, false, "tcp = \"never\"\n", nil))
	for _, f := range n.Sides {
		out, err := f.Router.Run(ctx, "ss", "-Htln", "sport", "=", ":4500")
		must(t, err)
		if strings.TrimSpace(out) != "" {
			t.Errorf("%s listens: %s", f.Title, out)
		}
	}
	ping(ctx, t, n, false)
	overTCP(ctx, t, n, false)
}

func readLog(t *testing.T, n *lab.Line, name string) string {
	t.Helper()
	b, err := os.ReadFile(n.Path("log", name+".log"))
	must(t, err)
	return string(b)
}
