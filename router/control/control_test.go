package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

// net/http waits half a second before it closes a connection whose request it did not read whole.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// serve starts a server at a fresh socket and returns its path.
func serve(t *testing.T, b control.Backend) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	s, err := control.Listen(control.ServerOptions{Socket: socket, Backend: b, Log: func(msg string, kv ...any) {
		t.Log(append([]any{msg}, kv...)...)
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return socket
}

func TestRoundTrips(t *testing.T) {
	fake := &controltest.Fake{}
	c := control.NewClient(serve(t, fake))
	ctx := t.Context()
	flow := control.Flow{From: netip.MustParseAddr("10.2.1.9"), To: netip.MustParseAddr("10.1.2.10"), Protocol: "tcp", ToPort: 104}
	direct := &controltest.Fake{}
	for _, r := range []struct {
		name string
		ask  func(control.Backend) (any, error)
	}{
		{"status", func(b control.Backend) (any, error) { return b.Status(ctx) }},
		{"connections", func(b control.Backend) (any, error) { return b.Connections(ctx) }},
		{"up a-b", func(b control.Backend) (any, error) { return b.Up(ctx, "a-b") }},
		{"down a-c", func(b control.Backend) (any, error) { return b.Down(ctx, "a-c") }},
		{"up a/b c%d", func(b control.Backend) (any, error) { return b.Up(ctx, "a/b c%d") }},
		{"explain", func(b control.Backend) (any, error) { return b.Explain(ctx, flow) }},
		{"check", func(b control.Backend) (any, error) { return b.PolicyCheck(ctx, []byte("e30.e30.sig")) }},
		{"install", func(b control.Backend) (any, error) { return b.PolicyInstall(ctx, []byte("e30.e30.sig")) }},
		{"audit", func(b control.Backend) (any, error) { return b.AuditTail(ctx, 2) }},
		{"counters", func(b control.Backend) (any, error) { return b.Counters(ctx) }},
		{"redirect", func(b control.Backend) (any, error) {
			return b.Redirect(ctx, control.RedirectRequest{To: netip.MustParseAddr("203.0.113.20"), Connections: []string{"a-b"}})
		}},
		{"ppk", func(b control.Backend) (any, error) { return b.PPKs(ctx) }},
		{"ppk add", func(b control.Backend) (any, error) { return b.PPKAdd(ctx, "clinic-b", []byte("MDEy"), true) }},
		{"ppk remove", func(b control.Backend) (any, error) { return b.PPKRemove(ctx, "clinic-b") }},
		{"reload", func(b control.Backend) (any, error) { return nil, b.Reload(ctx) }},
		{"health", func(b control.Backend) (any, error) { return nil, b.Health(ctx) }},
	} {
		got, gerr := r.ask(c)
		want, werr := r.ask(direct)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s over the socket: %s", r.name, diff)
		}
		if fmt.Sprint(gerr) != fmt.Sprint(werr) {
			t.Errorf("%s: error %v, want %v", r.name, gerr, werr)
		}
	}
	if diff := cmp.Diff(direct.Calls(), fake.Calls()); diff != "" {
		t.Errorf("calls: %s", diff)
	}
}

func TestErrorsArriveWhole(t *testing.T) {
	for _, kind := range []control.Kind{
		control.KindInvalid, control.KindDenied, control.KindNotFound, control.KindRefused, control.KindTooLarge,
		control.KindToken, control.KindInternal, control.KindUnavailable, control.KindTimeout, "of the future",
	} {
		want := &control.Error{Kind: kind, Code: "some-code", Title: "Title", Detail: "expected x, came y", Hint: "do z"}
		c := control.NewClient(serve(t, &controltest.Fake{Err: fmt.Errorf("wrapped: %w", want)}))
		_, err := c.Status(t.Context())
		var got *control.Error
		if !errors.As(err, &got) || *got != *want {
			t.Errorf("%s: got %#v", kind, err)
		}
	}
	c := control.NewClient(serve(t, &controltest.Fake{Err: errors.New("the disk is full")}))
	_, err := c.Status(t.Context())
	var got *control.Error
	if !errors.As(err, &got) || got.Kind != control.KindInternal || got.Detail != "the disk is full" {
		t.Errorf("plain error: %v", err)
	}
}

// raw makes a request that the client would not make.
func raw(t *testing.T, socket, method, path string, body []byte) (int, control.Error, []byte) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Error control.Error }
	if err := json.Unmarshal(data, &e); err != nil && len(data) > 0 && data[0] != '[' {
		t.Errorf("%s %s: answer is no JSON: %q", method, path, data)
	}
	return resp.StatusCode, e.Error, data
}

