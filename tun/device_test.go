package tun

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// These tests use the real device, each in network namespaces of its own that no name refers to:
// they vanish with the test.

// space is a network namespace.
type space struct {
	t      testing.TB
	handle netns.NsHandle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t}
	var err error
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			s.handle, err = netns.Get()
		}
	})
	if err == nil {
		_, err = os.Stat(tunPath)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the tests of the real device need root and %s: %v", tunPath, err)
		}
		t.Skipf("the tests of the real device need root and %s: %v", tunPath, err)
	}
	t.Cleanup(func() { _ = s.handle.Close() })
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

// device opens a device in the namespace, with 10.9.0.host and fd09::host.
func (s *space) device(host byte, queues int, offload bool) *Device {
	s.t.Helper()
	var d *Device
	s.in(func() (err error) {
		if d, err = Open(Options{Name: "wgt%d", MTU: 1420, Queues: queues, Offload: offload}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(d.Name())
		if err != nil {
			return err
		}
		if got := link.Attrs().MTU; got != 1420 {
			return fmt.Errorf("MTU %d, want 1420", got)
		}
		for _, a := range []*net.IPNet{
			{IP: net.IPv4(10, 9, 0, host), Mask: net.CIDRMask(24, 32)},
			{IP: net.IP{0xfd, 9, 15: host}, Mask: net.CIDRMask(64, 128)},
		} {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: a, Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetTxQLen(link, 10000); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	s.t.Cleanup(func() { _ = d.Close() })
	return d
}

// splice carries packets from a to b, as a tunnel without a tunnel; see is shown every packet.
func splice(t *testing.T, wg *sync.WaitGroup, a, b Queue, see func([]byte)) {
	wg.Go(func() {
		const n, off = 64, 40
		bufs, sizes, pkts := make([][]byte, n), make([]int, n), make([]Packet, n)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			k, err := a.ReadBatch(bufs, sizes, off)
			if errors.Is(err, ErrClosed) {
				return
			}
			if err != nil {
				t.Errorf("read: %v", err)
				return
			}
			for i := range k {
				pkts[i] = Packet{Buf: bufs[i], Off: off, Len: sizes[i]}
				see(bufs[i][off : off+sizes[i]])
			}
			if w, err := b.WriteBatch(pkts[:k]); err != nil && !errors.Is(err, ErrClosed) {
				t.Errorf("%d of %d written: %v", w, k, err)
			}
		}
	})
}

// spliceBursts is splice by way of ReadBurst. The spacing changes all the time, and so does whether
// it is that which was guessed.
func spliceBursts(t *testing.T, wg *sync.WaitGroup, a, b Queue, see func([]byte)) {
	wg.Go(func() {
		spacings := []Spacing{
			{Front: VirtioHeaderLen, Back: 18, Align: 4, Trailer: 2},
			{Front: 40, Back: 50, Align: 16, Trailer: 2},
			{Front: 24, Back: 34, Align: 4, Trailer: 2},
		}
		arena := make([]byte, 160<<10)
		var burst Burst
		var pkts []Packet
		for i := 0; ; i++ {
			guess, s := spacings[i/7%3], spacings[i/5%3]
			ok, err := a.ReadBurst(&burst, arena, guess, false)
			if !ok && err == nil {
				ok, err = a.ReadBurst(&burst, arena, guess, true)
			}
			if errors.Is(err, ErrClosed) {
				return
			}
			if !ok || err != nil {
				t.Errorf("read: %t, %v", ok, err)
				return
			}
			if err := burst.Cut(s); err != nil {
				t.Errorf("cut: %v", err)
				return
			}
			pkts = pkts[:0]
			for k := range burst.Count {
				n := burst.Full
				if k == burst.Count-1 {
					n = burst.Last
				}
				pkts = append(pkts, Packet{Buf: arena, Off: s.Front + k*s.Stride(burst.Full), Len: n})
				see(arena[pkts[k].Off:][:n])
			}
			if w, err := b.WriteBatch(pkts); err != nil && !errors.Is(err, ErrClosed) {
				t.Errorf("%d of %d written: %v", w, len(pkts), err)
			}
		}
	})
}

// checkPacket complains about packets that an IP host would not have sent.
func checkPacket(t *testing.T, b []byte) {
	if len(b) > 1420 {
		t.Errorf("packet of %d octets, MTU is 1420", len(b))
	}
	d, ok := parse(b)
	if !ok {
		return // ICMPv6
	}
	l4 := b[d.transport():]
	if sum := slowSum(d.pseudo(len(l4)), l4); sum != 0xffff {
		t.Errorf("transport checksum adds up to %#04x: % x", sum, b[:min(len(b), 60)])
	}
	if !d.v6 && slowSum(b[:20]) != 0xffff {
		t.Errorf("IPv4 header checksum: % x", b[:20])
	}
}

func TestRealDevice(t *testing.T) {
	for _, c := range []struct {
		offA, offB bool
		queues     int
		bursts     bool // ReadBurst instead of ReadBatch
	}{
		{true, true, 1, false},
		{true, true, 2, false},
		{false, false, 1, false},
		{true, false, 1, false},
		{false, true, 2, false},
		{true, true, 1, true},
		{true, true, 2, true},
		{false, false, 1, true},
		{true, false, 1, true},
		{false, true, 2, true},
	} {
		t.Run(fmt.Sprintf("offload=%t,%t/queues=%d/bursts=%t", c.offA, c.offB, c.queues, c.bursts), func(t *testing.T) {
			sa, sb := newSpace(t), newSpace(t)
			a, b := sa.device(1, c.queues, c.offA), sb.device(2, c.queues, c.offB)
			t.Logf("granted: %+v, %+v", a.Offloads(), b.Offloads())
			if a.Offloads().TCP != c.offA || b.Offloads().TCP != c.offB {
				t.Errorf("TCP offload granted %t, %t, asked for %t, %t", a.Offloads().TCP, b.Offloads().TCP, c.offA, c.offB)
			}
			var wg sync.WaitGroup
			check := func(p []byte) { checkPacket(t, p) }
			connect := splice
			if c.bursts {
				connect = spliceBursts
			}
			for i, q := range a.Queues() {
				connect(t, &wg, q, b.Queues()[i], check)
				connect(t, &wg, b.Queues()[i], q, check)
			}
			for _, v6 := range []bool{false, true} {
				transferTCP(t, sa, sb, v6)
				transferUDP(t, sa, sb, v6)
			}
			ca, cb := a.Counters(), b.Counters()
			t.Logf("a: %+v", ca)
			t.Logf("b: %+v", cb)
			if c.offA && ca.ReadPackets < 2*ca.ReadCalls {
				t.Errorf("offload on: %d packets in %d reads, want super-packets", ca.ReadPackets, ca.ReadCalls)
			}
			if !c.offA && ca.ReadPackets != ca.ReadCalls {
				t.Errorf("offload off: %d packets in %d reads", ca.ReadPackets, ca.ReadCalls)
			}
			if c.offA && c.offB && cb.WritePackets < 2*cb.WriteCalls {
				t.Errorf("offload on: %d packets in %d writes, want fewer writes", cb.WritePackets, cb.WriteCalls)
			}
			if n := ca.Malformed + cb.Malformed + ca.TooLong + cb.TooLong + ca.WriteErrors + cb.WriteErrors + ca.OffloadFallbacks + cb.OffloadFallbacks; n != 0 {
				t.Errorf("%d packets dropped or refused", n)
			}
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Error(err)
			}
			wg.Wait() // Close wakes all readers
			if err := a.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
		})
	}
}

func address(host byte, v6 bool) net.IP {
	if v6 {
		return net.IP{0xfd, 9, 15: host}
	}
	return net.IPv4(10, 9, 0, host)
}

// transferTCP sends several megabytes both ways at once and compares the hashes.
func transferTCP(t *testing.T, sa, sb *space, v6 bool) {
	t.Helper()
	const size = 8 << 20
	var l *net.TCPListener
	sb.in(func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{IP: address(2, v6)})
		return err
	})
	defer l.Close()
	var client *net.TCPConn
	sa.in(func() (err error) {
		client, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
		return err
	})
	defer client.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	deadline := time.Now().Add(time.Minute)
	var wg sync.WaitGroup
	one := func(from, to *net.TCPConn, seed uint64) {
		_ = from.SetDeadline(deadline)
		data := make([]byte, size)
		for i := 0; i < size; i += 8 {
			seed = seed*6364136223846793005 + 1442695040888963407
			binary.LittleEndian.PutUint64(data[i:], seed)
		}
		wg.Go(func() {
			if _, err := from.Write(data); err != nil {
				t.Errorf("IPv6 %t: send: %v", v6, err)
			}
			_ = from.CloseWrite()
		})
		wg.Go(func() {
			h := sha256.New()
			if n, err := io.Copy(h, to); err != nil || n != size {
				t.Errorf("IPv6 %t: received %d octets: %v", v6, n, err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("IPv6 %t: data differ", v6)
			}
		})
	}
	one(client, server, 1)
	one(server, client, 2)
	wg.Wait()
}

// transferUDP sends datagrams of many sizes, singly and as super-packets, and waits for each.
func transferUDP(t *testing.T, sa, sb *space, v6 bool) {
	t.Helper()
	var server, client *net.UDPConn
	sb.in(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: address(2, v6)})
		return err
	})
	defer server.Close()
	sa.in(func() (err error) {
		client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	defer client.Close()
	_ = server.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	receive := func(want []byte) {
		t.Helper()
		n, err := server.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("IPv6 %t: datagram of %d octets: %d received, %v", v6, len(want), n, err)
		}
	}
	fill := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i*7 + n)
		}
		return b
	}
	for _, n := range []int{0, 1, 2, 7, 100, 511, 1372} {
		if _, err := client.Write(fill(n)); err != nil {
			t.Fatal(err)
		}
		receive(fill(n))
	}
	// UDP_SEGMENT: the kernel cuts, as late as it can: in package tun when USO was granted.
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ gso, total int }{{1372, 40 * 1372}, {1000, 10*1000 + 1}, {100, 6350}, {1, 20}} {
		var serr error
		if err := raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, c.gso)
		}); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		data := fill(c.total)
		if _, err := client.Write(data); err != nil {
			t.Fatalf("UDP_SEGMENT %d: %v", c.gso, err)
		}
		for len(data) > 0 {
			n := min(c.gso, len(data))
			receive(data[:n])
			data = data[n:]
		}
	}
}

