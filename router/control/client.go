package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer bounds what the client reads: the longest audit tail.
const maxAnswer = 64 << 20

// DefaultSocket is where the daemon listens unless configured otherwise.
const DefaultSocket = "/run/wardgate/control.sock"

// Client speaks to a daemon. It implements Backend. Errors are *Error as the daemon sent them, or
// wrap ErrUnreachable.
type Client struct {
	socket string
	http   *http.Client
}

var _ Backend = (*Client)(nil)

// NewClient returns a client for the socket; nothing is opened yet.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxHeader,
			ResponseHeaderTimeout:  maxWait + requestTime,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// call makes one request; body may be nil.
func call[T any](ctx context.Context, c *Client, method, path string, body []byte) (T, error) {
	var out T
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out, answered(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return out, fmt.Errorf("%w: reading the answer: %w", ErrUnreachable, err)
	}
	if len(data) > maxAnswer {
		return out, fmt.Errorf("control: the answer has more than %d bytes", maxAnswer)
	}
	// Not strict: a newer daemon may say more than this client knows.
	if err := json.Unmarshal(data, &out); err != nil {
		return out, fmt.Errorf("control: the daemon's answer is not what was expected: %w", err)
	}
	return out, nil
}

// send makes a request.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://wardgate"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return resp, nil
}

// answered is the error of an answer that is not 200.
func answered(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxQuestion))
	if err != nil {
		return fmt.Errorf("%w: reading the answer: %w", ErrUnreachable, err)
	}
	var e errorBody
	if json.Unmarshal(data, &e) != nil || e.Error == nil {
		return fmt.Errorf("control: the daemon answered %s without saying why", resp.Status)
	}
	return e.Error
}

// unreachable says why nobody answers.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: no answer from %s: %w", ErrUnreachable, c.socket, ctx.Err())
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no socket %s: wardgated is not running, or has another [control] socket", ErrUnreachable, c.socket)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers at %s: wardgated is not running", ErrUnreachable, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: you may not open %s: expected root or a member of the group of [control] group", ErrUnreachable, c.socket)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// Status implements Backend.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return call[*Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Connections implements Backend.
func (c *Client) Connections(ctx context.Context) ([]Connection, error) {
	return call[[]Connection](ctx, c, http.MethodGet, "/v1/connections", nil)
}

// Up implements Backend. It waits until the deadline of ctx, or 30 s without one, at most 60 s.
func (c *Client) Up(ctx context.Context, name string) (*Connection, error) {
	wait := defaultWait
	if at, ok := ctx.Deadline(); ok {
		wait = min(max(time.Until(at), 0), maxWait)
		// The daemon watches the time; the answer itself needs some, too.
		callers := ctx
		longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait+requestTime)
		defer cancel()
		defer context.AfterFunc(callers, func() {
			if errors.Is(callers.Err(), context.Canceled) {
				cancel()
			}
		})()
		ctx = longer
	}
	return call[*Connection](ctx, c, http.MethodPost, "/v1/connections/"+url.PathEscape(name)+"/up?wait="+wait.Round(time.Millisecond).String(), nil)
}

// Down implements Backend.
func (c *Client) Down(ctx context.Context, name string) (*Connection, error) {
	return call[*Connection](ctx, c, http.MethodPost, "/v1/connections/"+url.PathEscape(name)+"/down", nil)
}

// Explain implements Backend.
func (c *Client) Explain(ctx context.Context, flow Flow) (*Explanation, error) {
	if err := flow.Check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(flow)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return call[*Explanation](ctx, c, http.MethodPost, "/v1/explain", body)
}

// PolicyCheck implements Backend.
func (c *Client) PolicyCheck(ctx context.Context, jws []byte) (*PolicyReport, error) {
	return call[*PolicyReport](ctx, c, http.MethodPost, "/v1/policy/check", jws)
}

// PolicyInstall implements Backend.
func (c *Client) PolicyInstall(ctx context.Context, jws []byte) (*PolicyReport, error) {
	return call[*PolicyReport](ctx, c, http.MethodPost, "/v1/policy/install", jws)
}

// AuditTail implements Backend.
func (c *Client) AuditTail(ctx context.Context, n int) ([]AuditRecord, error) {
	return call[[]AuditRecord](ctx, c, http.MethodGet, "/v1/audit?n="+strconv.Itoa(n), nil)
}

// Counters implements Backend.
func (c *Client) Counters(ctx context.Context) (*Counters, error) {
	return call[*Counters](ctx, c, http.MethodGet, "/v1/counters", nil)
}

// Redirect implements Backend.
func (c *Client) Redirect(ctx context.Context, req RedirectRequest) (*RedirectReport, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return call[*RedirectReport](ctx, c, http.MethodPost, "/v1/redirect", body)
}

// PPKs implements Backend.
func (c *Client) PPKs(ctx context.Context) ([]PPK, error) {
	return call[[]PPK](ctx, c, http.MethodGet, "/v1/ppk", nil)
}

// PPKAdd implements Backend.
func (c *Client) PPKAdd(ctx context.Context, id string, secret []byte, replace bool) (*PPK, error) {
	return call[*PPK](ctx, c, http.MethodPost, "/v1/ppk/"+url.PathEscape(id)+"?replace="+strconv.FormatBool(replace), secret)
}

// PPKRemove implements Backend.
func (c *Client) PPKRemove(ctx context.Context, id string) (*PPK, error) {
	return call[*PPK](ctx, c, http.MethodPost, "/v1/ppk/"+url.PathEscape(id)+"/remove", nil)
}

// Reload implements Backend.
func (c *Client) Reload(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/reload", nil)
	return err
}

// Health implements Backend.
func (c *Client) Health(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodGet, "/v1/health", nil)
	return err
}