func TestBadRequests(t *testing.T) {
	fake := &controltest.Fake{}
	socket := serve(t, fake)
	for _, c := range []struct {
		method, path, body string
		status             int
		code, detail       string
	}{
		{"GET", "/", "", 404, "no-such-path", `"/"`},
		{"GET", "/v2/status", "", 404, "no-such-path", ""},
		{"POST", "/v1/status", "", 400, "wrong-method", "expected GET, came POST"},
		{"GET", "/v1/connections/a-b/up", "", 400, "wrong-method", "expected POST"},
		{"DELETE", "/v1/connections", "", 400, "wrong-method", ""},
		{"GET", "/v1/status", "x", 400, "body", ""},
		{"GET", "/v1/status", "xx", 413, "too-large", ""},
		{"POST", "/v1/connections/" + strings.Repeat("n", 129) + "/up", "", 400, "name", ""},
		{"POST", "/v1/connections/%ff/down", "", 400, "name", ""},
		{"POST", "/v1/connections/a-b/up?wait=soon", "", 400, "wait", `"soon"`},
		{"POST", "/v1/connections/a-b/up?wait=2h", "", 400, "wait", ""},
		{"POST", "/v1/connections/a-b/up?wait=-1s", "", 400, "wait", ""},
		{"GET", "/v1/audit?n=0", "", 400, "n", ""},
		{"GET", "/v1/audit?n=1000000", "", 400, "n", ""},
		{"GET", "/v1/audit?n=x", "", 400, "n", ""},
		{"POST", "/v1/policy/check", "", 400, "body", ""},
		{"POST", "/v1/policy/install", "", 400, "body", ""},
		{"POST", "/v1/explain", "", 400, "json", ""},
		{"POST", "/v1/explain", "{", 400, "json", ""},
		{"POST", "/v1/explain", `{"from":"10.2.1.9","to":"10.1.2.10","protocol":"tcp","port":1}`, 400, "json", `"port"`},
		{"POST", "/v1/explain", `{"from":"10.2.1.9","to":"10.1.2.10","protocol":"tcp"}{}`, 400, "json", "more behind"},
		{"POST", "/v1/explain", `{"from":"10.2.1","to":"10.1.2.10","protocol":"tcp"}`, 400, "json", ""},
		{"POST", "/v1/explain", `{"from":"","to":"10.1.2.10","protocol":"tcp"}`, 400, "flow", "from"},
		{"POST", "/v1/explain", `{"from":"fe80::1%lo","to":"::1","protocol":"tcp"}`, 400, "flow", "from"},
		{"POST", "/v1/explain", `{"from":"10.2.1.9","to":"::1","protocol":"tcp"}`, 400, "flow", "same family"},
		{"POST", "/v1/explain", `{"from":"10.2.1.9","to":"10.1.2.10","protocol":"007"}`, 400, "flow", "protocol"},
		{"POST", "/v1/explain", `{"from":"10.2.1.9","to":"10.1.2.10","protocol":"tcp","to_port":70000}`, 400, "json", ""},
		{"POST", "/v1/explain", strings.Repeat(" ", 64<<10+1), 413, "too-large", "65536"},
		{"POST", "/v1/redirect", `{}`, 400, "json", "to: expected"},
		{"POST", "/v1/redirect", `{"to":"::ffff:10.1.1.1"}`, 400, "json", "to: expected"},
		{"POST", "/v1/redirect", `{"to":"10.1.1.1","from":"10.1.1.2"}`, 400, "json", `"from"`},
		{"POST", "/v1/ppk/..%2fpolicy.jws", "x", 400, "ppk-id", "../policy.jws"},
		{"POST", "/v1/ppk/.x", "x", 400, "ppk-id", ""},
		{"POST", "/v1/ppk/-x/remove", "", 400, "ppk-id", ""},
		{"POST", "/v1/ppk/" + strings.Repeat("n", 64), "x", 400, "ppk-id", ""},
		{"POST", "/v1/ppk/x", strings.Repeat("x", 4<<10+1), 413, "too-large", "4096"},
		{"POST", "/v1/policy/check", strings.Repeat("x", 33<<20+1), 413, "too-large", ""},
	} {
		status, e, _ := raw(t, socket, c.method, c.path, []byte(c.body))
		if status != c.status || e.Code != c.code || !strings.Contains(e.Detail, c.detail) || e.Title == "" {
			t.Errorf("%s %.60s %.60q: %d %+v; want %d %s with %q", c.method, c.path, c.body, status, e, c.status, c.code, c.detail)
		}
	}
	if calls := fake.Calls(); len(calls) > 0 {
		t.Errorf("%d bad requests reached the router", len(calls))
	}
}

