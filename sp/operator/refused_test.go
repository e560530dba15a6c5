package operator_test

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/sp/operator"
)

// Names come from outside in URLs, as keys, in archives and (for the client) in answers. None of them leads
// out of the registry.
func TestPathTraversalInNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.want(200, "", "GET", "/v1/registry", "").header.Get("ETag")
	names := []string{
		"../etc/passwd", "members/../../etc/passwd", "members/..", "members/../members/x.toml", "/etc/passwd", "//etc/passwd", "members//x.toml",
		"members/sub/x.toml", `members/..\x.toml`, `..\..\x`, "members/x\x00.toml", "members/.x.toml", "members/x..toml", "members/", "members", "",
		"etc/x.toml", "members/x .toml", "members/x\n.toml", "members/ü.toml", "./members/x.toml", "members/./x.toml", "members/" + strings.Repeat("x", 200) + ".toml",
	}
	for _, name := range names {
		key, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{asJSON, asPatch} {
			body := fmt.Sprintf(`{"files": {%s: "x"}}`, key)
			w.want(400, "bad-name", "POST", "/v1/registry/plan", body, "Content-Type", kind)
			w.want(400, "bad-name", "POST", "/v1/registry/apply", body, "Content-Type", kind, "If-Match", "*")
		}
		if !strings.ContainsAny(name, "\x00") && !strings.HasSuffix(name, "/") && !strings.HasPrefix(name, "./") && name != "" {
			w.want(400, "bad-name", "POST", "/v1/registry/plan", sendTar(t, &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}), "Content-Type", asTar)
		}
		// The client looks, too.
		if _, err := w.client.File(t.Context(), name); err == nil {
			t.Errorf("%q: the client asked for it", name)
		}
	}

	// In the path, as it comes: net/http's client would clean it.
	for _, path := range []string{
		"/v1/registry/files/../../../etc/passwd", "/v1/registry/files/%2e%2e/%2e%2e/etc/passwd", "/v1/registry/files/members/..%2f..%2fetc%2fpasswd",
		"/v1/registry/files/members%2f..%2f..%2fx", "/v1/registry/files//etc/passwd", "/v1/registry/files/members/%2e%2e", "/v1/registry/files/",
		"/v1/registry/files/members/..%5cx.toml", "/v1/registry/files/members/x%00.toml", "/v1/registry/files/members/.x.toml",
		"/v1/registry/files/members/sub/x.toml", "/v1/registry/files/etc/passwd", "/v1/registry/files/members/x%0d%0aSet-Cookie:x.toml",
		"/v1/devices/..%2f..%2fetc", "/v1/devices/../members", "/v1/devices/%2e%2e/revoke", "/v1/devices/.", "/v1/../v1/health", "/v1/./health", "//v1/health", "/v1//health",
		"/v1/services/..%2f..%2fx/ca", "/v1/services/%2e%2e/ca", "/v1/services/x%2f..%2f..%2fx/ca", "/v1/members/..%2fx",
	} {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
			status, body := w.raw(method+" "+path+" HTTP/1.1", "If-Match: *", "Content-Type: application/json")
			if status < 400 || status >= 500 {
				t.Errorf("%s %s: %d %s", method, path, status, body)
			}
		}
	}

	// Archives have more than names.
	for name, h := range map[string]*tar.Header{
		"a symbolic link": {Name: "members/x.toml", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"a hard link":     {Name: "members/x.toml", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"},
		"a device":        {Name: "members/x.toml", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		"another folder":  {Name: "members/sub/", Typeflag: tar.TypeDir, Mode: 0o700},
		"a folder above":  {Name: "../", Typeflag: tar.TypeDir, Mode: 0o700},
		"a pipe":          {Name: "members/x.toml", Typeflag: tar.TypeFifo},
	} {
		if r := w.do("POST", "/v1/registry/plan", sendTar(t, h), "Content-Type", asTar); r.status != 400 || r.code() != "malformed" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}

	if after := w.want(200, "", "GET", "/v1/registry", "").header.Get("ETag"); after != before || len(w.fake.asked) != 0 {
		t.Errorf("the registry went from %s to %s; asked for %q", before, after, w.fake.asked)
	}
}

// A server must not write where it likes either.
func TestPathTraversalInAnswers(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "evil.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"revision": 1, "files": {"members/../../evil.toml": "x"}}`)
	})}}
	s.Start()
	defer s.Close()
	c, err := operator.NewClient(socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Files(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "way into another folder") {
		t.Errorf("%v", err)
	}
}

