package wire

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// full makes a send buffer that never has room, for those who wait for it.
func full(poll func(int, int, int16, int) (int16, unix.Errno)) func(int, int, int16, int) (int16, unix.Errno) {
	return func(fd, stop int, events int16, millis int) (int16, unix.Errno) {
		if events == unix.POLLOUT {
			fd = -1
		}
		return poll(fd, stop, events, millis)
	}
}

// watched are the real system calls, which tell when a descriptor is used that is not open.
func watched(t *testing.T) calls {
	var closed [1 << 16]atomic.Bool
	use := func(fd int) func() {
		check := func() {
			if fd >= 0 && closed[fd].Load() {
				t.Errorf("descriptor %d is used after it was closed", fd)
			}
		}
		check()
		return check
	}
	c := linux
	c.recvmmsg = func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno) {
		defer use(int(fd))()
		return linux.recvmmsg(fd, v, n)
	}
	c.recvmsg = func(fd uintptr, h *unix.Msghdr, flags int) (int, unix.Errno) {
		defer use(int(fd))()
		return linux.recvmsg(fd, h, flags)
	}
	c.sendmmsg = func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno) {
		defer use(int(fd))()
		return linux.sendmmsg(fd, v, n)
	}
	c.sendmsg = func(fd uintptr, h *unix.Msghdr) (int, unix.Errno) {
		defer use(int(fd))()
		return linux.sendmsg(fd, h)
	}
	c.poll = func(fd, stop int, events int16, millis int) (int16, unix.Errno) {
		defer use(fd)()
		defer use(stop)()
		return linux.poll(fd, stop, events, millis)
	}
	c.close = func(fd int) error {
		if closed[fd].Swap(true) {
			t.Errorf("descriptor %d is closed twice", fd)
		}
		return linux.close(fd)
	}
	return c
}

// Close ends what waits and what is at work, whenever it comes, and nothing uses a descriptor
// after it.
func TestCloseAnytime(t *testing.T) {
	space := newSpace(t)
	lo := netip.MustParseAddr("127.0.0.1")
	for round := range 400 {
		// Whether senders and receivers wait, or are busy; how many times one gets through before.
		busy, before := round%2 == 0, round%7
		sys := watched(t)
		if !busy {
			sys.sendmsg = func(uintptr, *unix.Msghdr) (int, unix.Errno) { return 0, unix.EAGAIN }
			sys.poll = full(sys.poll)
		}
		var g *Group
		space.in(func() (err error) {
			g, err = open(Options{Addr: lo, Queues: 2, Steer: true}, round%3 == 0, sys)
			return err
		})
		watch := time.AfterFunc(patience, func() { panic("Close, or what it ends, hangs") })
		var wg sync.WaitGroup
		var through atomic.Int64
		for _, s := range g.Sockets() {
			s.OnError(func(PathError) { s.Counters() })
			wg.Go(func() {
				b := NewBatch(2, 0)
				for {
					if err := s.Receive(b); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("Receive: %v, want net.ErrClosed", err)
						}
						return
					}
				}
			})
			for k := range 2 {
				wg.Go(func() {
					to := dest(t, lo, g.Port(), lo)
					msgs := []Message{{Buf: fill(100, uint32(k), 1), Dest: to}, {Buf: fill(1400, uint32(k), 1), Dest: to, Fragment: k == 1}, {Buf: fill(70000, 1, 1), Dest: to}}
					if !busy {
						msgs = msgs[:1]
					}
					for x := s.NewSender(); ; through.Add(1) {
						if x.Send(msgs); errors.Is(msgs[0].Err, net.ErrClosed) {
							return
						}
						s.Counters()
					}
				})
			}
		}
		for busy && through.Load() < int64(before) {
			time.Sleep(10 * time.Microsecond)
		}
		for !busy && before > 3 && g.Sockets()[1].Counters().InWaits == 0 {
			time.Sleep(10 * time.Microsecond)
		}
		for range 2 {
			wg.Go(func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
				// What is opened now gets the numbers that were closed.
				_ = g.Sockets()[0].Counters()
				if err := g.Sockets()[0].Receive(NewBatch(1, 0)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Receive after Close: %v", err)
				}
			})
		}
		wg.Wait()
		watch.Stop()
	}
}

