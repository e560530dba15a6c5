package operator

import (
	"context"
	_ "embed" // openapi.json
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
)

// OpenAPI is the document that describes the API (OpenAPI 3.1, JSON).
//
//go:embed openapi.json
var OpenAPI []byte

// Bounds of requests.
const (
	MaxBody     = 64 << 20 // octets of a whole registry
	maxOrder    = 8 << 10  // octets of an order, such as to revoke a device
	maxWhy      = 4096     // octets of a reason
	maxRequests = 32       // at once
	maxHeavy    = 2        // at once of those with a registry in them
	requestTime = 2 * time.Minute
	retryAfter  = "5" // seconds
)

// Media types.
const (
	typeJSON    = "application/json"
	typeProblem = "application/problem+json"     // RFC 9457
	typePatch   = "application/merge-patch+json" // RFC 7396
	typeTar     = "application/x-tar"
	typeTOML    = "application/toml"
	typePEM     = "application/pem-certificate-chain" // RFC 8555, section 9.1
	typeOpenAPI = "application/vnd.oai.openapi+json;version=3.1"
)

// Options say what a Server serves.
type Options struct {
	Backend Backend
	Log     *slog.Logger
	Now     func() time.Time
	MaxBody int64 // octets of a whole registry; 0: MaxBody
}

// Server is the API over HTTP.
type Server struct {
	opt   Options
	api   *Local
	mux   *http.ServeMux
	busy  chan struct{}
	heavy chan struct{}
}

// New makes a server; UnixServer and TLSServer serve it.
func New(o Options) *Server {
	if o.MaxBody == 0 {
		o.MaxBody = MaxBody
	}
	s := &Server{opt: o, api: &Local{o.Backend, o.Now}, mux: http.NewServeMux(), busy: make(chan struct{}, maxRequests), heavy: make(chan struct{}, maxHeavy)}
	for i := range routes {
		rt := &routes[i]
		s.mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, rt) })
	}
	return s
}

// request is what a route is given.
type request struct {
	*http.Request
	api   *Local
	query url.Values
	kind  string // media type of the body
	body  []byte
	most  int64 // octets of a registry
	by    By
}

// answer is what a route gives back.
type answer struct {
	status int    // 0: 200
	kind   string // media type; empty: JSON of value
	raw    []byte
	value  any
	etag   string
}

// handler judges the caller, then the request, then serves it.
func (s *Server) handler(who func(*http.Request) caller) http.Handler {
	// A browser with an operator's certificate must not do what another site's page says.
	origin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := who(r)
		if c.refused != nil {
			s.opt.Backend.Refused(r.Context(), Refusal{Who: c.who, What: clip(r.Method + " " + r.URL.Path), Where: c.where, Code: c.refused.Code, Expected: c.refused.Expected, Came: c.refused.Came})
			s.fail(w, r, c.refused)
			return
		}
		if err := origin.Check(r); err != nil {
			s.fail(w, r, problem(http.StatusForbidden, CodeOrigin, "a request that no other site's page made", "one from "+certs.Quote(r.Header.Get("Origin")), "use the console, or a program"))
			return
		}
		select {
		case s.busy <- struct{}{}:
			defer func() { <-s.busy }()
		default:
			s.fail(w, r, problem(http.StatusServiceUnavailable, CodeBusy, "at most "+strconv.Itoa(maxRequests)+" requests at once", "one more", "ask again"))
			return
		}
		if p := s.route(r); p != nil {
			s.fail(w, r, p)
			return
		}
		s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

type callerKey struct{}

func clip(s string) string { return certs.Quote(s[:min(len(s), 200)]) }

// route says what is wrong with a request's path or method. The path is judged as it came: ServeMux would
// clean it and redirect, and nothing here has a name with a way out in it.
func (s *Server) route(r *http.Request) *Problem {
	for part := range strings.SplitSeq(strings.TrimPrefix(r.URL.Path, "/"), "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\\x00") {
			return problem(http.StatusBadRequest, CodeBadPath, "a plain path", clip(r.URL.Path), "see openapi.json")
		}
	}
	if _, pattern := s.mux.Handler(r); pattern != "" {
		return nil
	}
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		other := *r
		other.Method = m
		if _, pattern := s.mux.Handler(&other); pattern != "" {
			allow = append(allow, m)
		}
	}
	if len(allow) == 0 {
		return problem(http.StatusNotFound, CodeNoPath, "a path of openapi.json", clip(r.URL.Path), "see openapi.json; client and centre may be of different versions")
	}
	p := problem(http.StatusMethodNotAllowed, CodeMethod, strings.Join(allow, " or "), clip(r.Method), "")
	p.allow = strings.Join(allow, ", ")
	return p
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	ctx := r.Context()
	if rt.method != http.MethodGet {
		// What was begun is done, also when the operator goes away: nothing is left in between.
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	if rt.heavy() {
		select {
		case s.heavy <- struct{}{}:
			defer func() { <-s.heavy }()
		case <-ctx.Done():
			s.fail(w, r, problem(http.StatusServiceUnavailable, CodeBusy, "at most "+strconv.Itoa(maxHeavy)+" registries at once", "one more", "ask again"))
			return
		}
	}
	q, p := s.read(w, r, rt)
	if p == nil {
		q.Request = r.WithContext(ctx)
		a, err := rt.do(q)
		if err == nil {
			s.send(w, r, a)
			return
		}
		p = problemOf(err)
	}
	s.fail(w, r, p)
}

