package wire

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// What may be fragmented passes a path that takes less, with all that it says, and in its place
// among what may not; that comes through, or back, as ever.
func TestFragment(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		const mtu = minMTU6
		a, b := path(t, mtu)
		unspecified := netip.IPv4Unspecified()
		if v6 {
			unspecified = netip.IPv6Unspecified()
		}
		for _, native := range []bool{false, true} {
			head := 28
			if v6 {
				head = 48
			}
			if native {
				head -= 8
			}
			for _, queues := range []int{1, 2} {
				for _, addr := range []netip.Addr{unspecified, host(1, v6)} {
					ga := group(t, a, Options{Addr: addr, Queues: queues, Mark: 7}, native)
					gb := group(t, b, Options{Addr: far(v6), Steer: true}, native)
					errs := make(chan int, 1000) // an error comes to any one of the sockets
					for _, s := range ga.Sockets() {
						listen(t, s)
						s.OnError(func(e PathError) { errs <- e.MTU })
					}
					for _, local := range []netip.Addr{host(1, v6), {}} {
						to := dest(t, far(v6), gb.Port(), local)
						x := ga.Sockets()[queues-1].NewSender()
						tooBig := uint64(0)
						rapid.Check(t, func(rt *rapid.T) {
							var msgs []Message
							var want []got
							for i := range rapid.IntRange(1, 4).Draw(rt, "messages") {
								m := Message{Dest: to, Fragment: rapid.Bool().Draw(rt, "may be fragmented"), TOS: rapid.SampledFrom([]uint8{0, 2, 0xb8}).Draw(rt, "TOS")}
								n := rapid.OneOf(rapid.IntRange(0, 1400), rapid.IntRange(1220, 1244), rapid.IntRange(0, 5000), rapid.SampledFrom([]int{2456, 2457, 30000})).Draw(rt, "octets")
								if rapid.Bool().Draw(rt, "run") {
									m.Segment = max(rapid.IntRange(100, 1440).Draw(rt, "segment"), n/10)
								}
								if !m.Fragment && max(m.Segment, 1)+head > mtu {
									m.Segment = 0 // the router judges the run, and not the datagrams
								}
								if !m.Fragment && m.Segment == 0 {
									n = min(n, 1440) // of what is longer the own link would tell
								}
								m.Buf = fill(n, 1, uint32(i))
								for _, p := range cut(&m) {
									if m.Fragment || len(p)+head <= mtu {
										want = append(want, got{payload: p, tos: m.TOS})
									} else {
										tooBig++
									}
								}
								msgs = append(msgs, m)
							}
							mustSend(t, x, msgs...)
							for i, g := range receive(t, gb.Sockets()[0], NewBatch(16, 0), len(want)) {
								if g.payload != want[i].payload || g.tos != want[i].tos || g.remote.Addr() != host(1, v6) || g.remote.Port() != ga.Port() || g.local != far(v6) {
									rt.Fatalf("datagram %d of %d: %d octets %.8x, class %#x, from %s to %s; want %d octets %.8x, class %#x", i, len(want),
										len(g.payload), g.payload, g.tos, g.remote, g.local, len(want[i].payload), want[i].payload, want[i].tos)
								}
							}
						})
						for range tooBig {
							if got := next(t, "a path error", errs); got != mtu {
								t.Fatalf("path error with MTU %d, want %d", got, mtu)
							}
						}
					}
				}
			}
		}
	})
}

// Also the own link may take less than the packet (IPv4), and the longest packets go.
func TestFragmentLongest(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := pair(t)
		a.mtu("eth0", minMTU6)
		for _, native := range []bool{false, true} {
			ga := group(t, a, Options{Addr: host(1, v6)}, native)
			gb := group(t, b, Options{Addr: host(2, v6)}, native)
			to := dest(t, host(2, v6), gb.Port(), host(1, v6))
			longest := maxPayload4
			if v6 {
				longest = maxPayload6
			}
			msgs := []Message{
				{Buf: fill(longest, 1, 1), Dest: to, Fragment: true},
				{Buf: fill(longest+9, 1, 2), Dest: to, Fragment: true},
				{Buf: fill(1400, 1, 3), Dest: to},
				{Buf: fill(1400, 1, 4), Dest: to, Fragment: true},
				{Buf: nil, Dest: to, Fragment: true},
			}
			if native {
				msgs[0].Buf = msgs[0].Buf[:longest-20] // a receiver's memory is for 64 KiB with the IP header
			}
			n := ga.Sockets()[0].NewSender().Send(msgs)
			for i, want := range []error{nil, unix.EMSGSIZE, unix.EMSGSIZE, nil, nil} {
				if !errors.Is(msgs[i].Err, want) || want == nil && msgs[i].Err != nil {
					t.Errorf("native %t, message %d: %v, want %v", native, i, msgs[i].Err, want)
				}
			}
			if n != 2 {
				t.Errorf("native %t: %d failed, want 2", native, n)
			}
			all := receive(t, gb.Sockets()[0], NewBatch(8, 0), 3)
			for i, k := range []int{0, 3, 4} {
				if all[i].payload != string(msgs[k].Buf) {
					t.Errorf("native %t, datagram %d: %d octets, want %d", native, i, len(all[i].payload), len(msgs[k].Buf))
				}
			}
			c := ga.Sockets()[0].Counters()
			if want := uint64(len(msgs[0].Buf) + 1400); c.OutDatagrams != 3 || c.OutMessages != 3 || c.OutBytes != want || c.OutTooBig != 2 || c.OutRuns != 0 {
				t.Errorf("native %t: counters: %+v", native, c)
			}
		}
	})
}

