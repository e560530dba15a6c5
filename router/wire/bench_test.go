package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

const benchSize = 1400

// ways are how datagrams can be sent: messages a call, and datagrams a message.
var ways = []struct {
	name      string
	msgs, run int
}{
	{"Single", 1, 1},
	{"Batched", 32, 1},
	{"GSO", 1, 46},
	{"BatchedGSO", 4, 46},
}

func benchGroup(b *testing.B, native bool) (*Group, *Dest) {
	b.Helper()
	g := group(b, newSpace(b), Options{Addr: netip.MustParseAddr("127.0.0.1"), Steer: true}, native)
	return g, dest(b, g.Addr(), g.Port(), g.Addr())
}

func benchMessages(d *Dest, msgs, run, size int) []Message {
	all := make([]Message, msgs)
	for i := range all {
		all[i] = Message{Buf: fill(run*size, 1, uint32(i)), Dest: d}
		if run > 1 {
			all[i].Segment = size
		}
	}
	return all
}

func report(b *testing.B, datagrams int) {
	b.ReportMetric(float64(datagrams)*float64(b.N)/b.Elapsed().Seconds(), "datagrams/s")
}

// BenchmarkSend sends over the loopback to a socket that drops everything.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{200, benchSize} {
		for _, w := range ways {
			b.Run(fmt.Sprintf("%s/%d", w.name, size), func(b *testing.B) {
				g, to := benchGroup(b, false)
				s := g.Sockets()[0]
				if err := linux.filter(int(s.fd), unix.SO_ATTACH_FILTER, program([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}})); err != nil {
					b.Fatal(err)
				}
				x, msgs := s.NewSender(), benchMessages(to, w.msgs, w.run, size)
				b.SetBytes(int64(w.msgs * w.run * size))
				b.ReportAllocs()
				for b.Loop() {
					if x.Send(msgs) != 0 {
						b.Fatal(msgs[0].Err)
					}
				}
				report(b, w.msgs*w.run)
			})
		}
	}
}

// BenchmarkRoundTrip sends over the loopback and receives.
func BenchmarkRoundTrip(b *testing.B) {
	for _, native := range []bool{false, true} {
		for _, size := range []int{200, benchSize} {
			for _, w := range ways {
				if native && w.run > 1 {
					continue
				}
				name := w.name
				if native {
					name = "Native" + name
				}
				b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
					g, to := benchGroup(b, native)
					s, batch := g.Sockets()[0], NewBatch(64, 64)
					x, msgs := s.NewSender(), benchMessages(to, w.msgs, w.run, size)
					b.SetBytes(int64(w.msgs * w.run * size))
					b.ReportAllocs()
					for b.Loop() {
						if x.Send(msgs) != 0 {
							b.Fatal(msgs[0].Err)
						}
						for n := 0; n < w.msgs*w.run*size; {
							if err := s.Receive(batch); err != nil {
								b.Fatal(err)
							}
							for i := range batch.Datagrams {
								n += batch.Datagrams[i].Len
							}
						}
					}
					report(b, w.msgs*w.run)
				})
			}
		}
	}
}

// BenchmarkStandard is the round trip with the standard library's UDP sockets, one packet a call.
func BenchmarkStandard(b *testing.B) {
	for _, size := range []int{200, benchSize} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var conn *net.UDPConn
			newSpace(b).in(func() (err error) {
				conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				return err
			})
			raw, err := conn.SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { // it shall learn as much as ours do
				for _, opt := range []int{unix.IP_PKTINFO, unix.IP_RECVTOS} {
					if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, opt, 1); err != nil {
						b.Error(err)
					}
				}
			}); err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
			d, err := NewDest(to, to.Addr())
			if err != nil {
				b.Fatal(err)
			}
			p, in, oob := fill(size, 1, 1), make([]byte, 65535), make([]byte, 128)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := conn.WriteMsgUDPAddrPort(p, d.info[:d.infoLen], to); err != nil {
					b.Fatal(err)
				}
				if _, _, _, _, err := conn.ReadMsgUDPAddrPort(in, oob); err != nil {
					b.Fatal(err)
				}
			}
			report(b, 1)
		})
	}
}

// BenchmarkLatency is one datagram there and back between two goroutines that wait for each other.
func BenchmarkLatency(b *testing.B) {
	s := newSpace(b)
	var g [2]*Group
	for i := range g {
		g[i] = group(b, s, Options{Addr: netip.MustParseAddr("127.0.0.1"), Steer: true}, false)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		batch, x := NewBatch(64, 64), g[1].Sockets()[0].NewSender()
		back := [1]Message{{Buf: fill(64, 1, 1), Dest: dest(b, g[0].Addr(), g[0].Port(), g[1].Addr())}}
		for {
			if err := g[1].Sockets()[0].Receive(batch); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					b.Error(err)
				}
				return
			}
			if x.Send(back[:]) != 0 {
				b.Error(back[0].Err)
			}
		}
	}()
	batch, x := NewBatch(64, 64), g[0].Sockets()[0].NewSender()
	there := [1]Message{{Buf: fill(64, 1, 1), Dest: dest(b, g[1].Addr(), g[1].Port(), g[0].Addr())}}
	b.ReportAllocs()
	for b.Loop() {
		if x.Send(there[:]) != 0 {
			b.Fatal(there[0].Err)
		}
		if err := g[0].Sockets()[0].Receive(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = g[1].Close()
	<-done
}

// Nothing is allocated while datagrams go out and in.
func TestNoAllocations(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		for _, native := range []bool{false, true} {
			lo := netip.MustParseAddr("127.0.0.1")
			if v6 {
				lo = netip.IPv6Loopback()
			}
			g := group(t, newSpace(t), Options{Addr: lo, Steer: true}, native)
			s, batch := g.Sockets()[0], NewBatch(64, 64)
			s.OnError(func(PathError) {})
			to := dest(t, lo, g.Port(), lo)
			x, msgs := s.NewSender(), []Message{
				{Buf: fill(1400, 1, 1), Dest: to, TOS: 1},
				{Buf: fill(14000, 1, 1), Segment: 1400, Dest: to},
				{Buf: fill(70000, 1, 1), Segment: 70, Dest: to, TOS: 0xb8},
				{Buf: fill(70000, 1, 1), Dest: to}, // too big
				{Dest: nil},
				{Buf: fill(4200, 1, 1), Segment: 1400, Dest: to, Fragment: true},
			}
			want := 1400 + 14000 + 70000 + 4200
			if n := testing.AllocsPerRun(100, func() {
				if failed := x.Send(msgs); failed != 2 {
					t.Fatalf("%d failed", failed)
				}
				for n := 0; n < want; {
					if err := s.Receive(batch); err != nil {
						t.Fatal(err)
					}
					for i := range batch.Datagrams {
						n += batch.Datagrams[i].Len
					}
				}
			}); n != 0 {
				t.Errorf("native %t: %v allocations", native, n)
			}
		}
	})
}