// read judges query, media type and body.
func (s *Server) read(w http.ResponseWriter, r *http.Request, rt *route) (*request, *Problem) {
	c, _ := r.Context().Value(callerKey{}).(caller)
	q := &request{Request: r, api: s.api, most: s.opt.MaxBody, by: By{Who: c.who}}
	var err error
	if q.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return nil, problem(http.StatusBadRequest, CodeParameter, "a query of parameters", certs.Quote(err.Error()), "see openapi.json")
	}
	for name, values := range q.query {
		if !slices.Contains(rt.query, name) || len(values) != 1 {
			return nil, problem(http.StatusBadRequest, CodeParameter, "parameters of openapi.json, each once", certs.Quote(name), "see openapi.json")
		}
	}
	q.by.Why = q.query.Get("why")
	if rt.limit == 0 {
		// Also of a length that is not told.
		if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
			return nil, problem(http.StatusBadRequest, CodeMalformed, "no body", "one", "")
		}
		return q, checkWhy(q.by.Why)
	}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	q.kind = strings.ToLower(strings.TrimSpace(kind))
	if !slices.Contains(rt.kinds, q.kind) {
		return nil, problem(http.StatusUnsupportedMediaType, CodeType, "Content-Type "+strings.Join(rt.kinds, ", "), certs.Quote(r.Header.Get("Content-Type")), "")
	}
	most := rt.limit
	if most == MaxBody {
		most = s.opt.MaxBody
	}
	q.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if p := readProblem(err, most); p != nil {
		return nil, p
	}
	return q, checkWhy(q.by.Why)
}

func (s *Server) send(w http.ResponseWriter, r *http.Request, a *answer) {
	h := w.Header()
	if a.etag != "" {
		h.Set("ETag", a.etag)
		if r.Method == http.MethodGet && slices.Contains(etags(r.Header.Get("If-None-Match")), a.etag) {
			s.write(w, http.StatusNotModified, nil)
			return
		}
	}
	status, raw, kind := a.status, a.raw, a.kind
	if status == 0 {
		status = http.StatusOK
	}
	if kind == "" {
		var err error
		if raw, err = json.Marshal(a.value); err != nil {
			s.fail(w, r, problemOf(err))
			return
		}
		raw, kind = append(raw, '\n'), typeJSON
	}
	h.Set("Content-Type", kind)
	s.write(w, status, raw)
}

// fail answers with a problem, and closes the connection where a body may still be coming.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, p *Problem) {
	if p.cause != nil {
		s.opt.Log.Error("an operator's request failed", "what", clip(r.Method+" "+r.URL.Path), "error", p.cause)
	}
	h := w.Header()
	h.Del("ETag")
	h.Set("Content-Type", typeProblem)
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter)
	}
	body, err := json.Marshal(p)
	if err != nil {
		s.opt.Log.Error("a problem cannot be told", "error", err)
	}
	s.write(w, p.Status, append(body, '\n'))
}

func (s *Server) write(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.opt.Log.Debug("an operator went away", "error", err)
	}
}

// etags splits a header of entity tags; weak ones count as strong (RFC 9110, section 13.1.2).
func etags(header string) []string {
	var out []string
	for t := range strings.SplitSeq(header, ",") {
		out = append(out, strings.TrimPrefix(strings.TrimSpace(t), "W/"))
	}
	return out
}
