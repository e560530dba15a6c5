package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The laboratory of these tests: hospital A's router with a LAN zone, a DMZ zone, a guest network
// that is no zone, and the internet, each a namespace that the test made and that goes with it.
// The tunnels to B and C end in a TUN device that the test itself reads and writes.

const (
	patience = 5 * time.Second // how long something that must happen may take
	tunName  = "wgtest0"
)

type host struct {
	name string
	fd   int
	nl   *netlink.Handle
}

// needRoot skips on a developer's machine without privileges and fails in CI.
func needRoot(t testing.TB) {
	t.Helper()
	err := func() error {
		if os.Geteuid() != 0 {
			return errors.New("not root")
		}
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			return err
		}
		_, err := newNS()
		return err
	}()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("network namespaces are needed and cannot be made: %v", err)
	}
	t.Skipf("network namespaces are needed and cannot be made: %v", err)
}

// newNS makes a network namespace and returns a descriptor of it.
func newNS() (int, error) {
	type result struct {
		fd  int
		err error
	}
	c := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine instead of serving others.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{0, err}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		c <- result{fd, err}
	}()
	r := <-c
	return r.fd, r.err
}

func newHost(t testing.TB, name string) *host {
	t.Helper()
	fd, err := newNS()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{name: name, fd: fd}
	h.do(t, func() error {
		h.nl, err = netlink.NewHandle()
		return err
	})
	t.Cleanup(func() {
		h.nl.Close()
		unix.Close(fd)
	})
	h.up(t, "lo")
	h.sysctl(t, "ipv6/conf/default/accept_dad", "0")
	return h
}

// do runs f in the host's namespace.
func (h *host) do(t testing.TB, f func() error) {
	t.Helper()
	if err := inNS(h.fd, f); err != nil {
		t.Fatalf("%s: %v", h.name, err)
	}
}

func (h *host) up(t testing.TB, ifn string) netlink.Link {
	t.Helper()
	l, err := h.nl.LinkByName(ifn)
	if err != nil {
		t.Fatalf("%s: %s: %v", h.name, ifn, err)
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		t.Fatalf("%s: %s: %v", h.name, ifn, err)
	}
	return l
}

func (h *host) addr(t testing.TB, ifn string, addrs ...string) {
	t.Helper()
	l := h.up(t, ifn)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags |= unix.IFA_F_NODAD
		if err := h.nl.AddrAdd(l, addr); err != nil {
			t.Fatalf("%s: %s: adding %s: %v", h.name, ifn, a, err)
		}
	}
}

// route adds a route of the administrator's (table 0: main).
func (h *host) route(t testing.TB, dst, via, dev string, table int) {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	r := &netlink.Route{Dst: ipNet(p), Table: table}
	if via != "" {
		r.Gw = net.ParseIP(via)
	}
	if dev != "" {
		l, err := h.nl.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		r.LinkIndex = l.Attrs().Index
		if via == "" {
			r.Scope = netlink.SCOPE_LINK
		}
	}
	if err := h.nl.RouteReplace(r); err != nil {
		t.Fatalf("%s: route %s via %s dev %s: %v", h.name, dst, via, dev, err)
	}
}

// rule adds an ip rule of the administrator's.
func (h *host) rule(t testing.TB, prio, table, family int) {
	t.Helper()
	r := netlink.NewRule()
	r.Priority, r.Table, r.Family = prio, table, family
	if err := h.nl.RuleAdd(r); err != nil {
		t.Fatal(err)
	}
}

func (h *host) sysctl(t testing.TB, name, value string) {
	t.Helper()
	h.do(t, func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

func (h *host) sysctlIs(t testing.TB, name, want string) {
	t.Helper()
	h.do(t, func() error {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		if got := strings.TrimSpace(string(b)); err == nil && got != want {
			t.Errorf("%s: net/%s is %s, want %s", h.name, name, got, want)
		}
		return err
	})
}

// send sends a UDP packet from the host, from a source address of its choice.
func (h *host) send(t testing.TB, from, to, payload string) error {
	t.Helper()
	return h.sendMarked(t, from, to, payload, 0)
}

func (h *host) sendMarked(t testing.TB, from, to, payload string, mark uint32) error {
	t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	var serr error
	h.do(t, func() error {
		domain := unix.AF_INET
		if src.Addr().Is6() {
			domain = unix.AF_INET6
		}
		s, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		// Spoofed sources are part of the attempts.
		if domain == unix.AF_INET {
			err = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		} else {
			err = unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		}
		if err != nil {
			return err
		}
		if mark != 0 {
			if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
				return err
			}
		}
		if err := unix.Bind(s, sockaddr(src)); err != nil {
			return fmt.Errorf("bind %v: %w", src, err)
		}
		serr = unix.Sendto(s, []byte(payload), 0, sockaddr(dst))
		return nil
	})
	return serr
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// veth joins two hosts.
func veth(t testing.TB, a *host, an string, b *host, bn string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = an
	if err := a.nl.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: bn, PeerNamespace: netlink.NsFd(b.fd)}); err != nil {
		t.Fatalf("veth %s-%s: %v", an, bn, err)
	}
}

// seen is a UDP packet somewhere.
type seen struct {
	src, dst netip.AddrPort
	payload  string
}

// tap collects the UDP packets of a place.
type tap struct {
	name string
	mu   sync.Mutex
	all  []seen
	more chan struct{} // closed and replaced when something came
}

func newTap(name string) *tap { return &tap{name: name, more: make(chan struct{})} }

