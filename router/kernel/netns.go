package kernel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNS runs f on a thread that is in the network namespace of the file descriptor; 0 means the
// namespace that the thread is in anyway. Sockets keep the namespace they were made in, and
// /proc/sys/net shows that of the calling thread.
func inNS(fd int, f func() error) error {
	if fd == 0 {
		return f()
	}
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("kernel: opening the own network namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("kernel: entering the network namespace (file descriptor %d): %w", fd, err)
	}
	ferr := f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so Go ends it with its goroutine instead of letting another
		// goroutine run in the wrong namespace.
		return fmt.Errorf("kernel: leaving the network namespace again: %w", err)
	}
	runtime.UnlockOSThread()
	return ferr
}
