package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"wardgate/internal/lab"
	"wardgate/policy"
)

// A link in the middle takes smaller packets than the routers' own. The routers learn it from the
// ICMP error about an ESP packet of theirs, and pass it on to the hosts, in the measure of the inner
// packets; nothing is fragmented outside, and nobody but who has seen the packets can make them
// believe it.
func TestPathMTU(t *testing.T) {
	needTshark(t)
	t.Parallel()
	n := newLine(t, "e2e-pmtu")
	keys := withKeylog(t, n, 0)
	ctx := within(t, 80*time.Second)
	must(t, n.Singly(ctx))
	for _, c := range []struct {
		name      string
		v6        bool // outer packets
		link      int
		innerMTU  int // what follows from the link for AES-GCM in UDP
		innerAlso bool
	}{
		// 20 (IPv4) + 8 (UDP) + 8 (SPI, sequence number) + 8 (IV) + n + padding to 4, at least 2 of
		// trailer + 16 (ICV)
		{"over IPv4", false, 1400, 1338, true},
		{"over IPv6", true, 1400, 1318, true},
		{"over IPv6, at its least", true, 1280, 1198, false},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			must(t, n.LinkMTU(1, 1500), n.Start(ctx, c.v6, "", withoutESN))
			defer func() { must(t, n.Stop()) }()
			forget(t, n)
			ping(ctx, t, n, false) // the tunnel stands
			must(t, n.LinkMTU(1, c.link))
			wire, err := n.CaptureWhole(ctx, n.Middle, "pmtu-"+strconv.FormatBool(c.v6)+strconv.Itoa(c.link), lab.MiddleDevs[0])
			must(t, err)

			// A's router does not know yet: what it hears from forgers changes nothing.
			forge(ctx, t, n, c.v6, false, 1300)
			ping(ctx, t, n, false) // what was forged has been read by now
			if got := pathMTU(ctx, t, n.Sides[0]); got != [2]int{1500, innerMTU(1500, c.v6)} {
				t.Errorf("after forged ICMP errors path and inner MTU are %d; want %d", got, [2]int{1500, innerMTU(1500, c.v6)})
			}

			families := []bool{false}
			if c.innerAlso {
				families = append(families, true)
			}
			for _, v6 := range families {
				// The first packets too long are lost and the kernel of the host hears why.
				hostLearns(ctx, t, n, v6, c.innerMTU)
				// TCP goes at once: hosts that know nothing are told in the handshake what fits.
				forget(t, n)
				tooBig := [2]uint64{counters(ctx, t, n.Sides[0])["drop_too_big"], counters(ctx, t, n.Sides[1])["drop_too_big"]}
				s := &tcpStream{from: n.Hosts[0], to: n.Hosts[1], src: n.Addr(0, v6), dst: netip.AddrPortFrom(n.Addr(1, v6), lab.LinePorts[0]), size: 2 << 20, seed: 3}
				must(t, s.run(ctx))
				back := &tcpStream{from: n.Hosts[1], to: n.Hosts[0], src: n.Addr(1, v6), dst: netip.AddrPortFrom(n.Addr(0, v6), lab.LinePorts[0]), size: 2 << 20, seed: 4}
				must(t, back.run(ctx))
				for i, f := range n.Sides {
					if more := counters(ctx, t, f)["drop_too_big"] - tooBig[i]; more != 0 {
						t.Errorf("IPv6 %v: %s dropped %d TCP packets for their length; want none to be sent that are too long", v6, f.Title, more)
					}
				}
				if v6 {
					continue // IPv6 packets are fragmented by hosts alone
				}
				// Without don't-fragment everything passes.
				d := datagrams{
					from: n.Hosts[0], to: n.Hosts[1], src: n.Addr(0, v6), dst: netip.AddrPortFrom(n.Addr(1, v6), lab.LinePorts[1]),
					count: 50, ahead: 4, mayFrag: true, size: func(i int) int { return 1200 + 5*i },
				}
				got, err := d.run(ctx)
				must(t, err)
				if got != d.count {
					t.Errorf("%d of %d datagrams without don't-fragment arrived", got, d.count)
				}
			}
			if got := pathMTU(ctx, t, n.Sides[0]); got != [2]int{c.link, c.innerMTU} {
				t.Errorf("status says path and inner MTU %d; want %d", got, [2]int{c.link, c.innerMTU})
			}
			// The same message is believed when it quotes a packet that was sent: what is forged above
			// has the right form, and is not heeded for what it lacks.
			if less := 1290; c.link > less {
				forge(ctx, t, n, c.v6, true, less)
				must(t, lab.WaitFor(ctx, "the path MTU to follow", 5*time.Second, func() error {
					if got := pathMTU(ctx, t, n.Sides[0]); got != [2]int{less, innerMTU(less, c.v6)} {
						return fmt.Errorf("path and inner MTU are %d; want %d", got, [2]int{less, innerMTU(less, c.v6)})
					}
					return nil
				}))
			}

			must(t, wire.StopWhole(ctx))
			esp, _ := wireshark(t, wire, keys[0])
			longest := 0
			for _, e := range esp {
				if e.outer.frag || !e.outer.df {
					t.Errorf("frame %d: outer fragment %v, don't-fragment %v; want none, and set", e.frame, e.outer.frag, e.outer.df)
				}
				if e.inner == nil {
					t.Errorf("frame %d: %s", e.frame, e.why)
					continue
				}
				p, err := parseInner(e.inner)
				if err != nil {
					t.Errorf("frame %d: %v", e.frame, err)
					continue
				}
				if p.proto == layers.IPProtocolTCP {
					longest = max(longest, len(e.inner))
				}
			}
			if longest != c.innerMTU {
				t.Errorf("the longest inner TCP packet has %d octets; want %d, all that fits", longest, c.innerMTU)
			}
			t.Logf("%d ESP packets, the longest TCP packet inside has %d octets", len(esp), longest)
		})
	}
}

