package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/internal/lab"
)

// fill writes what a stream named by seed carries from offset off on, which is a multiple of 8:
// octets of which each eight depend on where they stand, so that nothing can be left out, moved or
// sent twice unseen (splitmix64).
func fill(b []byte, seed uint64, off int64) {
	x := seed<<32 + uint64(off/8)*0x9e3779b97f4a7c15
	for len(b) > 0 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		if len(b) < 8 {
			var w [8]byte
			binary.LittleEndian.PutUint64(w[:], z)
			copy(b, w[:])
			return
		}
		binary.LittleEndian.PutUint64(b, z)
		b = b[8:]
	}
}

// isPart tells whether b is what the stream carries from any offset on.
func isPart(b []byte, seed uint64, off int64) bool {
	skip := off % 8
	want := make([]byte, int64(len(b))+skip)
	fill(want, seed, off-skip)
	return bytes.Equal(b, want[skip:])
}

// tcpStream is a transfer over TCP.
type tcpStream struct {
	from, to *lab.Host
	src      netip.Addr
	dst      netip.AddrPort
	size     int64
	seed     uint64
	tos      int  // DSCP and ECN of what is sent; TCP looks after ECN itself
	back     bool // from opens the connection, and to sends

	got atomic.Int64 // octets that have arrived
}

// run transfers, and returns nil when the sums at both ends are equal.
func (s *tcpStream) run(ctx context.Context) error {
	var ln net.Listener
	if err := listening(ctx, s.to, func() (err error) {
		ln, err = net.Listen("tcp", s.dst.String())
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	var conn net.Conn
	if err := s.from.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: s.src.AsSlice()}, Timeout: 20 * time.Second, Control: withTOS(s.tos)}
		conn, err = d.DialContext(ctx, "tcp", s.dst.String())
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close(); ln.Close() })()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- c
	}()
	far, ok := <-accepted
	if !ok {
		return errors.Join(fmt.Errorf("TCP to %v: nobody came", s.dst), context.Cause(ctx))
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { far.Close() })()
	sender, receiver := conn, far
	if s.back {
		sender, receiver = far, conn
	}
	type end struct {
		sum []byte
		err error
	}
	received := make(chan end, 1)
	go func() {
		sum, buf := sha256.New(), make([]byte, 1<<18)
		for {
			n, err := receiver.Read(buf)
			sum.Write(buf[:n])
			s.got.Add(int64(n))
			if err != nil {
				received <- end{sum.Sum(nil), err}
				return
			}
		}
	}()
	sum, buf := sha256.New(), make([]byte, 1<<18)
	for off := int64(0); off < s.size; {
		b := buf[:min(int64(len(buf)), s.size-off)]
		fill(b, s.seed, off)
		sum.Write(b)
		if _, err := sender.Write(b); err != nil {
			return errors.Join(fmt.Errorf("TCP to %v, after %d octets: %w", s.dst, off, err), context.Cause(ctx))
		}
		off += int64(len(b))
	}
	if err := sender.(*net.TCPConn).CloseWrite(); err != nil { //nolint:errcheck,forcetypeassert // both are TCP
		return err
	}
	r := <-received
	if n := s.got.Load(); n != s.size || !bytes.Equal(r.sum, sum.Sum(nil)) {
		return fmt.Errorf("TCP to %v: %d octets with SHA-256 %x were sent, %d with %x arrived (%w)", s.dst, s.size, sum.Sum(nil), n, r.sum, r.err)
	}
	return nil
}

// listening opens a socket on a host, and waits for its port where the one before is not quite gone:
// a process that another test is just starting has a copy of it until it runs its own program.
func listening(ctx context.Context, h *lab.Host, open func() error) error {
	return lab.WaitFor(ctx, "the port to be free", 5*time.Second, func() error { return h.Do(open) })
}

// together runs streams at the same time.
func together(ctx context.Context, streams []*tcpStream) error {
	errs := make(chan error, len(streams))
	for _, s := range streams {
		go func() { errs <- s.run(ctx) }()
	}
	var all []error
	for range streams {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// withTOS sets DSCP and ECN of what a socket sends, in either version of IP.
func withTOS(tos int) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var err error
		ctl := c.Control(func(fd uintptr) {
			if network[len(network)-1] == '6' {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
			}
		})
		return errors.Join(ctl, err)
	}
}

