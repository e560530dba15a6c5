package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// patience is how long something that must happen may take.
const patience = 20 * time.Second

// space is a network namespace that no name refers to: it vanishes with the test.
type space struct {
	t      testing.TB
	handle netns.NsHandle
	nl     *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t}
	var err error
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			s.handle, err = netns.Get()
		}
		if err == nil {
			s.nl, err = netlink.NewHandle()
		}
	})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("network namespaces need root: %v", err)
		}
		t.Skipf("network namespaces need root: %v", err)
	}
	t.Cleanup(func() {
		s.nl.Close()
		_ = s.handle.Close()
	})
	s.sysctl("ipv6/conf/default/accept_dad", "0")
	s.up("lo")
	return s
}

// onThread runs f on a thread of its own that ends with it, so that no other goroutine inherits
// the namespace.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// in runs f inside the namespace. Sockets keep the namespace they were made in.
func (s *space) in(f func() error) {
	s.t.Helper()
	var err error
	onThread(func() {
		if err = netns.Set(s.handle); err == nil {
			err = f()
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.nl.LinkByName(name)
	s.must(err)
	return l
}

func (s *space) up(name string) {
	s.t.Helper()
	s.must(s.nl.LinkSetUp(s.link(name)))
}

func (s *space) mtu(name string, mtu int) {
	s.t.Helper()
	s.must(s.nl.LinkSetMTU(s.link(name), mtu))
}

func (s *space) addr(name string, addrs ...string) {
	s.t.Helper()
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		s.must(err)
		addr.Flags |= unix.IFA_F_NODAD
		s.must(s.nl.AddrAdd(s.link(name), addr))
		// The kernel makes an IPv6 address's own route later, in a worker of its own.
		deadline := time.Now().Add(patience)
		for local := false; !local; {
			routes, err := s.nl.RouteGet(addr.IP)
			local = err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
			if !local && time.Now().After(deadline) {
				s.t.Fatalf("%s is not local: %v, %v", a, routes, err)
			}
		}
	}
}

func (s *space) route(dst, via string) {
	s.t.Helper()
	p := netip.MustParsePrefix(dst)
	s.must(s.nl.RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Gw:  net.ParseIP(via),
	}))
}

func (s *space) sysctl(name, value string) {
	s.t.Helper()
	s.in(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

// feature does what ethtool -K does.
func (s *space) feature(dev, name string, on bool) {
	s.t.Helper()
	s.in(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ioctl := func(b []byte) error {
			ifr := struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				_    [16]byte
			}{data: unsafe.Pointer(&b[0])}
			copy(ifr.name[:], dev)
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); e != 0 {
				return e
			}
			return nil
		}
		const features = 4 // ETH_SS_FEATURES
		info := make([]byte, 20)
		binary.NativeEndian.PutUint32(info, unix.ETHTOOL_GSSET_INFO)
		binary.NativeEndian.PutUint64(info[8:], 1<<features)
		if err := ioctl(info); err != nil {
			return fmt.Errorf("features of %s: %w", dev, err)
		}
		n := int(binary.NativeEndian.Uint32(info[16:]))
		names := make([]byte, 12+n*32)
		binary.NativeEndian.PutUint32(names, unix.ETHTOOL_GSTRINGS)
		binary.NativeEndian.PutUint32(names[4:], features)
		binary.NativeEndian.PutUint32(names[8:], uint32(n))
		if err := ioctl(names); err != nil {
			return fmt.Errorf("names of features of %s: %w", dev, err)
		}
		for i := range n {
			if got, _, _ := bytes.Cut(names[12+i*32:][:32], []byte{0}); string(got) != name {
				continue
			}
			blocks := (n + 31) / 32
			set := make([]byte, 8+blocks*8)
			binary.NativeEndian.PutUint32(set, unix.ETHTOOL_SFEATURES)
			binary.NativeEndian.PutUint32(set[4:], uint32(blocks))
			binary.NativeEndian.PutUint32(set[8+i/32*8:], 1<<(i%32))
			if on {
				binary.NativeEndian.PutUint32(set[8+i/32*8+4:], 1<<(i%32))
			}
			if err := ioctl(set); err != nil {
				return fmt.Errorf("set %s of %s to %t: %w", name, dev, on, err)
			}
			return nil
		}
		return fmt.Errorf("%s has no feature %q", dev, name)
	})
}

