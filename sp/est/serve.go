package est

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
)

// Prefix is where the handler is mounted (RFC 8615; RFC 7030, section 3.2.2).
const Prefix = "/.well-known/est/"

// The operations.
const (
	opCACerts  = "cacerts"
	opAttrs    = "csrattrs"
	opEnroll   = "simpleenroll"
	opReenroll = "simplereenroll"
)

// exchange is one request on its way through the server.
type exchange struct {
	s       *Server
	r       *http.Request
	op      string
	name    string // the service's
	service Service
	now     time.Time
	device  string // the device's name, once the registry has said it
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: s, r: r, now: s.cfg.Now()}
	if refusal := x.serve(w); refusal != nil {
		x.refuse(w, refusal)
	}
}

func (x *exchange) serve(w http.ResponseWriter) *Refusal {
	if err := x.route(); err != nil {
		return err
	}
	switch x.op {
	case opCACerts, opAttrs:
		if wait, ok := x.s.addresses.Take(AddressKey(x.r.RemoteAddr), x.now); !ok {
			return tooMany("requests of this address", wait)
		}
		return x.tell(w)
	default:
		return x.enroll(w)
	}
}

// route finds service and operation. The path is taken as it came: nothing in it is unescaped, so
// that nothing can mean two things.
func (x *exchange) route() *Refusal {
	const want = Prefix + "SERVICE/OPERATION"
	rest, ok := strings.CutPrefix(x.r.URL.EscapedPath(), Prefix)
	parts := strings.Split(rest, "/")
	// strongSwan's pki puts the path of the address that it is given before the well-known one, and
	// has no other way to say a label: /SERVICE/.well-known/est/OPERATION.
	labelFirst := false
	if label, op, found := strings.Cut(strings.TrimPrefix(x.r.URL.EscapedPath(), "/"), Prefix); !ok && found {
		labelFirst, ok, parts = true, true, append([]string{label}, strings.Split(op, "/")...)
	}
	switch {
	case !ok || len(parts) > 2:
		return refuse(BadPath, want, certs.Quote(x.r.URL.EscapedPath()), "ask the SP for the enrolment address")
	case len(parts) == 1:
		return refuse(BadPath, want, "a path that names no service: "+certs.Quote(x.r.URL.EscapedPath()), "every VPN service has a CA of its own: put its name before the operation")
	case !issue.ValidName(parts[0]):
		return refuse(BadPath, "the name of a service (letters, digits, '-', '_', '.')", certs.Quote(parts[0]), "ask the SP for the service's name")
	}
	x.name = parts[0]
	method := http.MethodPost
	switch parts[1] {
	case opCACerts, opAttrs:
		method = http.MethodGet
	case opEnroll, opReenroll:
	case "serverkeygen":
		return refuse(BadPath, "a request for a key that the device made", "serverkeygen", "keys are made in the device's token and do not leave it: use "+opEnroll)
	default:
		return refuse(BadPath, strings.Join([]string{opCACerts, opAttrs, opEnroll, opReenroll}, ", "), certs.Quote(parts[1]), "use one of these")
	}
	x.op = parts[1]
	if x.r.Method != method && (x.r.Method != http.MethodHead || method != http.MethodGet) {
		return refuse(BadMethod, method, certs.Quote(x.r.Method), "use "+method+" for "+x.op)
	}
	if x.service, ok = x.s.cfg.Service(x.name); !ok {
		return refuse(NoService, "a service of this SP", certs.Quote(x.name), "ask the SP for the service's name")
	}
	if labelFirst && !x.service.Plain {
		return refuse(BadPath, want, certs.Quote(x.r.URL.EscapedPath()), "the service's name belongs behind "+Prefix)
	}
	return nil
}