// withoutESN keeps to sequence numbers that tshark knows.
func withoutESN(_ int, d *policy.Document) { d.Suites.ESP = []string{"aes256gcm16-noesn"} }

// innerMTU is what follows for AES-GCM in UDP: the inner packet, at least 2 octets behind it, in
// fours.
func innerMTU(outer int, v6 bool) int {
	n := outer - 20 - 8 - 16 - 16
	if v6 {
		n -= 20
	}
	return n/4*4 - 2
}

func pathMTU(ctx context.Context, t *testing.T, f *lab.Facility) [2]int {
	t.Helper()
	c, err := f.Connection(ctx, "a-b")
	must(t, err)
	return [2]int{c.PathMTU, c.InnerMTU}
}

// forget has the hosts forget what they learned about paths.
func forget(t *testing.T, n *lab.Line) {
	t.Helper()
	for _, h := range n.Hosts {
		must(t, h.IP("route", "flush", "cache"), h.IP("-6", "route", "flush", "cache"))
	}
}

// ping lets A's host ping B's, and waits until neither router holds back packets any more: while the
// connection is being made they hold a few, and drop more.
func ping(ctx context.Context, t *testing.T, n *lab.Line, v6 bool) {
	t.Helper()
	if out, err := n.Hosts[0].Run(ctx, "ping", "-n", "-c", "3", "-i", "0.02", "-W", "5", n.Addr(1, v6).String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range n.Sides {
		must(t, lab.WaitFor(ctx, f.Title+" to send without holding back", 5*time.Second, func() error {
			c, err := f.Connection(ctx, "a-b")
			if err == nil && c.PathMTU == 0 {
				err = fmt.Errorf("the connection is %s and has no SA to send on", c.State)
			}
			return err
		}))
	}
}

// hostLearns sends datagrams with don't-fragment, each as long as the host's kernel believes to be
// possible, until its kernel knows what fits; and wants that to be mtu.
func hostLearns(ctx context.Context, t *testing.T, n *lab.Line, v6 bool, mtu int) {
	t.Helper()
	to := netip.AddrPortFrom(n.Addr(1, v6), lab.LinePorts[2])
	level, discover, ask, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, 28
	if v6 {
		level, discover, ask, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, 48
	}
	var conn *net.UDPConn
	must(t, n.Hosts[0].Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Addr(0, v6), 0)), net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer conn.Close()
	raw, err := conn.SyscallConn()
	must(t, err)
	believed := 0
	opt := func() (err error) {
		ctl := raw.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_DO); err == nil {
				believed, err = unix.GetsockoptInt(int(fd), level, ask)
			}
		})
		if err == nil {
			err = ctl
		}
		return err
	}
	must(t, lab.WaitFor(ctx, fmt.Sprintf("host A to learn that packets of %d octets fit", mtu), 10*time.Second, func() error {
		if err := opt(); err != nil {
			return err
		}
		if believed == mtu {
			return nil
		}
		_, _ = conn.Write(make([]byte, believed-headers)) // what the kernel says of it, it says through believed
		return fmt.Errorf("it believes in %d", believed)
	}))
}

