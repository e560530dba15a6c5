package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"wardgate/internal/localsocket"
)

// Limits of the server. A caller is local and mostly trusted, but a runaway script must not take
// the router's memory.
const (
	maxHeader    = 16 << 10
	maxQuestion  = 64 << 10 // body of a question
	maxSecret    = 4 << 10  // a key in base64
	maxPolicy    = 33 << 20 // body that is a policy file
	maxRequests  = 32       // at once
	maxName      = 128      // bytes of a connection's name
	maxAudit     = 10000    // records
	defaultAudit = 50
	requestTime  = 30 * time.Second
	maxWait      = 60 * time.Second // of up
	defaultWait  = 30 * time.Second
	headerTime   = 5 * time.Second
	idleTime     = 60 * time.Second
)

// ServerOptions say where and for whom the API is served.
type ServerOptions struct {
	Socket  string // path; its folder must exist
	Group   string // name of a group that may use it beside root; empty: none
	Backend Backend
	// Log is told of denied callers and internal errors, as message and key-value pairs.
	Log func(msg string, keysAndValues ...any)
}

// Server is a control API that listens.
type Server struct {
	opt  ServerOptions
	gid  int
	own  uint32
	ln   *net.UnixListener
	http *http.Server
	busy chan struct{}
}

// Listen makes the socket. A socket that a dead daemon left is replaced; one that answers is an
// error, for then another daemon runs.
func Listen(opt ServerOptions) (*Server, error) {
	if opt.Log == nil {
		opt.Log = func(string, ...any) {}
	}
	ln, gid, err := localsocket.Listen(opt.Socket, opt.Group)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	s := &Server{opt: opt, gid: gid, own: uint32(os.Geteuid()), ln: ln, busy: make(chan struct{}, maxRequests)}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       requestTime,
		WriteTimeout:      maxWait + requestTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(logWriter{opt.Log}, "", 0),
		ConnContext:       localsocket.With,
	}
	return s, nil
}

// Serve answers until Shutdown or Close, and then returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control: serving at %s: %w", s.opt.Socket, err)
	}
	return nil
}

// Shutdown removes the socket and lets the requests that are being answered finish, until ctx
// ends: then their connections are closed, which is no error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil && ctx.Err() != nil {
		err = s.http.Close()
	}
	return errors.Join(err, s.closeListener())
}

// Close ends at once, also a Server that never served.
func (s *Server) Close() error { return errors.Join(s.http.Close(), s.closeListener()) }

// closeListener closes (and so removes) the socket where Serve had not begun.
func (s *Server) closeListener() error {
	if err := s.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("control: closing %s: %w", s.opt.Socket, err)
	}
	return nil
}

// logWriter turns net/http's own complaints into records.
type logWriter struct{ log func(string, ...any) }

func (w logWriter) Write(p []byte) (int, error) {
	w.log("control API", "problem", strings.TrimSpace(string(p)))
	return len(p), nil
}

// route is one line of the API. docs/control-api.md describes each; a test compares.
type route struct {
	method, path string
	limit        int64 // largest body, bytes
	do           func(ctx context.Context, b Backend, r *http.Request, body []byte) (any, error)
	stream       func(s *Server, w http.ResponseWriter, r *http.Request) // instead of do: answers by itself, as it goes on
}

