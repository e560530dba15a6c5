package tun

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// user is one way to use a queue, again and again until there is an error.
type user struct {
	name   string
	waiter func(q *queue) *waiter
	use    func(q *queue) error
}

var users = []user{
	{"ReadBatch", func(q *queue) *waiter { return &q.read.wait }, func(q *queue) error {
		bufs, sizes := [][]byte{make([]byte, 2000), make([]byte, 2000)}, make([]int, 2)
		for {
			if _, err := q.ReadBatch(bufs, sizes, 0); err != nil {
				return err
			}
		}
	}},
	{"ReadBurst", func(q *queue) *waiter { return &q.read.wait }, func(q *queue) error {
		var b Burst
		buf := make([]byte, BurstRoom)
		for {
			if _, err := q.ReadBurst(&b, buf, Spacing{}, true); err != nil {
				return err
			}
		}
	}},
	{"WriteBatch", func(q *queue) *waiter { return &q.write.wait }, func(q *queue) error {
		// The third is alone, the others are written together.
		d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 3000)}
		for {
			pkts := append(d.segments(1000), desc{proto: protoUDP}.build(false))
			if _, err := q.WriteBatch(batch(pkts)); err != nil {
				return err
			}
		}
	}},
}

// Close wakes who waits, or is about to, in every call that waits, however often; and returns only
// when nobody uses the descriptor.
func TestCloseWhileWaiting(t *testing.T) {
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) {
			for round := range 300 {
				q, d, _ := socketPair(t, unix.SOCK_DGRAM)
				w := u.waiter(q)
				waits, inside := make(chan struct{}, 1000), make(chan struct{}, 1000)
				w.sys = func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
					waits <- struct{}{}
					inside <- struct{}{}
					defer func() { <-inside }()
					return ppoll(fds, timeout)
				}
				result := make(chan error, 1)
				go func() { result <- u.use(q) }()
				if round%10 > 0 { // and sometimes not even begun
					<-waits
				}
				for range round { // most are in ppoll then
					runtime.Gosched()
				}
				var wg sync.WaitGroup
				for range 1 + round%2 { // all who close wait until it is closed
					wg.Go(func() {
						if err := d.Close(); err != nil {
							t.Error(err)
						}
						if n := len(inside); n != 0 {
							t.Errorf("Close returned with %d waiting", n)
						}
						if _, err := unix.FcntlInt(q.fd, unix.F_GETFD, 0); err != unix.EBADF { //nolint:errorlint // an Errno
							t.Errorf("descriptor after Close: %v, want EBADF", err)
						}
					})
				}
				wg.Wait()
				if err := <-result; !errors.Is(err, ErrClosed) {
					t.Fatalf("round %d: %v, want ErrClosed", round, err)
				}
			}
		})
	}
}

// socketPair is a device of one queue over a socket pair that keeps message boundaries.
func socketPair(t *testing.T, kind int) (q *queue, d *Device, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if d, err = socketDevice(fds[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Close()
		_ = unix.Close(fds[1])
	})
	return d.queues[0], d, fds[1]
}