// tell answers cacerts and csrattrs, which need no client certificate.
func (x *exchange) tell(w http.ResponseWriter) *Refusal {
	var der []byte
	var err error
	kind := "application/csrattrs"
	if x.op == opCACerts {
		kind = "application/pkcs7-mime" // RFC 7030, section 4.1.3: without smime-type
		der, err = certsOnly(append(x.service.CA.Anchors(), x.service.CA.Intermediates()...)...)
	} else {
		der, err = encodeAttrs(csrAttrs(&x.service))
	}
	if err != nil {
		return internal(x.op, err)
	}
	answer(w, kind, der)
	return nil
}

// answer sends DER in base64. The length is said, because not every client reads chunks.
func answer(w http.ResponseWriter, kind string, der []byte) {
	body := encodeBody(der)
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Transfer-Encoding", "base64") // means nothing (RFC 8951, section 3), but clients from before look at it
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // a client that is gone asks again
}

// refuse tells the client and the record.
func (x *exchange) refuse(w http.ResponseWriter, r *Refusal) {
	r.Operation, r.Service, r.Remote = x.op, x.name, x.r.RemoteAddr
	if r.Device == "" {
		r.Device = x.device
	}
	if t := x.r.TLS; t != nil && len(t.PeerCertificates) > 0 {
		r.Client = certs.SubjectOf(t.PeerCertificates[0])
	}
	x.s.cfg.Recorder.Refused(context.WithoutCancel(x.r.Context()), r) // also when the client is gone
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8") // RFC 8951, section 5
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	switch r.Class {
	case BadMethod:
		h.Set("Allow", r.Expected)
	case TooSlow, TooLarge:
		h.Set("Connection", "close")
	default:
	}
	if r.RetryAfter > 0 {
		h.Set("Retry-After", fmt.Sprint(int(math.Ceil(r.RetryAfter.Seconds()))))
	}
	body := r.Error() + "\n"
	h.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(r.Class.Status())
	_, _ = io.WriteString(w, body) // a client that is gone cannot be told
}

func tooMany(what string, wait time.Duration) *Refusal {
	r := refuse(TooMany, "fewer "+what, "more than the limit", "wait, then ask again")
	r.RetryAfter = max(wait, time.Second)
	return r
}

// body reads the request's body within its bounds of type, size and time.
func (x *exchange) body(w http.ResponseWriter) ([]byte, *Refusal) {
	kind, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/pkcs10") {
		return nil, refuse(BadType, "Content-Type application/pkcs10", certs.Quote(x.r.Header.Get("Content-Type")), "send a PKCS #10 request")
	}
	if e := x.r.Header.Get("Content-Encoding"); e != "" {
		return nil, refuse(BadType, "no Content-Encoding", certs.Quote(e), "send the body as it is")
	}
	tooLarge := func(got string) *Refusal {
		return refuse(TooLarge, fmt.Sprintf("at most %d octets", MaxBody), got, "send one request and nothing else")
	}
	if x.r.ContentLength > MaxBody {
		return nil, tooLarge(fmt.Sprint(x.r.ContentLength))
	}
	// The deadline is the connection's, by the machine's clock. Servers in tests may have none.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(x.s.cfg.BodyTimeout))
	b, err := io.ReadAll(http.MaxBytesReader(w, x.r.Body, MaxBody))
	if err == nil {
		return b, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge("more").because(err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, refuse(TooSlow, "the body within "+x.s.cfg.BodyTimeout.String(), "a part of it", "check the connection, then ask again").because(err)
	}
	return nil, refuse(Malformed, "a whole body", "a connection that ended early", "ask again").because(err)
}

// enter waits for a place among those that are worked on.
func (x *exchange) enter(ctx context.Context) (leave func(), refusal *Refusal) {
	leave = func() { <-x.s.atOnce }
	select {
	case x.s.atOnce <- struct{}{}:
		return leave, nil
	default:
	}
	select {
	case x.s.atOnce <- struct{}{}:
		return leave, nil
	case <-ctx.Done():
		return nil, busy("more enrolments at once than the server takes", ctx.Err())
	}
}
