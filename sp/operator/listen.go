package operator

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"wardgate/internal/localsocket"
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
	ln, _, err := localsocket.Listen(socket, group)
	if err != nil {
		return nil, fmt.Errorf("operators.socket or operators.group: %w", err)
	}
	return ln, nil
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
	gid, err := localsocket.Group(group)
	if err != nil {
		return nil, fmt.Errorf("operators.group: %w", err)
	}
	own := uint32(os.Geteuid())
	h := server()
	h.ConnContext = localsocket.With
	h.Handler = s.handler(func(r *http.Request) caller { return socketCaller(localsocket.From(r.Context()), own, gid) })
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
