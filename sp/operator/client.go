package operator

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/sp/registry"
)

// maxAnswer bounds what the client reads: a whole registry, in octets.
const maxAnswer = 1 << 30

// Client speaks to a Server. Its errors are *Problem as the server sent them, or wrap ErrUnreachable.
type Client struct {
	base string // before /v1
	at   string // for messages
	http *http.Client
}

var _ API = (*Client)(nil)

// NewClient returns a client of a Unix socket (its path) or of a server (https://HOST:PORT, with the TLS
// configuration that has the client's certificate). Nothing is opened yet.
func NewClient(at string, t *tls.Config) (*Client, error) {
	tr := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader, ResponseHeaderTimeout: writeTime}
	c := &Client{at: at, http: &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if !strings.Contains(at, "://") {
		c.base = "http://operator"
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", at)
		}
		return c, nil
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%w: expected the path of a socket or https://HOST:PORT, came %q", ErrRequest, at)
	}
	c.base = "https://" + u.Host
	tr.TLSClientConfig = t
	return c, nil
}

// question is one request.
type question struct {
	method, path string
	query        url.Values
	header       http.Header
	body         []byte
}

// raw asks, and returns an answer that is no problem.
func (c *Client) raw(ctx context.Context, q question) ([]byte, http.Header, error) {
	to := c.base + q.path
	if len(q.query) > 0 {
		to += "?" + q.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, q.method, to, bytes.NewReader(q.body))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for k, v := range q.header {
		r.Header[k] = v
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: reading the answer: %w", ErrUnreachable, err)
	}
	if len(data) > maxAnswer {
		return nil, nil, fmt.Errorf("%w: expected an answer of at most %d octets, came more", ErrRequest, maxAnswer)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return data, resp.Header, nil
	}
	p := &Problem{}
	if json.Unmarshal(data, p) != nil || p.Code == "" {
		return nil, nil, fmt.Errorf("%w: expected an answer of a centre, came %s; is %s the operators' API?", ErrUnreachable, resp.Status, c.at)
	}
	p.Status = resp.StatusCode
	return nil, nil, p
}

// unreachable says why nobody answers.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: no answer from %s: %w", ErrUnreachable, c.at, ctx.Err())
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no socket %s: the centre is not running, or has another [operators] socket", ErrUnreachable, c.at)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers at %s: the centre is not running, or serves elsewhere", ErrUnreachable, c.at)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: you may not open %s: expected root or a member of the group of [operators] group", ErrDenied, c.at)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// ask asks for JSON. Keys of a newer server are passed over.
func ask[T any](ctx context.Context, c *Client, q question) (*T, error) {
	data, _, err := c.raw(ctx, q)
	if err != nil {
		return nil, err
	}
	out := new(T)
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("%w: the answer is not what was expected: %w", ErrUnreachable, err)
	}
	return out, nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	return ask[T](ctx, c, question{method: http.MethodGet, path: path, query: query})
}

// post sends JSON.
func post[T any](ctx context.Context, c *Client, path string, v any) (*T, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return ask[T](ctx, c, question{method: http.MethodPost, path: path, header: http.Header{"Content-Type": {typeJSON}}, body: body})
}

func (p Page) query() url.Values {
	q := url.Values{}
	if p.After != "" {
		q.Set("after", p.After)
	}
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(limit(p.Limit)))
	}
	return q
}

func numbers(name string, v uint64, n int) url.Values {
	q := Page{Limit: n}.query()
	if v > 0 {
		q.Set(name, strconv.FormatUint(v, 10))
	}
	return q
}

func whyQuery(why string) url.Values {
	if why == "" {
		return nil
	}
	return url.Values{"why": {why}}
}

// Health implements API.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	return get[Health](ctx, c, "/v1/health", nil)
}

// Registry implements API.
func (c *Client) Registry(ctx context.Context) (*Summary, error) {
	return get[Summary](ctx, c, "/v1/registry", nil)
}

// History implements API.
func (c *Client) History(ctx context.Context, before uint64, n int) (*History, error) {
	return get[History](ctx, c, "/v1/registry/history", numbers("before", before, n))
}

// Files implements API.
func (c *Client) Files(ctx context.Context, at *uint64) (*Files, error) {
	q := url.Values{}
	if at != nil {
		q.Set("revision", strconv.FormatUint(*at, 10))
	}
	f, err := get[Files](ctx, c, "/v1/registry/files", q)
	if err != nil {
		return nil, err
	}
	// They are going to be written into a folder: what the server says is not believed.
	for name := range f.Files {
		if p := checkPath(name); p != nil {
			return nil, p
		}
	}
	return f, nil
}

func filePath(path string) string {
	dir, name, _ := strings.Cut(path, "/")
	return "/v1/registry/files/" + url.PathEscape(dir) + "/" + url.PathEscape(name)
}

// File implements API.
func (c *Client) File(ctx context.Context, path string) (*File, error) {
	if p := checkPath(path); p != nil {
		return nil, p
	}
	data, h, err := c.raw(ctx, question{method: http.MethodGet, path: filePath(path)})
	if err != nil {
		return nil, err
	}
	return &File{path, string(data), h.Get("ETag")}, nil
}