func TestCloseWakesReaders(t *testing.T) {
	d := newSpace(t).device(1, 4, true)
	var wg sync.WaitGroup
	for i, q := range d.Queues() {
		bursts := i%2 == 1
		wg.Go(func() {
			bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
			var b Burst
			buf := make([]byte, BurstRoom)
			for {
				var err error
				if bursts {
					_, err = q.ReadBurst(&b, buf, Spacing{}, true)
				} else {
					_, err = q.ReadBatch(bufs, sizes, 0)
				}
				if err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Errorf("%v, want ErrClosed", err)
					}
					return
				}
			}
		})
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	q := d.Queues()[0]
	if _, err := q.ReadBatch([][]byte{make([]byte, 100)}, make([]int, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	for _, wait := range []bool{false, true} {
		if _, err := q.ReadBurst(new(Burst), make([]byte, BurstRoom), Spacing{}, wait); !errors.Is(err, ErrClosed) {
			t.Errorf("ReadBurst after Close: %v", err)
		}
	}
	pkt := desc{proto: protoUDP}.build(false)
	if _, err := q.WriteBatch(batch([][]byte{pkt})); !errors.Is(err, ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

// More packets than buffers, buffers that are too small, wrong arguments.
func TestReadBatchLimits(t *testing.T) {
	s := newSpace(t)
	d := s.device(1, 1, true)
	q := d.Queues()[0]
	for _, c := range []struct {
		bufs  [][]byte
		sizes []int
		off   int
	}{{nil, nil, 0}, {[][]byte{make([]byte, 10)}, nil, 0}, {[][]byte{make([]byte, 10)}, make([]int, 1), 10}, {[][]byte{make([]byte, 10)}, make([]int, 1), -1}} {
		if _, err := q.ReadBatch(c.bufs, c.sizes, c.off); !errors.Is(err, ErrBufferSize) {
			t.Errorf("%v: %v", c, err)
		}
	}
	var conn *net.UDPConn
	s.in(func() (err error) {
		conn, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9})
		return err
	})
	defer conn.Close()
	const n = 10
	for i := range n {
		size := 100
		if i == 4 {
			size = 1000
		}
		if _, err := conn.Write(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
			t.Fatal(err)
		}
	}
	var got []byte
	bufs, sizes := [][]byte{make([]byte, 600), make([]byte, 600), make([]byte, 600)}, make([]int, 3)
	for len(got) < n-1 {
		k, err := q.ReadBatch(bufs, sizes, 50)
		if err != nil {
			t.Fatal(err)
		}
		for i := range k {
			if p := bufs[i][50 : 50+sizes[i]]; p[0] == 0x45 && p[9] == protoUDP && sizes[i] == 128 {
				got = append(got, p[28])
			}
		}
	}
	if want := []byte{0, 1, 2, 3, 5, 6, 7, 8, 9}; !bytes.Equal(got, want) {
		t.Errorf("datagrams %v, want %v", got, want)
	}
	if c := d.Counters(); c.TooLong != 1 {
		t.Errorf("counters %+v, want one packet too long", c)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, c := range []struct {
		opt  Options
		want string
	}{
		{Options{Name: "a-name-that-is-too-long"}, "at most 15"},
		{Options{Name: "x", Queues: -1}, "1 to 256"},
		{Options{Name: "x", Queues: 257}, "1 to 256"},
		{Options{Name: "x", MTU: 67}, "68 to 65535"},
		{Options{Name: "x", MTU: 70000}, "68 to 65535"},
	} {
		if _, err := Open(c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.opt, err, c.want)
		}
	}
	s := newSpace(t)
	s.in(func() error {
		_, err := Open(Options{Name: "lo"})
		if err == nil || !strings.Contains(err.Error(), `"lo"`) {
			t.Errorf("loopback: %v", err)
		}
		d, err := Open(Options{Name: "wgt7"})
		if err != nil {
			return err
		}
		if d.Name() != "wgt7" {
			t.Errorf("name %q", d.Name())
		}
		return d.Close()
	})
}

// A device that is taken away ends ReadBatch with an error that is not ErrClosed.
func TestDeviceRemoved(t *testing.T) {
	s := newSpace(t)
	d := s.device(1, 1, true)
	result := make(chan error, 1)
	go func() {
		bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
		for {
			if _, err := d.Queues()[0].ReadBatch(bufs, sizes, 0); err != nil {
				result <- err
				return
			}
		}
	}()
	s.in(func() error {
		link, err := netlink.LinkByName(d.Name())
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	select {
	case err := <-result:
		if errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "tun: read") {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("ReadBatch did not return")
	}
}
