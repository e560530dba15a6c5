package localsocket

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

// Peer is who is at the other end of a connection, as the kernel says (unix(7), SO_PEERCRED: the
// credentials at the time of connect, which the peer cannot forge).
type Peer struct {
	UID, GID uint32
	PID      int32
	Groups   []uint32 // supplementary
	Err      error    // the kernel did not say: nobody
}

type key struct{}

// With returns a context that carries the peer of c, for From. It is an http.Server's ConnContext.
func With(ctx context.Context, c net.Conn) context.Context {
	return WithPeer(ctx, Of(c))
}

// WithPeer returns a context that carries p.
func WithPeer(ctx context.Context, p *Peer) context.Context {
	return context.WithValue(ctx, key{}, p)
}

// From returns the peer that ctx carries, or nil.
func From(ctx context.Context) *Peer {
	p, _ := ctx.Value(key{}).(*Peer)
	return p
}

// Of asks the kernel. Where it does not say, Err is why.
func Of(c net.Conn) *Peer {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return &Peer{Err: fmt.Errorf("peer: connection is a %T, expected a Unix socket", c)}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return &Peer{Err: err}
	}
	p := &Peer{}
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			p.Err = fmt.Errorf("peer: asking for its credentials: %w", err)
			return
		}
		p.UID, p.GID, p.PID = cred.Uid, cred.Gid, cred.Pid
		p.Groups, p.Err = groups(fd)
	})
	if err != nil {
		p.Err = err
	}
	return p
}

// groups reads SO_PEERGROUPS (Linux 4.13), for which x/sys has no function.
func groups(fd uintptr) ([]uint32, error) {
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
			return nil, fmt.Errorf("peer: asking for its groups: %w", errno)
		}
	}
}

// May tells whether the peer is root, the user own, or a member of the group gid (below 0: of none).
func (p *Peer) May(own uint32, gid int) bool {
	if p == nil || p.Err != nil {
		return false
	}
	if p.UID == 0 || p.UID == own {
		return true
	}
	return gid >= 0 && (p.GID == uint32(gid) || slices.Contains(p.Groups, uint32(gid)))
}

// String names the user with number and process, for audit records, such as "root (uid 0, pid 4242)". It
// is empty for nobody.
func (p *Peer) String() string {
	if p == nil || p.Err != nil {
		return ""
	}
	name := "user"
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (uid %d, pid %d)", name, p.UID, p.PID)
}