// A descriptor number that is used for something else right after Close is not read from and not
// written to, however busy the queue was.
func TestCloseWhileBusy(t *testing.T) {
	for round := range 200 {
		q, d, peer := socketPair(t, unix.SOCK_DGRAM)
		number := int(q.fd)
		var workers, helper sync.WaitGroup
		for _, u := range []user{users[round%2], users[2]} {
			workers.Go(func() {
				if err := u.use(q); !errors.Is(err, ErrClosed) {
					t.Errorf("%s: %v, want ErrClosed", u.name, err)
				}
			})
		}
		raw := superPacket(desc{proto: protoUDP, data: make([]byte, 400)}, 100)
		end := make(chan struct{})
		helper.Go(func() { // the kernel: takes all and gives more
			sink := make([]byte, 1<<16)
			for {
				select {
				case <-end:
					return
				default:
				}
				_, _ = unix.Write(peer, raw)
				_, _ = unix.Read(peer, sink)
			}
		})
		for q.Counters().WriteCalls < 20 || q.Counters().ReadCalls < 20 {
			runtime.Gosched()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		other, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(other[:], number) {
			t.Logf("round %d: the number %d went to somebody else", round, number)
		}
		for _, fd := range other { // what would be read by mistake
			if _, err := unix.Write(fd, []byte("untouched")); err != nil {
				t.Fatal(err)
			}
		}
		workers.Wait()
		close(end)
		helper.Wait()
		buf := make([]byte, 1<<16)
		for _, fd := range other {
			if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "untouched" {
				t.Fatalf("round %d: % x read, %v", round, buf[:n], err)
			}
			if n, err := unix.Read(fd, buf); err != unix.EAGAIN { //nolint:errorlint // an Errno
				t.Fatalf("round %d: written to after Close: % x, %v", round, buf[:n], err)
			}
		}
		for _, fd := range other {
			if err := unix.Close(fd); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What ppoll can say to who waits.
func TestWaitErrors(t *testing.T) {
	type answer struct {
		errno   unix.Errno
		revents int16
	}
	for _, c := range []struct {
		name    string
		answers []answer
		want    error
		calls   string // of ppoll: w with the descriptor, p the pause
		tries   int    // to read
	}{
		{"ready", []answer{{0, unix.POLLIN}}, nil, "w", 2},
		{"signals", []answer{{unix.EINTR, 0}, {unix.EINTR, unix.POLLIN}, {0, unix.POLLIN}}, nil, "www", 2},
		{"for nothing", []answer{{0, 0}, {0, unix.POLLIN}}, nil, "ww", 2},
		{"again and again", []answer{{0, unix.POLLIN}, {0, unix.POLLIN}, {0, unix.POLLIN}}, nil, "www", 4},
		{"no memory", []answer{{unix.ENOMEM, 0}}, unix.ENOMEM, "w", 1},
		{"no descriptor", []answer{{0, unix.POLLNVAL}}, unix.EBADF, "w", 1},
		{"error that is not there", []answer{{0, unix.POLLERR}, {0, 0}, {0, unix.POLLERR}, {unix.EINTR, 0}, {0, unix.POLLIN}}, nil, "wpwpw", 4},
		{"error while pausing", []answer{{0, unix.POLLHUP}, {unix.ENOMEM, 0}}, unix.ENOMEM, "wp", 2},
		{"error and data", []answer{{0, unix.POLLERR | unix.POLLIN}, {0, unix.POLLIN}}, nil, "ww", 3},
	} {
		for _, u := range users {
			t.Run(c.name+"/"+u.name, func(t *testing.T) {
				q, d, _ := socketPair(t, unix.SOCK_DGRAM)
				answers, calls, tries := c.answers, "", 0
				again := func() unix.Errno {
					if tries++; len(answers) > 0 {
						return unix.EAGAIN
					}
					return unix.EIO // all were given
				}
				q.read.sys = func(uintptr, []byte) (int, unix.Errno) { return 0, again() }
				q.write.sys = func(uintptr, []unix.Iovec) unix.Errno { return again() }
				w := u.waiter(q)
				w.sys = func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
					a := answers[0]
					answers = answers[1:]
					if timeout != nil {
						calls += "p"
						if len(fds) != 1 || fds[0].Fd != int32(d.stop.fd) || timeout.Nano() != oddPause {
							t.Errorf("pause with %v, %v", fds, timeout)
						}
						return a.errno
					}
					calls += "w"
					if len(fds) != 2 || fds[0].Fd != int32(q.fd) || fds[1].Fd != int32(d.stop.fd) || fds[1].Events != unix.POLLIN {
						t.Errorf("wait with %v", fds)
					}
					if fds[0].Revents = a.revents; a.revents&unix.POLLIN != 0 {
						fds[0].Revents = a.revents&^unix.POLLIN | fds[0].Events
					}
					return a.errno
				}
				want := c.want
				if want == nil {
					want = unix.EIO
				}
				err := u.use(q)
				if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "tun: ") {
					t.Errorf("%v, want %v", err, want)
				}
				if u.name == "WriteBatch" && c.want == nil {
					tries-- // EIO is that of one run, and the next is tried too
				}
				if calls != c.calls || tries != c.tries {
					t.Errorf("calls %q and %d tries, want %q and %d", calls, tries, c.calls, c.tries)
				}
			})
		}
	}
}

// A peer that goes away ends the wait for room.
func TestErrorWhileWaitingToWrite(t *testing.T) {
	q, _, peer := socketPair(t, unix.SOCK_SEQPACKET)
	waits := make(chan struct{}, 1000)
	q.write.wait.sys = func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
		waits <- struct{}{}
		return ppoll(fds, timeout)
	}
	result := make(chan error, 1)
	go func() { result <- users[2].use(q) }()
	<-waits
	if err := unix.Shutdown(peer, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, unix.EPIPE) {
		t.Errorf("%v, want EPIPE", err)
	}
}

// What waited for room is written whole and in order when there is some.
func TestWriteAfterWait(t *testing.T) {
	q, _, peer := socketPair(t, unix.SOCK_DGRAM)
	buf := make([]byte, 1<<16)
	var got [][]byte
	drain := func() {
		for {
			n, err := unix.Read(peer, buf)
			if err != nil {
				return
			}
			cut, err := kernel(buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, cut...)
		}
	}
	waits := 0
	q.write.wait.sys = func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
		waits++
		drain()
		return ppoll(fds, timeout)
	}
	var want [][]byte
	for i := range 300 {
		d := desc{proto: protoTCP, flags: tcpACK, seq: uint32(i) * 2000, id: uint16(2 * i), sp: uint16(i), data: bytes.Repeat([]byte{byte(i)}, 2000)}
		want = append(want, d.segments(1000)...)
	}
	var src [][]byte
	for _, p := range want {
		src = append(src, bytes.Clone(p))
	}
	if n, err := q.WriteBatch(batch(src)); n != len(src) || err != nil {
		t.Fatal(n, err)
	}
	drain()
	compare(t, got, want)
	if waits == 0 {
		t.Error("never waited")
	}
}

