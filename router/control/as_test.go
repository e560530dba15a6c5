package control_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// askAs asks for health from a thread with other credentials. The raw system calls change the
// thread alone; it ends with its goroutine.
func askAs(socket string, uid, gid uint32, groups []uint32) (int, string, error) {
	type result struct {
		status int
		body   string
		err    error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread()
		status, body, err := func() (int, string, error) {
			var list unsafe.Pointer
			if len(groups) > 0 {
				list = unsafe.Pointer(&groups[0])
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); e != 0 {
				return 0, "", e
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
				return 0, "", e
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return 0, "", e
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return 0, "", err
			}
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close()
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
				return 0, "", err
			}
			if _, err := fmt.Fprintf(f, "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
				return 0, "", err
			}
			resp, err := http.ReadResponse(bufio.NewReader(f), nil)
			if err != nil {
				return 0, "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body), err
		}()
		c <- result{status, body, err}
	}()
	r := <-c
	return r.status, r.body, r.err
}