// veth joins two namespaces by a cable.
func veth(a *space, nameA string, b *space, nameB string) {
	a.t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = nameA
	a.must(a.nl.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: nameB, PeerNamespace: netlink.NsFd(b.handle)}))
	a.up(nameA)
	b.up(nameB)
}

// pair is two hosts and the cable between them.
func pair(t testing.TB) (a, b *space) {
	t.Helper()
	a, b = newSpace(t), newSpace(t)
	veth(a, "eth0", b, "eth0")
	a.addr("eth0", "198.51.100.1/24", "2001:db8::1/64")
	b.addr("eth0", "198.51.100.2/24", "2001:db8::2/64")
	return a, b
}

func host(n byte, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: n})
	}
	return netip.AddrFrom4([4]byte{198, 51, 100, n})
}

// group opens sockets in the namespace (nil: that of the test). They are closed with the test, and
// when it hangs.
func group(t testing.TB, s *space, opt Options, native bool) *Group {
	t.Helper()
	if opt.Log == nil {
		opt.Log = func(msg string, kv ...any) { t.Errorf("unexpected: %s %v", msg, kv) }
	}
	var g *Group
	open := func() (err error) {
		if native {
			g, err = OpenESP(opt)
		} else {
			g, err = OpenUDP(opt)
		}
		return err
	}
	if s != nil {
		s.in(open)
	} else if err := open(); err != nil {
		t.Fatal(err)
	}
	watch := time.AfterFunc(patience, func() { _ = g.Close() })
	t.Cleanup(func() {
		if !watch.Stop() {
			t.Error("waited in vain")
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func dest(t testing.TB, remote netip.Addr, port uint16, local netip.Addr) *Dest {
	t.Helper()
	d, err := NewDest(netip.AddrPortFrom(remote, port), local)
	if err != nil {
		t.Fatal(err)
	}
	return &d
}

// got is a single datagram.
type got struct {
	payload string
	remote  netip.AddrPort
	local   netip.Addr
	tos     uint8
	run     bool
}

// receive receives n single datagrams, taking runs apart.
func receive(t testing.TB, s *Socket, b *Batch, n int) (all []got) {
	t.Helper()
	for len(all) < n {
		if err := s.Receive(b); err != nil {
			t.Fatalf("%d of %d datagrams received: %v", len(all), n, err)
		}
		all = append(all, single(b)...)
	}
	if len(all) > n {
		t.Fatalf("%d datagrams received, want %d", len(all), n)
	}
	return all
}

func single(b *Batch) (all []got) {
	for i := range b.Datagrams {
		d := &b.Datagrams[i]
		p, segment := d.Payload(), d.Segment
		if segment == 0 {
			segment = max(len(p), 1)
		}
		for first := true; first || len(p) > 0; first = false {
			n := min(segment, len(p))
			all = append(all, got{string(p[:n]), d.Remote, d.Local, d.TOS, d.Segment > 0})
			p = p[n:]
		}
	}
	return all
}

// cut is what becomes of a message, as single datagrams.
func cut(m *Message) (all []string) {
	p, segment := m.Buf, m.Segment
	if segment == 0 || len(p) == 0 {
		return []string{string(p)}
	}
	for len(p) > 0 {
		n := min(segment, len(p))
		all = append(all, string(p[:n]))
		p = p[n:]
	}
	return all
}

func mustSend(t testing.TB, x *Sender, msgs ...Message) {
	t.Helper()
	if n := x.Send(msgs); n != 0 {
		var errs []error
		for i := range msgs {
			errs = append(errs, msgs[i].Err)
		}
		t.Fatalf("%d of %d messages failed: %v", n, len(msgs), errors.Join(errs...))
	}
}

// fill makes recognizable octets, the first four of which are an SPI.
func fill(n int, spi, seed uint32) []byte {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	if n >= 4 {
		binary.BigEndian.PutUint32(b, spi)
	}
	return b
}

func version(v6 bool) string {
	if v6 {
		return "v6"
	}
	return "v4"
}

// newRule sends what has the mark to a table without routes.
func newRule(mark uint32) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Mark, r.Type = unix.AF_INET, 1, mark, unix.RTN_UNREACHABLE
	return r
}