var routes = []route{
	{method: http.MethodGet, path: "/v1/health", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return struct {
			OK bool `json:"ok"`
		}{true}, b.Health(ctx)
	}},
	{method: http.MethodGet, path: "/v1/status", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return b.Status(ctx)
	}},
	{method: http.MethodGet, path: "/v1/connections", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return list(b.Connections(ctx))
	}},
	{method: http.MethodPost, path: "/v1/connections/{name}/up", limit: 0, do: func(ctx context.Context, b Backend, r *http.Request, _ []byte) (any, error) {
		name, err := connectionName(r)
		if err != nil {
			return nil, err
		}
		wait, err := waitOf(r)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		return b.Up(ctx, name)
	}},
	{method: http.MethodPost, path: "/v1/connections/{name}/down", limit: 0, do: func(ctx context.Context, b Backend, r *http.Request, _ []byte) (any, error) {
		name, err := connectionName(r)
		if err != nil {
			return nil, err
		}
		return b.Down(ctx, name)
	}},
	{method: http.MethodPost, path: "/v1/explain", limit: maxQuestion, do: func(ctx context.Context, b Backend, _ *http.Request, body []byte) (any, error) {
		flow, err := decodeFlow(body)
		if err != nil {
			return nil, err
		}
		return b.Explain(ctx, flow)
	}},
	{method: http.MethodPost, path: "/v1/policy/check", limit: maxPolicy, do: func(ctx context.Context, b Backend, _ *http.Request, body []byte) (any, error) {
		if err := notEmpty(body); err != nil {
			return nil, err
		}
		return b.PolicyCheck(ctx, body)
	}},
	{method: http.MethodPost, path: "/v1/policy/install", limit: maxPolicy, do: func(ctx context.Context, b Backend, _ *http.Request, body []byte) (any, error) {
		if err := notEmpty(body); err != nil {
			return nil, err
		}
		return b.PolicyInstall(ctx, body)
	}},
	{method: http.MethodGet, path: "/v1/audit", limit: 0, do: func(ctx context.Context, b Backend, r *http.Request, _ []byte) (any, error) {
		n, err := count(r)
		if err != nil {
			return nil, err
		}
		return list(b.AuditTail(ctx, n))
	}},
	{method: http.MethodGet, path: "/v1/counters", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return b.Counters(ctx)
	}},
	{method: http.MethodPost, path: "/v1/redirect", limit: maxQuestion, do: func(ctx context.Context, b Backend, _ *http.Request, body []byte) (any, error) {
		req, err := decodeRedirect(body)
		if err != nil {
			return nil, err
		}
		return b.Redirect(ctx, req)
	}},
	{method: http.MethodGet, path: "/v1/ppk", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return list(b.PPKs(ctx))
	}},
	{method: http.MethodPost, path: "/v1/ppk/{name}", limit: maxSecret, do: func(ctx context.Context, b Backend, r *http.Request, body []byte) (any, error) {
		defer clear(body)
		id, err := ppkID(r)
		if err != nil {
			return nil, err
		}
		return b.PPKAdd(ctx, id, body, r.URL.Query().Get("replace") == "true")
	}},
	{method: http.MethodPost, path: "/v1/ppk/{name}/remove", limit: 0, do: func(ctx context.Context, b Backend, r *http.Request, _ []byte) (any, error) {
		id, err := ppkID(r)
		if err != nil {
			return nil, err
		}
		return b.PPKRemove(ctx, id)
	}},
	{method: http.MethodPost, path: "/v1/join", limit: maxQuestion, stream: (*Server).join},
	{method: http.MethodPost, path: "/v1/reload", limit: 0, do: func(ctx context.Context, b Backend, _ *http.Request, _ []byte) (any, error) {
		return struct {
			OK bool `json:"ok"`
		}{true}, b.Reload(ctx)
	}},
}

// list makes an empty list of no list: JSON [] is easier to use than null.
func list[T any](v []T, err error) (any, error) {
	if v == nil {
		v = []T{}
	}
	return v, err
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			if rt.stream != nil {
				rt.stream(s, w, r)
				return
			}
			s.serve(w, r, &rt)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localsocket.From(r.Context()).May(s.own, s.gid) {
			s.opt.Log("control API: caller denied", "caller", Caller(r.Context()), "path", r.URL.Path)
			s.fail(w, r, &Error{
				Kind: KindDenied, Code: "denied", Title: "You may not use the control API",
				Detail: "expected root or a member of the group of [control] group", Hint: "use sudo, or ask the administrator to add you to that group",
			})
			return
		}
		select {
		case s.busy <- struct{}{}:
			defer func() { <-s.busy }()
		default:
			s.fail(w, r, &Error{
				Kind: KindUnavailable, Code: "busy", Title: "Too many requests at once",
				Detail: fmt.Sprintf("expected at most %d", maxRequests), Hint: "try again in a moment",
			})
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			s.fail(w, r, noRoute(mux, r))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// noRoute says what is wrong with a request that fits no route.
func noRoute(mux *http.ServeMux, r *http.Request) *Error {
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		other := r.Clone(r.Context())
		other.Method = m
		if _, pattern := mux.Handler(other); pattern != "" {
			return &Error{
				Kind: KindInvalid, Code: "wrong-method", Title: "Wrong method",
				Detail: fmt.Sprintf("expected %s, came %s", m, r.Method), Hint: "see docs/control-api.md",
			}
		}
	}
	return &Error{
		Kind: KindNotFound, Code: "no-such-path", Title: "The control API has no such path",
		Detail: fmt.Sprintf("came %s %.200q", r.Method, r.URL.Path), Hint: "see docs/control-api.md; the command line and the daemon may be of different versions",
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	ctx, cancel := context.WithTimeout(r.Context(), maxWait+requestTime)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, max(rt.limit, 1)))
	if err == nil && rt.limit == 0 && len(body) > 0 {
		err = &Error{Kind: KindInvalid, Code: "body", Title: "The request must have no body"}
	}
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			err = &Error{
				Kind: KindTooLarge, Code: "too-large", Title: "The request is too large",
				Detail: fmt.Sprintf("expected at most %d bytes", rt.limit),
			}
		}
		s.fail(w, r, err)
		return
	}
	v, err := rt.do(ctx, s.opt.Backend, r, body)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.write(w, http.StatusOK, v)
}

// fail answers with an error in the one format.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded):
		e = &Error{Kind: KindTimeout, Code: "timeout", Title: "That took too long", Detail: err.Error()}
	case errors.Is(err, context.Canceled):
		e = &Error{Kind: KindUnavailable, Code: "cancelled", Title: "The request was broken off", Detail: err.Error()}
	default:
		e = &Error{Kind: KindInternal, Code: "internal", Title: "That did not work", Detail: err.Error(), Hint: "see the daemon's log"}
	}
	if e.Kind.status() == http.StatusInternalServerError {
		s.opt.Log("control API: request failed", "path", r.URL.Path, "error", e.Error())
	}
	s.write(w, e.Kind.status(), errorBody{e})
}

