package kernel

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/nftables"
)

// BenchmarkRules sends packets of the four common kinds through a router, one by one: the whole
// way through the kernel, from a socket or the TUN device to the other end. What the rules cost is
// the difference to "none", without a table; "model" is the same policy as model_test.go says it,
// every packet through every rule.
//
// The ways differ by little of the whole, so compare the smallest of many short runs:
//
//	go test -run xxx -bench Rules -benchtime 5000x -count 20
func BenchmarkRules(b *testing.B) {
	for _, far := range []int{2, 200} {
		for _, rules := range []string{"none", "model", "rules"} {
			b.Run(fmt.Sprintf("remotes=%d/%s", far, rules), func(b *testing.B) { benchRules(b, far, rules) })
		}
	}
}

func benchRules(b *testing.B, far int, rules string) {
	needRoot(b)
	a, lan, wan := newHost(b, "A"), newHost(b, "LAN host"), newHost(b, "peer")
	veth(b, a, "lan0", lan, "eth0")
	veth(b, a, "wan0", wan, "eth0")
	a.addr(b, "lan0", "10.1.1.1/24", "fd00:1:1::1/64")
	lan.addr(b, "eth0", "10.1.1.10/24", "fd00:1:1::10/64")
	a.addr(b, "wan0", "198.51.100.1/24", "2001:db8::1/64")
	wan.addr(b, "eth0", "198.51.100.10/24", "2001:db8::10/64")
	lan.route(b, "0.0.0.0/0", "10.1.1.1", "", 0)
	lan.route(b, "::/0", "fd00:1:1::1", "", 0)
	tun := a.tunFile(b)
	b.Cleanup(func() { tun.Close() })
	a.up(b, tunName)
	a.route(b, "10.2.0.0/16", "", tunName, 0)
	a.route(b, "fd00:2::/32", "", tunName, 0)
	a.sysctl(b, "ipv4/ip_forward", "1")
	a.sysctl(b, "ipv6/conf/all/forwarding", "1")

	s := (&lab{}).state()
	s.Remotes = nil
	for i := range far {
		s.Remotes = append(s.Remotes, pfx(fmt.Sprintf("10.2.%d.0/24", i+1), fmt.Sprintf("fd00:2:%x::/64", i+1))...)
	}
	if rules != "none" {
		conn, err := openIn(b, a, Options{}).newConn()
		if err != nil {
			b.Fatal(err)
		}
		w := newBuilder(conn, conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: DefaultTableName}), tunName)
		w.log, w.mark = DefaultLogGroup, DefaultMark
		fill := w.fill
		if rules == "model" {
			fill = func(rs *ruleset) { fillModel(w, rs) }
		}
		fill(&ruleset{state: s})
		if w.err != nil {
			b.Fatal(w.err)
		}
		if err := conn.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	dial := func(h *host, from, to string) net.Conn {
		var c net.Conn
		h.do(b, func() (err error) {
			local, err := net.ResolveUDPAddr("udp", from)
			if err != nil {
				return err
			}
			c, err = (&net.Dialer{LocalAddr: local}).Dial("udp", to)
			return err
		})
		b.Cleanup(func() { c.Close() })
		return c
	}
	listen := func(h *host, at string) net.PacketConn {
		var c net.PacketConn
		h.do(b, func() (err error) {
			c, err = net.ListenPacket("udp", at)
			return err
		})
		b.Cleanup(func() { c.Close() })
		return c
	}
	outer := dial(a, "198.51.100.1:4500", "198.51.100.10:4500")
	outer6 := dial(a, "[2001:db8::1]:4500", "[2001:db8::10]:4500")
	peer := dial(wan, "198.51.100.10:4500", "198.51.100.1:4500")
	peer6 := dial(wan, "[2001:db8::10]:4500", "[2001:db8::1]:4500")
	payload := bytes.Repeat([]byte("wardgate"), 8)
	write := func(c net.Conn) func() error {
		return func() error {
			_, err := c.Write(payload)
			return err
		}
	}
	inject := func(from, to string) func() error {
		p := udpPacket(from, to, string(payload))
		return func() error {
			_, err := tun.Write(p)
			return err
		}
	}
	for _, c := range []struct {
		name string
		send func() error
		end  io.Reader
	}{
		{"LAN-TUN", write(dial(lan, "10.1.1.10:1000", "10.2.1.9:9")), tun},
		{"TUN-LAN", inject("10.2.1.9:9", "10.1.1.10:9"), reader{listen(lan, "10.1.1.10:9")}},
		{"outer-in", write(peer), outer},
		{"outer-out", write(outer), peer},
		{"LAN-TUN6", write(dial(lan, "[fd00:1:1::10]:1000", "[fd00:2:1::9]:9")), tun},
		{"TUN-LAN6", inject("[fd00:2:1::9]:9", "[fd00:1:1::10]:9"), reader{listen(lan, "[fd00:1:1::10]:9")}},
		{"outer-in6", write(peer6), outer6},
		{"outer-out6", write(outer6), peer6},
	} {
		// One packet that is seen to arrive; the others are not read, so that what they cost is
		// the way there only: full sockets and the full TUN device drop behind all rules.
		if err := c.send(); err != nil {
			b.Fatal(err)
		}
		if err := c.end.(interface{ SetReadDeadline(time.Time) error }).SetReadDeadline(time.Now().Add(patience)); err != nil {
			b.Fatal(err)
		}
		for buf := make([]byte, 2048); ; {
			n, err := c.end.Read(buf)
			if err != nil {
				b.Fatalf("%s: %v", c.name, err)
			}
			if bytes.HasSuffix(buf[:n], payload) {
				break
			}
		}
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				if err := c.send(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// reader reads from whomever.
type reader struct{ net.PacketConn }

func (r reader) Read(p []byte) (int, error) {
	n, _, err := r.ReadFrom(p)
	return n, err
}