// An error about a datagram that was sent comes to OnError while nothing is received.
func TestErrorWhileWaiting(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		space := newSpace(t)
		lo := netip.MustParseAddr("127.0.0.1")
		if v6 {
			lo = netip.IPv6Loopback()
			space.sysctl("ipv6/icmp/ratelimit", "0")
		} else {
			space.sysctl("ipv4/icmp_ratelimit", "0")
			space.sysctl("ipv4/icmp_msgs_per_sec", "1000000")
			space.sysctl("ipv4/icmp_msgs_burst", "1000000")
		}
		g := group(t, space, Options{Addr: lo}, false)
		s := g.Sockets()[0]
		_, errs := listen(t, s)
		x, nobody := s.NewSender(), dest(t, lo, 9, lo)
		const rounds = 200
		for i := range uint64(rounds) {
			for s.Counters().InWaits <= i { // for every error so far the receiver waited anew
				time.Sleep(10 * time.Microsecond)
			}
			msg, want := Message{Buf: []byte("x"), Dest: nobody}, unix.ECONNREFUSED
			if i%2 == 1 { // an error of the own kernel leaves no pending error, but lies in the queue
				msg.Buf, want = fill(65520, 1, 1), unix.EMSGSIZE
			}
			if x.Send([]Message{msg}); msg.Err != nil {
				t.Fatal(msg.Err)
			}
			for next(t, "a path error", errs).Errno != want { // EMSGSIZE comes once a try
			}
		}
		if c := s.Counters(); c.InDatagrams != 0 || c.InWaits < rounds {
			t.Errorf("counters: %+v", c)
		}
	})
}

// A sender that needs room does not spin while an error lies unread at the socket.
func TestErrorWhileSendWaits(t *testing.T) {
	type call struct{ fd, millis int }
	var polls []call
	k := &fakeKernel{}
	full := 3
	k.calls = func() unix.Errno {
		if full--; full >= 0 {
			return unix.EAGAIN
		}
		return 0
	}
	x := k.sender(false, false, nil)
	x.s.fd, x.fd = 5, 5
	x.s.g.sys.poll = func(fd, _ int, events int16, millis int) (int16, unix.Errno) {
		polls = append(polls, call{fd, millis})
		switch len(polls) {
		case 1:
			return 0, unix.EINTR
		case 2:
			return unix.POLLERR, 0
		case 4:
			return unix.POLLERR | unix.POLLOUT, 0
		}
		return events, 0
	}
	mustSend(t, x, Message{Buf: []byte("a"), Dest: dest(t, host(1, false), 1, netip.Addr{})})
	want := []call{{5, -1}, {5, -1}, {-1, errorPause}, {5, -1}, {5, -1}}
	if len(polls) != len(want) {
		t.Fatalf("waited %v, want %v", polls, want)
	}
	for i := range want {
		if polls[i] != want[i] {
			t.Errorf("waited %v, want %v", polls, want)
		}
	}
	if !x.s.pending.Load() {
		t.Error("a busy receiver does not learn of the error")
	}
}

// Waiting allocates nothing, and ends when the time is over.
func TestWait(t *testing.T) {
	g := group(t, newSpace(t), Options{Addr: netip.MustParseAddr("127.0.0.1")}, false)
	s := g.Sockets()[0]
	if n := testing.AllocsPerRun(50, func() {
		if revents, open := g.wait(int(s.fd), unix.POLLIN, 0); revents != 0 || !open {
			t.Fatalf("events %#x, open %t", revents, open)
		}
		if revents, open := g.wait(int(s.fd), unix.POLLIN|unix.POLLOUT, -1); revents != unix.POLLOUT || !open {
			t.Fatalf("events %#x, open %t", revents, open)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, open := g.wait(-1, 0, -1); open {
		t.Error("open after Close")
	}
}