// Waiting takes no memory.
func TestWaitAllocations(t *testing.T) {
	q, _, peer := socketPair(t, unix.SOCK_DGRAM)
	in := superPacket(desc{proto: protoUDP, data: make([]byte, 100)}, 100)
	waits := 0
	q.read.wait.sys = func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
		waits++
		if _, err := unix.Write(peer, in); err != nil {
			t.Fatal(err)
		}
		return ppoll(fds, timeout)
	}
	var b Burst
	buf := make([]byte, BurstRoom)
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	const runs = 100
	if n := testing.AllocsPerRun(runs, func() {
		if ok, err := q.ReadBurst(&b, buf, Spacing{}, true); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if n, err := q.ReadBatch(bufs, sizes, 0); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if waits != 2*(runs+1) {
		t.Errorf("waited %d times, want %d", waits, 2*(runs+1))
	}
}

// BenchmarkTry is ReadBurst without the system call: what holding the descriptor costs.
func BenchmarkTry(b *testing.B) {
	q := &queue{}
	q.read.sys = func(uintptr, []byte) (int, unix.Errno) { return 0, unix.EAGAIN }
	var burst Burst
	buf := make([]byte, BurstRoom)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := q.ReadBurst(&burst, buf, Spacing{}, false); ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// BenchmarkEcho is the round trip of a small datagram through the real device and back, at a pace.
// cpu-µs/op is that of the whole process, so with sending and receiving.
func BenchmarkEcho(b *testing.B) {
	s := newSpace(b)
	d := s.device(1, 1, true)
	q := d.queues[0]
	var wg sync.WaitGroup
	wg.Go(func() {
		var burst Burst
		buf := make([]byte, 16+BurstRoom)
		sp := Spacing{Front: 16}
		for {
			if _, err := q.ReadBurst(&burst, buf, sp, true); err != nil {
				return
			}
			p := burst.First
			if len(p) < 28 || p[0] != 0x45 || p[9] != protoUDP || burst.Cut(sp) != nil {
				continue
			}
			var a [4]byte
			copy(a[:], p[12:16]) // back to where it came from: no checksum changes
			copy(p[12:16], p[16:20])
			copy(p[16:20], a[:])
			copy(a[:2], p[20:22])
			copy(p[20:22], p[22:24])
			copy(p[22:24], a[:2])
			if _, err := q.WriteBatch([]Packet{{Buf: buf, Off: sp.Front, Len: len(p)}}); err != nil {
				return
			}
		}
	})
	conn := sender(b, s, 0)
	raw, err := conn.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	for _, rate := range []int{0, 5000, 500} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			msg := make([]byte, 100)
			var took []time.Duration
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			cerr := raw.Control(func(fd uintptr) { // direct calls: the runtime of the sender is not what is measured
				next := time.Now()
				for b.Loop() {
					if rate > 0 {
						next = next.Add(time.Second / time.Duration(rate))
						pause := unix.NsecToTimespec(max(0, int64(time.Until(next))))
						_ = unix.Nanosleep(&pause, nil)
					}
					begin := time.Now()
					if _, err := unix.Write(int(fd), msg); err != nil {
						b.Fatal(err)
					}
					fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
					if errno := ppoll(fds, nil); errno != 0 && errno != unix.EINTR {
						b.Fatal(errno)
					}
					if _, err := unix.Read(int(fd), msg); err == nil {
						took = append(took, time.Since(begin))
					}
				}
			})
			if cerr != nil {
				b.Fatal(cerr)
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "median-µs")
			b.ReportMetric(float64(cpu)/1000/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/float64(b.N), "switches/op")
			b.ReportMetric(0, "ns/op")
		})
	}
	_ = d.Close()
	wg.Wait()
}