// datagrams is a number of UDP datagrams, each with its number and octets that follow from it.
type datagrams struct {
	from, to *lab.Host
	src      netip.Addr
	dst      netip.AddrPort
	count    int
	size     func(i int) int // of the payload of datagram i; at least 8
	tos      int
	ahead    int  // how many may be on the way at once
	mayFrag  bool // without don't-fragment

	disorder int // arrived after one that was sent later
}

// datagram makes the payload of datagram i of n octets.
func datagram(i, n int) []byte {
	b := make([]byte, n)
	binary.BigEndian.PutUint64(b, uint64(i))
	fill(b[8:], uint64(i), 0)
	return b
}

// run sends them all and returns how many arrived, each once and as it was sent.
func (d *datagrams) run(ctx context.Context) (received int, err error) {
	var in, out *net.UDPConn
	if err := listening(ctx, d.to, func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(d.dst))
		return err
	}); err != nil {
		return 0, err
	}
	defer in.Close()
	if err := in.SetReadBuffer(4 << 20); err != nil {
		return 0, err
	}
	if err := d.from.Do(func() error {
		dial := net.Dialer{LocalAddr: &net.UDPAddr{IP: d.src.AsSlice()}, Control: withTOS(d.tos)}
		c, err := dial.DialContext(ctx, "udp", d.dst.String())
		if err == nil {
			out = c.(*net.UDPConn) //nolint:errcheck,forcetypeassert // it was dialled as UDP
		}
		return err
	}); err != nil {
		return 0, err
	}
	defer out.Close()
	if d.mayFrag {
		if err := d.dontFragment(out, unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_DONT); err != nil {
			return 0, err
		}
	}
	var got atomic.Int64
	news := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		buf, seen, last := make([]byte, 1<<16), make([]bool, d.count), uint64(0)
		for {
			n, err := in.Read(buf)
			if err != nil {
				done <- nil // closed
				return
			}
			i := uint64(d.count)
			if n >= 8 {
				i = binary.BigEndian.Uint64(buf)
			}
			switch {
			case i >= uint64(d.count) || n != d.size(int(i)) || !bytes.Equal(buf[:n], datagram(int(i), n)):
				done <- fmt.Errorf("a datagram of %d octets arrived that was not sent: %x…", n, buf[:min(n, 16)])
				return
			case seen[i]:
				done <- fmt.Errorf("datagram %d arrived twice", i)
				return
			}
			if seen[i] = true; i < last {
				d.disorder++
			}
			last = max(last, i)
			got.Add(1)
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	wait := func(until int) bool { // until so many have arrived, or none comes any more
		for int(got.Load()) < until {
			select {
			case <-news:
			case <-ctx.Done():
				return false
			case <-time.After(2 * time.Second):
				return int(got.Load()) >= until
			}
		}
		return true
	}
	for i := range d.count {
		b := datagram(i, d.size(i))
		if _, err := out.Write(b); err != nil { // the ICMP error for an earlier one: told once
			if _, err = out.Write(b); err != nil {
				return int(got.Load()), fmt.Errorf("UDP to %v, datagram %d of %d octets: %w", d.dst, i, len(b), err)
			}
		}
		if !wait(i + 1 - d.ahead) {
			break // more are lost than may be under way
		}
	}
	wait(d.count)
	in.Close()
	return int(got.Load()), errors.Join(<-done, ctx.Err())
}

func (d *datagrams) dontFragment(c *net.UDPConn, v4, v6 int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if d.src.Is6() {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v6)
		} else {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v4)
		}
	})
	return errors.Join(err, set)
}

// counters are a daemon's counters by name.
func counters(ctx context.Context, t *testing.T, f *lab.Facility) map[string]uint64 {
	t.Helper()
	c, err := f.Control().Counters(ctx)
	must(t, err)
	return c.Other
}
