package wire

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // octets received or sent
}

// calls are the system calls that a kernel may refuse; tests play such kernels.
type calls struct {
	setInt   func(fd, level, opt, value int) error
	getInt   func(fd, level, opt int) (int, error)
	filter   func(fd, opt int, prog *unix.SockFprog) error
	recvmmsg func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno)
	recvmsg  func(fd uintptr, h *unix.Msghdr, flags int) (int, unix.Errno)
	sendmmsg func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno)
	sendmsg  func(fd uintptr, h *unix.Msghdr) (int, unix.Errno)
	// poll waits for events at fd, for something to read at stop, or for the time to pass.
	poll  func(fd, stop int, events int16, millis int) (revents int16, e unix.Errno)
	close func(fd int) error
}

// linux are the real ones. The arguments point to memory that batches and senders own, so nothing
// is allocated.
var linux = calls{
	setInt: unix.SetsockoptInt,
	getInt: unix.GetsockoptInt,
	filter: func(fd, opt int, prog *unix.SockFprog) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, opt, prog)
	},
	recvmmsg: func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno) {
		r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(v)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		return int(r), e
	},
	recvmsg: func(fd uintptr, h *unix.Msghdr, flags int) (int, unix.Errno) {
		r, _, e := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(h)), uintptr(flags|unix.MSG_DONTWAIT))
		return int(r), e
	},
	sendmmsg: func(fd uintptr, v *mmsghdr, n int) (int, unix.Errno) {
		r, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(v)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		return int(r), e
	},
	sendmsg: func(fd uintptr, h *unix.Msghdr) (int, unix.Errno) {
		r, _, e := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT)
		return int(r), e
	},
	poll: func(fd, stop int, events int16, millis int) (int16, unix.Errno) {
		fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(stop), Events: unix.POLLIN}}
		var (
			time  unix.Timespec
			limit *unix.Timespec
		)
		if millis >= 0 {
			time = unix.NsecToTimespec(int64(millis) * 1e6)
			limit = &time
		}
		_, _, e := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), uintptr(len(fds)), uintptr(unsafe.Pointer(limit)), 0, 0, 0)
		return fds[0].Revents, e
	},
	close: unix.Close,
}

// drops asks the kernel how many datagrams it dropped because fd's receive buffer was full (Linux
// 4.12). It is asked when somebody wants to know, so packets carry no control message for it.
func drops(fd uintptr) (uint32, bool) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info[unix.SK_MEMINFO_DROPS], e == 0 && size >= 4*(unix.SK_MEMINFO_DROPS+1)
}