func (s *Server) write(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.opt.Log("control API: encoding an answer", "error", err.Error())
		status = http.StatusInternalServerError
		data = []byte(`{"error":{"kind":"internal","code":"internal","title":"The answer could not be encoded"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(status)
	if _, err := w.Write(append(data, '\n')); err != nil {
		s.opt.Log("control API: caller went away", "error", err.Error())
	}
}

// connectionName reads the {name} of the path.
func connectionName(r *http.Request) (string, error) {
	name := r.PathValue("name")
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return "", &Error{
			Kind: KindInvalid, Code: "name", Title: "That is no name of a connection",
			Detail: fmt.Sprintf("expected 1 to %d bytes of text, came %.40q", maxName, name), Hint: "see the names with: wardgate connections",
		}
	}
	return name, nil
}

// waitOf reads ?wait=, a duration.
func waitOf(r *http.Request) (time.Duration, error) {
	s := r.URL.Query().Get("wait")
	if s == "" {
		return defaultWait, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxWait {
		return 0, &Error{
			Kind: KindInvalid, Code: "wait", Title: "Wrong time to wait",
			Detail: fmt.Sprintf("expected a duration of 0s to %v such as 10s, came %.40q", maxWait, s),
		}
	}
	return d, nil
}

// count reads ?n=.
func count(r *http.Request) (int, error) {
	s := r.URL.Query().Get("n")
	if s == "" {
		return defaultAudit, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxAudit {
		return 0, &Error{
			Kind: KindInvalid, Code: "n", Title: "Wrong number of records",
			Detail: fmt.Sprintf("expected 1 to %d, came %.40q", maxAudit, s),
		}
	}
	return n, nil
}

func notEmpty(body []byte) error {
	if len(body) == 0 {
		return &Error{Kind: KindInvalid, Code: "body", Title: "The request has no body", Detail: "expected a policy file (JWS)"}
	}
	return nil
}

// decodeStrict decodes one JSON value: no unknown key, nothing behind it.
func decodeStrict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("expected one JSON value, came more behind it")
	}
	return nil
}

// decodeRedirect reads and checks where partners are to go.
func decodeRedirect(body []byte) (RedirectRequest, error) {
	var q RedirectRequest
	err := decodeStrict(body, &q)
	if err == nil && (!q.To.IsValid() || q.To.Is4In6() || q.To.Zone() != "") {
		err = fmt.Errorf("to: expected a plain IPv4 or IPv6 address, came %q", q.To)
	}
	if err != nil {
		return q, &Error{Kind: KindInvalid, Code: "json", Title: "The request is not what was expected", Detail: err.Error(), Hint: "see docs/control-api.md"}
	}
	return q, nil
}

// ppkID reads the name of a key. It becomes a file name.
func ppkID(r *http.Request) (string, error) {
	id := r.PathValue("name")
	ok := id != "" && len(id) <= 63 && id[0] != '-' && id[0] != '.'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return "", &Error{
			Kind: KindInvalid, Code: "ppk-id", Title: "That is no name of a key",
			Detail: fmt.Sprintf("expected 1 to 63 letters, digits, '-', '_' and '.', not beginning with '-' or '.', came %.80q", id),
			Hint:   "write it as the policy's ppk_id has it: wardgate ppk list",
		}
	}
	return id, nil
}

// decodeFlow reads and checks the question of explain.
func decodeFlow(body []byte) (Flow, error) {
	var f Flow
	if err := decodeStrict(body, &f); err != nil {
		return Flow{}, &Error{Kind: KindInvalid, Code: "json", Title: "The request is not what was expected", Detail: err.Error(), Hint: "see docs/control-api.md"}
	}
	return f, f.Check()
}

// Check says what is wrong with a flow.
func (f Flow) Check() error {
	bad := func(format string, args ...any) error {
		return &Error{Kind: KindInvalid, Code: "flow", Title: "That is no flow", Detail: fmt.Sprintf(format, args...)}
	}
	for _, a := range []struct {
		what string
		addr netip.Addr
	}{{"from", f.From}, {"to", f.To}} {
		if !a.addr.IsValid() || a.addr.Is4In6() || a.addr.Zone() != "" {
			return bad("%s: expected a plain IPv4 or IPv6 address, came %q", a.what, a.addr)
		}
	}
	if f.From.Is4() != f.To.Is4() {
		return bad("expected two addresses of the same family, came %v and %v", f.From, f.To)
	}
	switch f.Protocol {
	case "tcp", "udp", "icmp", "icmpv6", "any":
	default:
		if n, err := strconv.Atoi(f.Protocol); err != nil || n < 0 || n > 255 || strconv.Itoa(n) != f.Protocol {
			return bad("protocol: expected tcp, udp, icmp, icmpv6, any or a number of 0 to 255, came %.40q", f.Protocol)
		}
	}
	return nil
}