func TestEmptyListIsAList(t *testing.T) {
	socket := serve(t, &controltest.Fake{Answer: &control.Status{}})
	if _, _, data := raw(t, socket, "GET", "/v1/connections", nil); strings.TrimSpace(string(data)) != "[]" {
		t.Errorf("got %q, want []", data)
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]string{filepath.Join(dir, "none.sock"): "there is no socket", dead: "not running"} {
		_, err := control.NewClient(path).Status(t.Context())
		if !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	// The dead daemon's socket is replaced; a living one's, or a file, is not.
	s, err := control.Listen(control.ServerOptions{Socket: dead, Backend: &controltest.Fake{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := control.Listen(control.ServerOptions{Socket: dead, Backend: &controltest.Fake{}}); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(control.ServerOptions{Socket: file, Backend: &controltest.Fake{}}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if _, err := control.Listen(control.ServerOptions{Socket: filepath.Join(dir, "g"), Group: "no-such-group-here", Backend: &controltest.Fake{}}); err == nil || !strings.Contains(err.Error(), "groupadd") {
		t.Errorf("unknown group: %v", err)
	}
}

// TestCallers: the kernel's word decides, not the socket's mode.
func TestCallers(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("root is needed to become somebody else")
		}
		t.Skip("root is needed to become somebody else")
	}
	const gid = 45678
	dir, err := os.MkdirTemp("", "wardgate-control") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "c.sock")
	fake := &caller{}
	s, err := control.Listen(control.ServerOptions{Socket: socket, Group: fmt.Sprint(gid), Backend: fake})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	defer func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	}()
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != 0o660 || !ok || st.Gid != gid {
		t.Errorf("socket has mode %v and owner %+v", info.Mode(), st)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		may      bool
	}{
		{"root", 0, 0, nil, true},
		{"stranger", 12345, 12345, []uint32{1, 2, 3}, false},
		{"group is the primary one", 12345, gid, nil, true},
		{"group among others", 12345, 12345, []uint32{7, gid, 9}, true},
	} {
		status, body, err := askAs(socket, c.uid, c.gid, c.groups)
		if err != nil {
			t.Fatal(err)
		}
		if (status == 200) != c.may || (!c.may && status != 403) {
			t.Errorf("%s: %d %s, want %v", c.name, status, body, c.may)
		}
		if c.may && !strings.Contains(fake.last, fmt.Sprintf("(uid %d, pid %d)", c.uid, os.Getpid())) {
			t.Errorf("%s: caller is %q", c.name, fake.last)
		}
	}
}

type caller struct {
	controltest.Fake
	last string
}

func (c *caller) Health(ctx context.Context) error {
	c.last = control.Caller(ctx)
	return nil
}

func TestBusy(t *testing.T) {
	socket := serve(t, &controltest.Fake{Block: true})
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 64)
	for range 40 {
		go func() {
			_, err := control.NewClient(socket).Status(ctx)
			results <- err
		}()
	}
	busy := 0
	for range 8 { // 40 callers, 32 places: eight are sent away, the others wait
		var e *control.Error
		if err := <-results; errors.As(err, &e) && e.Code == "busy" {
			busy++
		} else {
			t.Errorf("got %v", err)
		}
	}
	if busy != 8 {
		t.Errorf("%d callers sent away, want 8", busy)
	}
	cancel()
	for range 32 {
		if err := <-results; !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

func TestUpWaits(t *testing.T) {
	socket := serve(t, &controltest.Fake{Block: true})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := control.NewClient(socket).Up(ctx, "a-b")
	var e *control.Error
	if !errors.As(err, &e) || e.Kind != control.KindTimeout {
		t.Errorf("got %v, want the daemon's own timeout", err)
	}
}

// TestDocumented: docs/control-api.md lists the routes that exist, and the kinds.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "control-api.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	var want []string
	for _, r := range control.Routes() {
		want = append(want, r)
		if !strings.Contains(doc, "| `"+r+"` |") {
			t.Errorf("docs/control-api.md has no line for %s", r)
		}
	}
	var got []string
	for _, line := range strings.Split(doc, "\n") {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			if name, _, _ := strings.Cut(rest, "`"); strings.Contains(name, " /v1/") {
				got = append(got, name)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes and docs/control-api.md: %s", diff)
	}
	for kind, status := range control.KindStatus() {
		if !strings.Contains(doc, fmt.Sprintf("| `%s` | %d |", kind, status)) {
			t.Errorf("docs/control-api.md has no line for kind %s with status %d", kind, status)
		}
	}
	if n := reflect.TypeFor[control.Backend]().NumMethod(); n != len(want) {
		t.Errorf("%d methods of Backend, %d routes", n, len(want))
	}
}

// FuzzControl: whatever is asked, the answer is JSON with a status that fits.
func FuzzControl(f *testing.F) {
	f.Add("GET", "/v1/status", []byte{})
	f.Add("POST", "/v1/explain", []byte(`{"from":"10.2.1.9","to":"10.1.2.10","protocol":"tcp","to_port":104}`))
	f.Add("POST", "/v1/connections/a-b/up?wait=1ms", []byte{})
	f.Add("POST", "/v1/connections/%2e%2e/down", []byte{})
	f.Add("POST", "/v1/policy/install", []byte("e30.e30.sig"))
	f.Add("GET", "/v1/audit?n=3&n=4", []byte{})
	f.Add("PUT", "//v1/../v1/status", []byte("x"))
	h := control.HandlerForFuzz(&controltest.Fake{})
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		status, answer, ok := h(method, target, body)
		if !ok {
			return // not a request that net/http would hand on
		}
		if status >= 300 && status < 400 {
			return // the path is cleaned
		}
		var v any
		if err := json.Unmarshal(answer, &v); err != nil {
			t.Fatalf("%s %q: %d, answer is no JSON: %q", method, target, status, answer)
		}
		m, _ := v.(map[string]any)
		if _, failed := m["error"]; failed == (status == 200) {
			t.Fatalf("%s %q: status %d with %s", method, target, status, answer)
		}
		if status == 500 {
			t.Fatalf("%s %q: internal error %s", method, target, answer)
		}
	})
}

// FuzzFlow: what decodes is a question that makes sense.
func FuzzFlow(f *testing.F) {
	f.Add([]byte(`{"from":"10.2.1.9","to":"10.1.2.10","protocol":"tcp","from_port":1,"to_port":104}`))
	f.Add([]byte(`{"from":"::1","to":"fe80::1%x","protocol":"255"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		flow, err := control.DecodeFlow(data)
		if err == nil && (!flow.From.IsValid() || flow.From.Is4() != flow.To.Is4() || flow.Protocol == "") {
			t.Fatalf("accepted %+v", flow)
		}
	})
}