// To the socket for fragments nothing comes, and it stands in nobody's way.
func TestFragmentSocket(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		s := newSpace(t)
		addrs := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}
		if v6 {
			addrs = []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")}
		}
		for _, a := range addrs {
			s.addr("lo", netip.PrefixFrom(a, a.BitLen()).String())
		}
		s.mtu("lo", 1500)
		for _, native := range []bool{false, true} {
			var g []*Group
			for _, a := range addrs {
				g = append(g, group(t, s, Options{Addr: a, Port: 4500, Queues: 2, Steer: true}, native))
			}
			for i := range g {
				to := dest(t, addrs[1-i], g[1-i].Port(), addrs[i])
				mustSend(t, g[i].Sockets()[0].NewSender(), Message{Buf: fill(4000, 2, 1), Dest: to, Fragment: true}, Message{Buf: fill(10, 2, 2), Dest: to})
				receive(t, g[1-i].Sockets()[0], NewBatch(4, 0), 2)
			}
			for i := range g {
				if n, _, err := unix.Recvfrom(g[i].fragments.fd, make([]byte, 9), unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
					t.Errorf("native %t: %d octets came to the socket for fragments (%v)", native, n, err)
				}
				// What is not ours cannot be the source.
				stranger := netip.MustParseAddr("192.0.2.77")
				if v6 {
					stranger = netip.MustParseAddr("2001:db8:77::1")
				}
				msgs := []Message{{Buf: fill(4000, 2, 1), Dest: dest(t, addrs[1-i], 4500, stranger), Fragment: true}}
				if n := g[i].Sockets()[0].NewSender().Send(msgs); n != 1 {
					t.Errorf("native %t: sent from an address that is not ours", native)
				}
				if native {
					continue
				}
				// Nobody shares the port, whatever he says.
				s.in(func() error {
					family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 4500, Addr: [4]byte(addrs[i].AsSlice()[:4])})
					if v6 {
						family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: 4500, Addr: addrs[i].As16()}
					}
					fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
						return err
					}
					if err := unix.Bind(fd, sa); !errors.Is(err, unix.EADDRINUSE) {
						t.Errorf("bind to a port that is taken: %v, want EADDRINUSE", err)
					}
					return nil
				})
			}
			for i := range g {
				if err := g[i].Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// Without such a socket everything goes with don't-fragment, and that is told.
func TestNoFragments(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		s := newSpace(t)
		lo := netip.MustParseAddr("127.0.0.1")
		if v6 {
			lo = netip.IPv6Loopback()
		}
		s.mtu("lo", 1500)
		sys := linux
		sys.setInt = func(fd, level, opt, value int) error {
			if level == unix.IPPROTO_IP && opt == unix.IP_FREEBIND || level == unix.IPPROTO_IPV6 && opt == unix.IPV6_FREEBIND {
				return unix.ENOPROTOOPT
			}
			return linux.setInt(fd, level, opt, value)
		}
		var told []string
		var g *Group
		s.in(func() (err error) {
			g, err = open(Options{Addr: lo, Log: func(msg string, _ ...any) { told = append(told, msg) }}, false, sys)
			return err
		})
		defer g.Close()
		to := dest(t, lo, g.Port(), lo)
		msgs := []Message{{Buf: fill(1600, 1, 1), Dest: to, Fragment: true}, {Buf: fill(600, 1, 1), Dest: to, Segment: 100, Fragment: true}}
		if n := g.Sockets()[0].NewSender().Send(msgs); n != 1 || !errors.Is(msgs[0].Err, unix.EMSGSIZE) {
			t.Errorf("%d failed: %v; want EMSGSIZE", n, msgs[0].Err)
		}
		receive(t, g.Sockets()[0], NewBatch(16, 0), 6)
		if len(told) != 1 || !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "don't-fragment") }) {
			t.Errorf("told %q", told)
		}
	})
}
