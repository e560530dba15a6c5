package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a connection, as the kernel says (unix(7), SO_PEERCRED:
// the credentials at the time of connect, which the peer cannot forge).
type peer struct {
	uid, gid uint32
	pid      int32
	groups   []uint32 // supplementary
	err      error    // the kernel did not say: nobody
}

type peerKey struct{}

// Caller says who made the request of this context, for audit records: the user's name and
// number and the process, such as "root (uid 0, pid 4242)". It is empty outside a request.
func Caller(ctx context.Context) string {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok || p.err != nil {
		return ""
	}
	name := "user"
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.uid), 10)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (uid %d, pid %d)", name, p.uid, p.pid)
}

// peerOf asks the kernel.
func peerOf(c net.Conn) *peer {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return &peer{err: fmt.Errorf("control: connection is a %T, expected a Unix socket", c)}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return &peer{err: err}
	}
	p := &peer{}
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			p.err = fmt.Errorf("control: asking for the peer's credentials: %w", err)
			return
		}
		p.uid, p.gid, p.pid = cred.Uid, cred.Gid, cred.Pid
		p.groups, p.err = peerGroups(fd)
	})
	if err != nil {
		p.err = err
	}
	return p
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), for which x/sys has no function.
func peerGroups(fd uintptr) ([]uint32, error) {
	for n := uint32(32); ; {
		buf := make([]uint32, n)
		size := n * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return buf[:size/4], nil
		case errors.Is(errno, unix.ERANGE) && size/4 > n && size/4 <= 65536: // NGROUPS_MAX
			n = size / 4
		default:
			return nil, fmt.Errorf("control: asking for the peer's groups: %w", errno)
		}
	}
}

// may says whether the peer may use the API: root, the daemon's own user, or a member of the
// configured group (gid < 0: none).
func (p *peer) may(own uint32, gid int) bool {
	if p == nil || p.err != nil {
		return false
	}
	if p.uid == 0 || p.uid == own {
		return true
	}
	return gid >= 0 && (p.gid == uint32(gid) || slices.Contains(p.groups, uint32(gid)))
}

// groupID looks a group up by name or number.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if n, nerr := strconv.ParseUint(name, 10, 31); nerr == nil {
			return int(n), nil
		}
		return 0, fmt.Errorf("control: group %q of [control] group does not exist: create it (groupadd --system %s) or leave the key out", name, name)
	}
	n, err := strconv.ParseUint(g.Gid, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("control: group %q has the number %q: %w", name, g.Gid, err)
	}
	return int(n), nil
}