func (p *tap) put(pkt []byte) {
	s, ok := parseUDP(pkt)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, s)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *tap) find(payload string) (seen, bool, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.all {
		if s.payload == payload {
			return s, true, p.more
		}
	}
	return seen{}, false, p.more
}

// want waits for the packet with this payload, which must have these addresses.
func (p *tap) want(t testing.TB, payload, src, dst string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		s, ok, more := p.find(payload)
		if ok {
			if got := fmt.Sprint(s.src, " -> ", s.dst); got != src+" -> "+dst {
				t.Errorf("%s: packet %q is %s, want %s -> %s", p.name, payload, got, src, dst)
			}
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Errorf("%s: packet %q (%s -> %s) did not arrive", p.name, payload, src, dst)
			return
		}
	}
}

// never fails if the packet was seen. Call it behind a fence.
func (p *tap) never(t testing.TB, payload string) {
	t.Helper()
	if s, ok, _ := p.find(payload); ok {
		t.Errorf("%s: packet %q was seen: %v -> %v", p.name, payload, s.src, s.dst)
	}
}

// sniff taps everything that arrives at an interface of the host.
func (h *host) sniff(t testing.TB, ifn string) *tap {
	t.Helper()
	p := newTap(h.name + "/" + ifn)
	var f *os.File
	h.do(t, func() error {
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		// What the host itself sends is no arrival.
		if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return err
		}
		i, err := net.InterfaceByName(ifn)
		if err != nil {
			return err
		}
		all := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
		if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all), Ifindex: i.Index}); err != nil {
			return err
		}
		f = os.NewFile(uintptr(s), "sniffer")
		return nil
	})
	p.read(t, f)
	return p
}

func (p *tap) read(t testing.TB, f *os.File) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			p.put(buf[:n])
		}
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
	})
}

// tun is the fake daemon's device.
type tun struct {
	*tap
	f *os.File
}

func (h *host) openTun(t testing.TB) *tun {
	t.Helper()
	d := &tun{tap: newTap("TUN"), f: h.tunFile(t)}
	d.read(t, d.f)
	return d
}

func (h *host) tunFile(t testing.TB) (f *os.File) {
	t.Helper()
	h.do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(tunName)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "tun")
		return nil
	})
	return f
}

// inject lets a packet come out of a tunnel.
func (d *tun) inject(t testing.TB, from, to, payload string) {
	t.Helper()
	if _, err := d.f.Write(udpPacket(from, to, payload)); err != nil {
		t.Fatalf("writing to the TUN device: %v", err)
	}
}

func udpPacket(from, to, payload string) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice(), []byte{0, unix.IPPROTO_UDP},
		binary.BigEndian.AppendUint16(nil, uint16(len(udp))), udp)
	binary.BigEndian.PutUint16(udp[6:], checksum(pseudo))
	if src.Addr().Is4() {
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
		ip = slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(ip, udp...)
	}
	ip := []byte{0x60, 0, 0, 0, 0, 0, unix.IPPROTO_UDP, 64}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	return slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice(), udp)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func parseUDP(p []byte) (seen, bool) {
	var r Refusal
	if !parsePacket(p, &r) || r.Proto != unix.IPPROTO_UDP || r.NoPorts {
		return seen{}, false
	}
	head := 28
	if r.Src.Is6() {
		head = 48
	}
	return seen{
		netip.AddrPortFrom(r.Src, r.SrcPort), netip.AddrPortFrom(r.Dst, r.DstPort),
		string(bytes.TrimRight(p[head:min(len(p), max(head, r.Length))], "\x00")),
	}, true
}

// admin installs a table of the facility's administrator: masquerade everything that leaves by
// one of the interfaces, and send what is for a destination to another one.
type adminNAT struct {
	masquerade []string
	dnat       map[string]string // "addr:port" -> "addr:port"
	redirect   []uint16          // UDP ports to the router itself
}

const adminTable = "admin"

func (h *host) admin(t testing.TB, n adminNAT) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(h.fd))
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: adminTable})
	post := conn.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	pre := conn.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	for _, ifn := range n.masquerade {
		conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(oif(ifName(ifn), true), &expr.Masq{})})
	}
	for from, to := range n.dnat {
		f, d := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
		fam, nfproto := ip4, uint32(unix.NFPROTO_IPV4)
		if f.Addr().Is6() {
			fam, nfproto = ip6, unix.NFPROTO_IPV6
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: slices.Concat(fam.is(), match{
			fam.load(fam.daddr, reg),
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: f.Addr().AsSlice()},
		}, l4proto(unix.IPPROTO_UDP), match{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, f.Port())},
			&expr.Immediate{Register: 1, Data: d.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, d.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto, RegAddrMin: 1, RegProtoMin: 2},
		})})
	}
	for _, port := range n.redirect {
		conn.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: slices.Concat(l4proto(unix.IPPROTO_UDP), match{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.Redir{},
		})})
	}
	if err := conn.Flush(); err != nil {
		t.Fatalf("administrator's table: %v", err)
	}
}

// listenUDP returns a function that waits for a payload at a socket of the host.
func (h *host) listenUDP(t testing.TB, at string) func(t testing.TB, payload string) {
	t.Helper()
	var c net.PacketConn
	h.do(t, func() error {
		var err error
		c, err = net.ListenPacket("udp", at)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return func(t testing.TB, payload string) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, _, err := c.ReadFrom(buf)
		if err != nil || string(buf[:n]) != payload {
			t.Errorf("socket %s got %q, %v; want %q", at, buf[:n], err, payload)
		}
	}
}