// PutFile implements API.
func (c *Client) PutFile(ctx context.Context, path string, text *string, had string, by By) (*Plan, error) {
	if p := checkPath(path); p != nil {
		return nil, p
	}
	q := question{method: http.MethodDelete, path: filePath(path), query: whyQuery(by.Why), header: http.Header{}}
	if text != nil {
		q.method, q.body = http.MethodPut, []byte(*text)
		q.header.Set("Content-Type", kindOf(path))
	}
	if had != "" {
		q.header.Set("If-Match", had)
	} else if text != nil {
		q.header.Set("If-None-Match", "*")
	}
	return ask[Plan](ctx, c, q)
}

// body writes an input.
func (in *Input) body() (kind string, body []byte, err error) {
	if in.Patch != nil {
		body, err = json.Marshal(map[string]any{"files": in.Patch})
		return typePatch, body, err
	}
	files, err := ReadFiles(in.Files)
	if err != nil {
		return "", nil, err
	}
	body, err = json.Marshal(map[string]any{"files": files})
	return typeJSON, body, err
}

// Plan implements API.
func (c *Client) Plan(ctx context.Context, in Input) (*Plan, error) {
	kind, body, err := in.body()
	if err != nil {
		return nil, err
	}
	return ask[Plan](ctx, c, question{method: http.MethodPost, path: "/v1/registry/plan", header: http.Header{"Content-Type": {kind}}, body: body})
}

// Apply implements API.
func (c *Client) Apply(ctx context.Context, in Input, from *uint64, by By) (*Plan, error) {
	kind, body, err := in.body()
	if err != nil {
		return nil, err
	}
	tag := "*"
	if from != nil {
		tag = registryETag(*from)
	}
	return ask[Plan](ctx, c, question{
		method: http.MethodPost, path: "/v1/registry/apply", query: whyQuery(by.Why),
		header: http.Header{"Content-Type": {kind}, "If-Match": {tag}}, body: body,
	})
}

// Members implements API.
func (c *Client) Members(ctx context.Context, p Page) (*List[MemberItem], error) {
	return get[List[MemberItem]](ctx, c, "/v1/members", p.query())
}

// Member implements API.
func (c *Client) Member(ctx context.Context, name string) (*Member, error) {
	return get[Member](ctx, c, "/v1/members/"+url.PathEscape(name), nil)
}

// Devices implements API.
func (c *Client) Devices(ctx context.Context, p Page) (*List[registry.Device], error) {
	return get[List[registry.Device]](ctx, c, "/v1/devices", p.query())
}

// Device implements API.
func (c *Client) Device(ctx context.Context, name string) (*Device, error) {
	return get[Device](ctx, c, "/v1/devices/"+url.PathEscape(name), nil)
}

// Services implements API.
func (c *Client) Services(ctx context.Context, p Page) (*List[ServiceItem], error) {
	return get[List[ServiceItem]](ctx, c, "/v1/services", p.query())
}

// Service implements API.
func (c *Client) Service(ctx context.Context, name string) (*Service, error) {
	return get[Service](ctx, c, "/v1/services/"+url.PathEscape(name), nil)
}

// Contracts implements API.
func (c *Client) Contracts(ctx context.Context, p Page) (*List[registry.Contract], error) {
	return get[List[registry.Contract]](ctx, c, "/v1/contracts", p.query())
}

// Contract implements API.
func (c *Client) Contract(ctx context.Context, name string) (*Contract, error) {
	return get[Contract](ctx, c, "/v1/contracts/"+url.PathEscape(name), nil)
}

// RevokeDevice implements API.
func (c *Client) RevokeDevice(ctx context.Context, device, reason string, by By) (*Revocation, error) {
	return post[Revocation](ctx, c, "/v1/devices/"+url.PathEscape(device)+"/revoke", RevokeOrder{reason, by.Why})
}

// MakeServiceKey implements API.
func (c *Client) MakeServiceKey(ctx context.Context, service string, by By) (*Made, error) {
	return post[Made](ctx, c, "/v1/services/"+url.PathEscape(service)+"/ca", Order{by.Why})
}

// ServiceCAs implements API.
func (c *Client) ServiceCAs(ctx context.Context, service string) (*CAs, error) {
	return get[CAs](ctx, c, "/v1/services/"+url.PathEscape(service)+"/ca", nil)
}

// Record implements API.
func (c *Client) Record(ctx context.Context, after uint64, n int) (*Record, error) {
	return get[Record](ctx, c, "/v1/record", numbers("after", after, n))
}

// VerifyRecord implements API.
func (c *Client) VerifyRecord(ctx context.Context, from Mark) (Mark, error) {
	q := url.Values{}
	if from.Seq > 0 {
		q.Set("seq", strconv.FormatUint(from.Seq, 10))
		q.Set("hash", from.Hash)
	}
	m, err := get[Mark](ctx, c, "/v1/record/verify", q)
	if err != nil {
		return Mark{}, err
	}
	return *m, nil
}

// CRLs implements API.
func (c *Client) CRLs(ctx context.Context) (*CRLs, error) { return get[CRLs](ctx, c, "/v1/crls", nil) }
