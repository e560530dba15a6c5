package tun

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sender sends UDP datagrams into the device, as super-packets where gso is not 0.
func sender(b *testing.B, s *space, gso int) *net.UDPConn {
	b.Helper()
	var conn *net.UDPConn
	s.in(func() error {
		// A neighbour for whom there is a route: nothing answers.
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9})
		if err != nil {
			return err
		}
		conn = c
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		err = raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
			if gso > 0 {
				serr = errors.Join(serr, unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, gso))
			}
		})
		return errors.Join(err, serr)
	})
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}

// BenchmarkReadDevice reads from a real device and finishes the packets; the time that sending
// takes is not counted. ns/packet is that of one packet after segmentation.
func BenchmarkReadDevice(b *testing.B) {
	s := newSpace(b)
	d := s.device(1, 1, true)
	s.in(func() error { // neighbour discovery and the like would be counted too
		l, err := netlink.LinkByName(d.Name())
		if err != nil {
			return err
		}
		return netlink.LinkSetARPOff(l)
	})
	q := d.queues[0]
	spacing := Spacing{Front: 24, Back: 18, Align: 4, Trailer: 2}
	arena := make([]byte, 160<<10)
	var burst Burst
	bufs, sizes := make([][]byte, MaxSegments), make([]int, MaxSegments)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	drain := func() {
		for {
			if ok, err := q.ReadBurst(&burst, arena, spacing, false); err != nil || !ok {
				return
			}
		}
	}
	for _, c := range []struct {
		gso, count int
	}{{1392, 45}, {1392, 10}, {1392, 2}, {500, 64}, {200, 64}, {0, 1}} {
		size, gso := c.gso*c.count, c.gso
		if gso == 0 {
			size = 200
		}
		conn := sender(b, s, gso)
		data := make([]byte, size)
		for _, how := range []string{"batch", "burst", "uncut"} {
			b.Run(fmt.Sprintf("udp%dx%d/%s", max(c.gso, 200), c.count, how), func(b *testing.B) {
				drain()
				b.ReportAllocs()
				var spent time.Duration
				packets, rounds := 0, 0
				for b.Loop() {
					const ahead = 16
					for range ahead {
						if _, err := conn.Write(data); err != nil {
							b.Fatal(err)
						}
					}
					start := time.Now()
					for got := 0; got < ahead; {
						if how == "batch" {
							n, err := q.ReadBatch(bufs[:c.count], sizes, 24)
							if err != nil {
								b.Fatal(err)
							}
							packets += n
							got++
							continue
						}
						ok, err := q.ReadBurst(&burst, arena, spacing, false)
						if err != nil || !ok {
							b.Fatal(ok, err)
						}
						if how == "burst" {
							if err := burst.Cut(spacing); err != nil {
								b.Fatal(err)
							}
						}
						packets += burst.Count
						got++
					}
					spent += time.Since(start)
					rounds += ahead
				}
				b.ReportMetric(float64(spent.Nanoseconds())/float64(packets), "ns/packet")
				b.ReportMetric(float64(spent.Nanoseconds())/float64(rounds), "ns/read")
				b.ReportMetric(float64(packets)/float64(rounds), "packets/read")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
