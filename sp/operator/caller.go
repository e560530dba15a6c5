package operator

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wardgate/internal/certs"
)

// caller is who makes a request.
type caller struct {
	who, where string
	refused    *Problem // nil: may use the API
}

// peer is who is at the other end of a Unix socket, as the kernel says (unix(7), SO_PEERCRED: the
// credentials at the time of connect, which the peer cannot forge).
type peer struct {
	uid, gid uint32
	pid      int32
	groups   []uint32 // supplementary
	err      error    // the kernel did not say: nobody
}

type peerKey struct{}

// withPeer is a ConnContext.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(c))
}

func peerOf(c net.Conn) *peer {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return &peer{err: fmt.Errorf("connection is a %T, expected a Unix socket", c)}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return &peer{err: err}
	}
	p := &peer{}
	if err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); p.err == nil {
			p.uid, p.gid, p.pid = cred.Uid, cred.Gid, cred.Pid
			p.groups, p.err = peerGroups(fd)
		}
	}); err != nil {
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
			return nil, fmt.Errorf("asking for the peer's groups: %w", errno)
		}
	}
}

// caller judges a peer: root, the centre's own user (whose are the database and the keys anyway), or a
// member of the group (gid below 0: none).
func (p *peer) caller(own uint32, gid int) caller {
	denied := func(came string) *Problem {
		return problem(http.StatusForbidden, CodeDenied, "root, or a member of the group of [operators] group", came, "use sudo, or ask the administrator to add you to that group")
	}
	if p == nil || p.err != nil {
		return caller{who: "unknown", where: "socket", refused: denied("somebody of whom the kernel tells nothing")}
	}
	name := "user"
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.uid), 10)); err == nil {
		name = u.Username
	}
	c := caller{who: fmt.Sprintf("%s (uid %d, pid %d)", name, p.uid, p.pid), where: "socket"}
	in := gid >= 0 && (p.gid == uint32(gid) || slices.Contains(p.groups, uint32(gid)))
	if p.uid != 0 && p.uid != own && !in {
		c.refused = denied(c.who)
	}
	return c
}

// groupID looks a group up by name or number; -1 for the empty name.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	id := name
	if g, err := user.LookupGroup(name); err == nil {
		id = g.Gid
	}
	n, err := strconv.ParseUint(id, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("expected a group that exists, came %q: create it (groupadd --system %s) or leave the key out", name, name)
	}
	return int(n), nil
}

// Trust is by what operators' certificates are judged.
type Trust struct {
	Anchors []*x509.Certificate
	CRLs    []*x509.RevocationList
}

// judge says whether the other end of a TLS connection is an operator. It is asked when the connection is
// made and again for each request: certificates end and are revoked while connections last.
func judge(t *tls.ConnectionState, trust Trust, now time.Time) error {
	if t == nil || t.Version < tls.VersionTLS13 || len(t.PeerCertificates) == 0 {
		return errors.New("expected a client certificate over TLS 1.3, came none")
	}
	if len(t.PeerCertificates) > certs.MaxIntermediates+1 {
		return fmt.Errorf("expected at most %d certificates, came %d", certs.MaxIntermediates+1, len(t.PeerCertificates))
	}
	o := certs.Options{Leaf: t.PeerCertificates[0].Raw, Anchors: trust.Anchors, CRLs: trust.CRLs, EKU: certs.EKUClientAuth, At: now, Role: "operator"}
	for _, c := range t.PeerCertificates[1:] {
		o.Intermediates = append(o.Intermediates, c.Raw)
	}
	_, err := certs.VerifyChain(o)
	return err
}

// maxWho bounds how much of a subject is in the record, in octets; the fingerprint tells the rest.
const maxWho = 120

// operatorOf names the operator whose certificate it is.
func operatorOf(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	name := certs.SubjectOf(c)
	if len(name) > maxWho {
		name = name[:maxWho] + "…"
	}
	return name + " (certificate " + hex.EncodeToString(h[:8]) + ")"
}
