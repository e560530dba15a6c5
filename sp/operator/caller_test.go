package operator_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wardgate/sp/operator"
	"wardgate/sp/registry/registrytest"
)

// The kernel says who asks: root and one group may, and nobody else, also where the socket's mode would
// let them.
func TestOneGroupMay(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("root is needed to become somebody else")
		}
		t.Skip("root is needed to become somebody else")
	}
	const gid = 45679
	dir, err := os.MkdirTemp("", "operators") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "o.sock")
	f := newFake(t)
	s, err := operator.New(operator.Options{Backend: f, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return registrytest.At }}).UnixServer(fmt.Sprint(gid))
	if err != nil {
		t.Fatal(err)
	}
	l, err := operator.ListenUnix(socket, fmt.Sprint(gid))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	var st unix.Stat_t
	if err := unix.Stat(socket, &st); err != nil || st.Mode&0o777 != 0o660 || st.Gid != gid || st.Uid != 0 {
		t.Errorf("socket: mode %o, owner %d, group %d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		may      bool
	}{
		{"root", 0, 0, nil, true},
		{"a stranger", 12345, 12345, []uint32{1, 2, 3}, false},
		{"the group as the primary one", 12345, gid, nil, true},
		{"the group among others", 12345, 12345, []uint32{7, gid, 9}, true},
	} {
		before := len(f.record)
		status, err := putAs(socket, c.uid, c.gid, c.groups, strings.ReplaceAll(c.name, " ", "-"))
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		last := f.record[len(f.record)-1]
		if (status == http.StatusCreated) != c.may || !c.may && status != http.StatusForbidden {
			t.Errorf("%s: %d", c.name, status)
		}
		event := map[bool]string{true: "registry-applied", false: "operator-refused"}[c.may]
		if len(f.record) != before+1 || last.Event != event || !strings.HasSuffix(last.Who, fmt.Sprintf("(uid %d, pid %d)", c.uid, os.Getpid())) {
			t.Errorf("%s: on the record %+v", c.name, last)
		}
		f.mu.Unlock()
	}
}

// putAs makes a member from a thread with other credentials. The raw system calls change the thread alone;
// it ends with its goroutine.
func putAs(socket string, uid, gid uint32, groups []uint32, name string) (status int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var list unsafe.Pointer
		if len(groups) > 0 {
			list = unsafe.Pointer(&groups[0])
		}
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1 != 0 || e2 != 0 || e3 != 0 {
			err = fmt.Errorf("becoming somebody else: %w, %w, %w", e1, e2, e3)
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
			return
		}
		const body = "title = \"New\"\n"
		if _, err = fmt.Fprintf(f, "PUT /v1/registry/files/members/%s.toml HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Type: application/toml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", name, len(body), body); err != nil {
			return
		}
		var resp *http.Response
		if resp, err = http.ReadResponse(bufio.NewReader(f), nil); err == nil {
			status = resp.StatusCode
			err = resp.Body.Close()
		}
	}()
	<-done
	return status, err
}
