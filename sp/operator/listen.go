package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the HTTP servers, for everything that comes before a handler.
const (
	headerTime = 5 * time.Second
	readTime   = 60 * time.Second // a request with its body
	writeTime  = 3 * time.Minute  // until an answer is made and taken
	idleTime   = 60 * time.Second
	maxHeader  = 16 << 10
)

// ListenUnix makes the socket for root and one group (name or number; empty: none). A socket that a dead
// centre left is replaced; one that answers is an error, for then another one runs.
func ListenUnix(socket, group string) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, fmt.Errorf("operators.group: %w", err)
	}
	if err := clearSocket(socket); err != nil {
		return nil, fmt.Errorf("operators.socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("operators.socket: %w", err)
	}
	// Until here the socket has the process's default mode; whoever connects is checked again.
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Chown(socket, -1, gid)
	}
	if err == nil {
		err = os.Chmod(socket, mode)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("operators.socket: owner and mode of %s: %w", socket, err), ln.Close())
	}
	return ln, nil
}

// clearSocket removes a socket at which nobody answers.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: expected nothing there, or the socket of an earlier run, came something that is no socket", path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = c.Close() // it was for the question alone
		return fmt.Errorf("%s: expected nobody, somebody answers: another centre is running there", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func server() *http.Server {
	s := &http.Server{
		ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	return s
}

// UnixServer serves those whom the kernel vouches for, on a listener of ListenUnix with the same group.
func (s *Server) UnixServer(group string) (*http.Server, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, fmt.Errorf("operators.group: %w", err)
	}
	own := uint32(os.Geteuid())
	h := server()
	h.ConnContext = withPeer
	h.Handler = s.handler(func(r *http.Request) caller {
		p, _ := r.Context().Value(peerKey{}).(*peer)
		return p.caller(own, gid)
	})
	return h, nil
}

// TLSServer serves those whose certificates trust vouches for. Nobody else gets beyond the handshake.
func (s *Server) TLSServer(own *tls.Certificate, trust func() (Trust, error)) *http.Server {
	verify := func(cs *tls.ConnectionState) error {
		t, err := trust()
		if err != nil {
			return err
		}
		return judge(cs, t, s.opt.Now())
	}
	h := server()
	h.TLSConfig = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}, ClientAuth: tls.RequireAnyClientCert,
		NextProtos: []string{"http/1.1"}, Time: s.opt.Now,
		SessionTicketsDisabled: true, // each connection shows its certificate
		VerifyConnection:       func(cs tls.ConnectionState) error { return verify(&cs) },
	}
	h.Handler = s.handler(func(r *http.Request) caller {
		c := caller{who: "unknown", where: r.RemoteAddr}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			c.who = operatorOf(r.TLS.PeerCertificates[0])
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
				c.who += " at " + host
			}
		}
		if err := verify(r.TLS); err != nil {
			c.refused = problem(http.StatusForbidden, CodeDenied, "a certificate that [operators] anchors vouch for", err.Error(), "ask the SP's administrator for one")
		}
		return c
	})
	return h
}
