package tun

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Why the runtime's poller does not know the descriptors: it registers them edge-triggered for both
// directions, so that with every packet, also one that its worker reads without having waited, the
// kernel wakes the thread that sits in epoll_wait, which then wakes the worker's. A worker that
// waits in ppoll itself is woken once a packet, and nobody else is.

// stop is an eventfd that all queues of a device wait for beside their own descriptor. Once raised
// it stays readable for ever, as nobody reads it.
type stop struct{ fd int }

func newStop() (*stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("tun: eventfd, which Close wakes readers with: %w", err)
	}
	return &stop{fd: fd}, nil
}

// raise wakes all who wait, and all who will.
func (s *stop) raise() {
	// The only error of an eventfd that is not full is EINTR, and not of one that does not block.
	_, _ = unix.Write(s.fd, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // not 0 in either byte order
}

// close is for who knows that nobody waits any more.
func (s *stop) close() { _ = unix.Close(s.fd) }

// waiter waits for one direction of a descriptor; it belongs to who holds that direction.
type waiter struct {
	closed *atomic.Bool // set before the stop is raised
	fds    [2]unix.PollFd
	sys    func(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno // ppoll; tests put another kernel here

	// The last ppoll reported an error and nothing to read or write. Who comes back did not meet it.
	odd bool

	yielded time.Duration // when the scheduler ran last, since start
}

var start = time.Now()

// yieldEvery: who waits goes through the scheduler before, but not more often than that.
//
// A goroutine that only blocks in system calls never does. What it has made ready then stays in the
// queue of its processor until that is taken from the blocked thread, up to 10 ms; and the runtime
// takes a goroutine of more than 10 ms for a greedy one, whose processor it takes away at every
// call: two futex wakes a packet. But going there also wakes a thread that looks for work whenever
// a processor is idle, so that doing it every time costs what not being known to the poller saves.
const yieldEvery = 4 * time.Millisecond

func (w *waiter) init(fd int, events int16, s *stop, closed *atomic.Bool) {
	w.fds = [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(s.fd), Events: unix.POLLIN}}
	w.closed, w.sys = closed, ppoll
}

// oddPause is the pause of who is told of an error that is not there when he looks: the kernel does
// so for the milliseconds that taking away an interface takes.
const oddPause = 1e6 // nanoseconds

// wait blocks the thread until it is worth trying again what gave EAGAIN. The runtime gives the
// thread's processor to others meanwhile. An error is ErrClosed, or says why waiting is impossible.
func (w *waiter) wait() error {
	if now := time.Since(start); now-w.yielded >= yieldEvery {
		w.yielded = now
		runtime.Gosched()
	}
	for !w.closed.Load() {
		if w.odd {
			w.odd = false
			pause := unix.NsecToTimespec(oddPause)
			if errno := w.sys(w.fds[1:], &pause); errno != 0 && errno != unix.EINTR {
				return errno
			}
			continue
		}
		switch errno := w.sys(w.fds[:], nil); errno {
		case 0:
		case unix.EINTR:
			continue
		default:
			return errno
		}
		switch got := w.fds[0].Revents; {
		case got&unix.POLLNVAL != 0:
			return unix.EBADF
		case got&w.fds[0].Events != 0:
			return nil
		case got != 0:
			w.odd = true
			return nil
		}
	}
	return ErrClosed
}

// ppoll is unix.Ppoll without its conversions. It tells the scheduler that it blocks.
func ppoll(fds []unix.PollFd, timeout *unix.Timespec) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
		uintptr(unsafe.Pointer(timeout)), 0, 0, 0)
	return errno
}