// raw writes a request line and headers as they are, and returns the status and the answer.
func (w *world) raw(line string, header ...string) (int, string) {
	w.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		w.Fatal(err)
	}
	if _, err := io.WriteString(c, line+"\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"+strings.Join(header, "\r\n")+"\r\n\r\n{}"); err != nil {
		w.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		w.Fatalf("%s: %v", line, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *operator.Options, _ *http.Server) { o.MaxBody = 1 << 20 })
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name               string
		status             int
		code               string
		method, path, body string
		header             []string
	}{
		{"no such path", 404, "no-such-path", "GET", "/v1/nothing", "", nil},
		{"no path at all", 400, "bad-path", "GET", "/", "", nil},
		{"another version", 404, "no-such-path", "GET", "/v2/health", "", nil},
		{"method", 405, "method-not-allowed", "POST", "/v1/health", "", nil},
		{"unknown method", 405, "method-not-allowed", "BREW", "/v1/registry/files", "", nil},
		{"unknown parameter", 400, "bad-parameter", "GET", "/v1/health?colour=green", "", nil},
		{"a parameter twice", 400, "bad-parameter", "GET", "/v1/devices?limit=1&limit=2", "", nil},
		{"a query that is none", 400, "bad-parameter", "GET", "/v1/devices?limit=%zz", "", nil},
		{"limit 0", 400, "bad-parameter", "GET", "/v1/devices?limit=0", "", nil},
		{"limit too large", 400, "bad-parameter", "GET", "/v1/record?limit=1001", "", nil},
		{"no number", 400, "bad-parameter", "GET", "/v1/registry/history?before=-1", "", nil},
		{"no number", 400, "bad-parameter", "GET", "/v1/record?after=1e3", "", nil},
		{"a long name", 400, "bad-parameter", "GET", "/v1/members?after=" + strings.Repeat("x", 129), "", nil},
		{"a revision that was not yet", 404, "not-found", "GET", "/v1/registry/files?revision=99", "", nil},
		{"a revision that is none", 400, "bad-parameter", "GET", "/v1/registry/files?revision=x", "", nil},
		{"half a mark", 400, "bad-parameter", "GET", "/v1/record/verify?seq=1", "", nil},
		{"a mark with a wrong hash", 400, "bad-parameter", "GET", "/v1/record/verify?seq=1&hash=zz", "", nil},
		{"a body where there is none", 400, "malformed", "GET", "/v1/health", "x", nil},
		{"no type", 415, "bad-type", "POST", "/v1/registry/plan", "{}", nil},
		{"another type", 415, "bad-type", "POST", "/v1/registry/plan", "{}", []string{"Content-Type", "text/plain"}},
		{"the type of another file", 415, "bad-type", "PUT", "/v1/registry/files/members/x.toml", "x", []string{"Content-Type", asPEM, "If-None-Match", "*"}},
		{"no JSON", 400, "malformed", "POST", "/v1/registry/plan", "{", []string{"Content-Type", asJSON}},
		{"unknown key", 400, "malformed", "POST", "/v1/registry/plan", `{"colour": {}}`, []string{"Content-Type", asJSON}},
		{"one more key", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {}, "colour": 1}`, []string{"Content-Type", asJSON}},
		{"two values", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {}} {}`, []string{"Content-Type", asJSON}},
		{"a list", 400, "malformed", "POST", "/v1/registry/plan", `[]`, []string{"Content-Type", asJSON}},
		{"files that are none", 400, "malformed", "POST", "/v1/registry/plan", `{"files": []}`, []string{"Content-Type", asJSON}},
		{"a file that is no text", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {"members/x.toml": 1}}`, []string{"Content-Type", asJSON}},
		{"a file that is an object", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {"members/x.toml": {"a": 1}}}`, []string{"Content-Type", asJSON}},
		{"null in a whole registry", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {"members/x.toml": null}}`, []string{"Content-Type", asJSON}},
		{"a file twice", 400, "malformed", "POST", "/v1/registry/plan", `{"files": {"members/x.toml": "a", "members/x.toml": "b"}}`, []string{"Content-Type", asPatch}},
		{"no archive", 400, "malformed", "POST", "/v1/registry/plan", strings.Repeat("x", 1024), []string{"Content-Type", asTar}},
		{"a file twice in an archive", 400, "malformed", "POST", "/v1/registry/plan", sendTar(t, &tar.Header{Name: "members/x.toml", Typeflag: tar.TypeReg}, &tar.Header{Name: "./members/x.toml", Typeflag: tar.TypeReg}), []string{"Content-Type", asTar}},
		{"an empty registry", 422, "registry-refused", "POST", "/v1/registry/plan", `{"files": {"members/x.txt": ""}}`, []string{"Content-Type", asJSON}},
		{"a registry too large", 413, "too-large", "POST", "/v1/registry/plan", `{"files": {"members/x.toml": "` + long + `"}}`, []string{"Content-Type", asJSON}},
		{"a file too large", 413, "too-large", "PUT", "/v1/registry/files/members/x.toml", long + "x", []string{"Content-Type", asTOML, "If-None-Match", "*"}},
		{"no UTF-8", 400, "malformed", "PUT", "/v1/registry/files/members/x.toml", "\xff", []string{"Content-Type", asTOML, "If-None-Match", "*"}},
		{"If-Match of two", 400, "malformed", "DELETE", "/v1/registry/files/members/x.toml", "", []string{"If-Match", `"a", "b"`}},
		{"a weak If-Match", 400, "malformed", "DELETE", "/v1/registry/files/members/x.toml", "", []string{"If-Match", `W/"a"`}},
		{"an If-Match that is none", 400, "malformed", "POST", "/v1/registry/apply", `{"files": {}}`, []string{"Content-Type", asJSON, "If-Match", "r1"}},
		{"an If-Match of no plan", 412, "conflict", "POST", "/v1/registry/apply", `{"files": {}}`, []string{"Content-Type", asJSON, "If-Match", `"r01"`}},
		{"a plan that does not end", 412, "conflict", "POST", "/v1/registry/apply", `{"files": {}}`, []string{"Content-Type", asPatch, "If-Match", `"r9"`}},
		{"unknown key in an order", 400, "malformed", "POST", "/v1/devices/a.devices.example/revoke", `{"reason": "stolen", "colour": 1}`, []string{"Content-Type", asJSON}},
		{"two orders", 400, "malformed", "POST", "/v1/services/group-a/ca", `{} {}`, []string{"Content-Type", asJSON}},
		{"no order", 400, "malformed", "POST", "/v1/services/group-a/ca", "", []string{"Content-Type", asJSON}},
		{"another reason", 400, "malformed", "POST", "/v1/devices/a.devices.example/revoke", `{"reason": "bored"}`, []string{"Content-Type", asJSON}},
		{"an order too large", 413, "too-large", "POST", "/v1/services/group-a/ca", `{"why": "` + strings.Repeat("x", operator.MaxOrder) + `"}`, []string{"Content-Type", asJSON}},
		{"a reason too long", 400, "bad-parameter", "POST", "/v1/services/group-a/ca", `{"why": "` + strings.Repeat("x", 4097) + `"}`, []string{"Content-Type", asJSON}},
		{"a reason with control characters", 400, "bad-parameter", "POST", "/v1/devices/a.devices.example/revoke", `{"reason": "stolen", "why": "\u001b[2J"}`, []string{"Content-Type", asJSON}},
		{"a reason with control characters", 400, "bad-parameter", "DELETE", "/v1/registry/files/members/x.toml?why=%1b", "", []string{"If-Match", "*"}},
		{"a device that there is not", 404, "not-found", "POST", "/v1/devices/x.devices.example/revoke", `{"reason": "stolen"}`, []string{"Content-Type", asJSON}},
		{"a service that there is not", 404, "not-found", "POST", "/v1/services/x/ca", `{}`, []string{"Content-Type", asJSON}},
		{"another site's page", 403, "cross-origin", "POST", "/v1/services/group-a/ca", `{}`, []string{"Content-Type", asJSON, "Origin", "https://evil.example"}},
		{"another site's page", 403, "cross-origin", "DELETE", "/v1/registry/files/members/x.toml", "", []string{"If-Match", "*", "Sec-Fetch-Site", "cross-site"}},
	} {
		r := w.do(c.method, c.path, c.body, c.header...)
		if r.status != c.status || r.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, r.status, r.body, c.status, c.code)
		}
		if c.status == 405 && !strings.Contains(r.header.Get("Allow"), "GET") {
			t.Errorf("%s: Allow %q", c.name, r.header.Get("Allow"))
		}
	}
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	if len(w.fake.states) != 2 || len(w.fake.asked) != 0 {
		t.Errorf("%d revisions, asked for %q", len(w.fake.states), w.fake.asked)
	}
}

// Holes in an archive count as what they hold.
func TestArchiveOfHoles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *operator.Options, _ *http.Server) { o.MaxBody = 64 << 10 })
	// A sparse file of the old GNU form: a header that says 900 000 octets, and no data at all.
	h := make([]byte, 512)
	copy(h, "members/x.toml")
	copy(h[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "00003335640\x0000000000000\x00") // one piece of no length, at the end
	copy(h[483:], "00003335640\x00")                // the real size
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	archive := string(h) + strings.Repeat("\x00", 1024)
	if c, err := tar.NewReader(strings.NewReader(archive)).Next(); err != nil || c.Size != 900_000 {
		t.Fatalf("%+v %v", c, err)
	}
	w.want(400, "malformed", "POST", "/v1/registry/plan", archive, "Content-Type", asTar)
}

// Our own trouble is the log's; the client is told to come again.
func TestTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fake.fail = fs.ErrInvalid
	for _, path := range []string{"/v1/health", "/v1/registry", "/v1/members", "/v1/devices/a.devices.example", "/v1/registry/files"} {
		if r := w.want(503, "unavailable", "GET", path, ""); r.header.Get("Retry-After") == "" || strings.Contains(r.body, "invalid argument") {
			t.Errorf("%s: %v %s", path, r.header, r.body)
		}
	}
}

// What is in the way is said, and is the client's affair.
func TestInTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fake.keys = fmt.Errorf("%w: services/group-a/psk exists", operator.ErrInTheWay)
	if r := w.want(409, "in-the-way", "POST", "/v1/services/group-a/ca", "{}", "Content-Type", asJSON); !strings.Contains(r.body, "psk exists") {
		t.Errorf("%s", r.body)
	}
	if _, err := w.client.MakeServiceKey(t.Context(), "group-a", operator.By{}); !errors.Is(err, operator.ErrInTheWay) {
		t.Errorf("%v", err)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fake.block = make(chan struct{})
	got := make(chan *reply, operator.MaxRequests+1)
	for range operator.MaxRequests + 1 {
		go func() { got <- w.do("GET", "/v1/health", "") }()
	}
	// All but one wait; the one is told so at once.
	if r := <-got; r.status != 503 || r.code() != "busy" || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	close(w.fake.block)
	for range operator.MaxRequests {
		if r := <-got; r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
}

// Whole registries are in memory two at a time; the others wait, and small questions are answered meanwhile.
func TestFewRegistriesAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 4 * operator.MaxHeavy
	w.fake.planned, w.fake.block = make(chan struct{}, n), make(chan struct{})
	files := w.do("GET", "/v1/registry/files", "").body
	files = files[strings.Index(files, `"files"`):]
	got := make(chan int, n)
	for range n {
		go func() { got <- w.do("POST", "/v1/registry/plan", "{"+files, "Content-Type", asJSON).status }()
	}
	for range operator.MaxHeavy {
		<-w.fake.planned
	}
	w.want(200, "", "GET", "/v1/members", "")
	for range n {
		w.fake.block <- struct{}{}
		if status := <-got; status != 200 {
			t.Errorf("%d", status)
		}
	}
	if w.fake.most > operator.MaxHeavy {
		t.Errorf("%d registries at the same time, at most %d", w.fake.most, operator.MaxHeavy)
	}
}

// An order that was begun is carried out, also when the one who gave it goes away.
func TestOperatorGoesAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fake.planned, w.fake.block = make(chan struct{}), make(chan struct{})
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "POST /v1/devices/b.devices.example/revoke HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{\"reason\":\"stolen\"}"); err != nil {
		t.Fatal(err)
	}
	<-w.fake.planned
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	w.want(200, "", "GET", "/v1/members", "") // time for the server to see it
	close(w.fake.block)
	for deadline := time.Now().Add(patience); ; {
		r := into[operator.Record](w, w.want(200, "", "GET", "/v1/record", ""))
		if r.Items[len(r.Items)-1].Event == "revoke" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the order was not carried out: %+v", r)
		}
	}
}

// Clients that do not get on are let go, and others are answered meanwhile.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *operator.Options, s *http.Server) {
		s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = 200*time.Millisecond, 300*time.Millisecond, 200*time.Millisecond
	})
	for name, text := range map[string]string{
		"says nothing":       "",
		"no end of headers":  "GET /v1/health HTTP/1.1\r\nHost: x\r\n",
		"no end of the body": "POST /v1/registry/plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
		"idle":               "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
		"endless chunks":     "POST /v1/services/group-a/ca HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
	} {
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		w.want(200, "", "GET", "/v1/health", "")
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c) // until it is closed
		if err != nil {
			t.Errorf("%s: the connection stays open: %v", name, err)
		}
		if strings.Contains(name, "body") && !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") {
			t.Errorf("%s: %q", name, answer)
		}
	}
	if len(w.fake.asked) != 0 {
		t.Errorf("asked for %q", w.fake.asked)
	}
}

// A header larger than any honest one is refused by the server itself.
func TestHugeHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if status, _ := w.raw("GET /v1/health HTTP/1.1", "X: "+strings.Repeat("x", 32<<10)); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d", status)
	}
}

func TestClientSaysWhyNobodyAnswers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct{ at, want string }{
		{filepath.Join(dir, "no.sock"), "there is no socket"},
		{"http://localhost:1", "expected the path of a socket or https"},
		{"https://u@localhost:1", "expected the path of a socket or https"},
		{"https://localhost:1/x", "expected the path of a socket or https"},
	} {
		k, err := operator.NewClient(c.at, nil)
		if err == nil {
			_, err = k.Health(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.at, err, c.want)
		}
	}
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	k, err := operator.NewClient(dead, nil)
	if err == nil {
		_, err = k.Health(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("%v", err)
	}
	// And a new centre takes the dead one's place.
	n, err := operator.ListenUnix(dead, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("the socket stays behind")
	}
}