// forge sends ICMP errors to A's router that say that packets of its were longer than mtu. Without
// seen they are those of somebody who knows the addresses but has not seen the packets: none that
// was sent is quoted. With seen the last one is.
func forge(ctx context.Context, t *testing.T, n *lab.Line, v6, seen bool, mtu int) {
	t.Helper()
	conn, err := n.Sides[0].Connection(ctx, "a-b")
	must(t, err)
	spi, last := uint32(0), uint32(0)
	for _, sa := range conn.SAs {
		if sa.Sending {
			spi, last = sa.SPIOut, uint32(sa.Out.Sequence)
		}
	}
	network := "ip4:icmp"
	if v6 {
		network = "ip6:ipv6-icmp"
	}
	from, to := n.Sides[1].WAN, n.Sides[0].WAN
	var c net.PacketConn
	must(t, n.Middle.Do(func() (err error) {
		c, err = net.ListenPacket(network, "")
		return err
	}))
	defer c.Close()
	quotes := [][2]uint32{{spi ^ 1, last}, {0xdeadbeef, last}, {spi, last + 1000}, {spi, last - 1<<21}, {spi, 1 << 31}}
	if seen {
		quotes = [][2]uint32{{spi, last}}
	}
	for _, q := range quotes {
		_, err := c.WriteTo(tooBig(v6, to, from, q[0], q[1], mtu), &net.IPAddr{IP: to.AsSlice()})
		must(t, err)
	}
}

// tooBig makes an ICMP error about an ESP-in-UDP packet from src to dst.
func tooBig(v6 bool, src, dst netip.Addr, spi, seq uint32, mtu int) []byte {
	const quotedLen = 1500
	var quoted []byte
	if v6 {
		quoted = make([]byte, 40)
		quoted[0], quoted[6], quoted[7] = 0x60, 17, 63
		binary.BigEndian.PutUint16(quoted[4:], quotedLen-40)
		copy(quoted[8:], src.AsSlice())
		copy(quoted[24:], dst.AsSlice())
	} else {
		quoted = make([]byte, 20)
		quoted[0], quoted[6], quoted[8], quoted[9] = 0x45, 0x40, 63, 17
		binary.BigEndian.PutUint16(quoted[2:], quotedLen)
		copy(quoted[12:], src.AsSlice())
		copy(quoted[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(quoted[10:], ^uint16(sum(quoted, 0)))
	}
	ipLen := len(quoted)
	quoted = binary.BigEndian.AppendUint16(quoted, 4500)
	quoted = binary.BigEndian.AppendUint16(quoted, 4500)
	quoted = binary.BigEndian.AppendUint16(quoted, uint16(quotedLen-ipLen))
	quoted = binary.BigEndian.AppendUint16(quoted, 0)
	quoted = binary.BigEndian.AppendUint32(quoted, spi)
	quoted = binary.BigEndian.AppendUint32(quoted, seq)
	quoted = append(quoted, make([]byte, 64)...)
	icmp := make([]byte, 8, 8+len(quoted))
	if v6 {
		icmp[0] = 2
		binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
		return append(icmp, quoted...) // the kernel fills in the checksum
	}
	icmp[0], icmp[1] = 3, 4
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	icmp = append(icmp, quoted...)
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum(icmp, 0)))
	return icmp
}
