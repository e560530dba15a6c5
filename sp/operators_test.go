package sp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp"
	"wardgate/sp/operator"
	"wardgate/sp/operator/operatortest"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// desk is a running centre with its operators' API.
type desk struct {
	*instance
	doc    *operatortest.Document
	http   *http.Client // over the socket
	client *operator.Client
	tls    string // address of the TLS listener
}

// startOperators starts a centre that serves operators.
func (w *world) startOperators() *desk {
	w.Helper()
	dir := must(os.MkdirTemp("", "operators"))(w) // names of sockets are short
	w.Cleanup(func() { os.RemoveAll(dir) })
	w.cfg.Operators.Socket = filepath.Join(dir, "o.sock")
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now, Log: slog.New(&logger{slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}), w.waits})}))(w)
	l := must(c.Listen(w.context()))(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, l) }()
	i := &instance{Centre: c, w: w, addr: l.Devices.Addr().String(), status: l.Status.Addr().String()}
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("serve: %v", err)
		}
		if err := c.Close(); err != nil {
			w.Errorf("close: %v", err)
		}
		if _, err := os.Stat(w.cfg.Operators.Socket); err == nil {
			w.Error("the socket stays behind")
		}
	})
	w.Cleanup(i.stop)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.cfg.Operators.Socket)
	}}
	w.Cleanup(tr.CloseIdleConnections)
	d := &desk{instance: i, doc: operatortest.Parse(w), http: &http.Client{Transport: tr, Timeout: patience}, client: must(operator.NewClient(w.cfg.Operators.Socket, nil))(w)}
	if l.OperatorsTLS != nil {
		d.tls = "https://" + l.OperatorsTLS.Addr().String()
	}
	return d
}

// get asks over the socket, and holds the answer against the document.
func (d *desk) get(path string) []byte {
	d.w.Helper()
	return d.send(http.StatusOK, http.MethodGet, path, nil, nil)
}

func (d *desk) send(want int, method, path string, header http.Header, body []byte) []byte {
	d.w.Helper()
	r := must(http.NewRequestWithContext(d.w.context(), method, "http://operator"+path, bytes.NewReader(body)))(d.w)
	for k, v := range header {
		r.Header[k] = v
	}
	res := must(d.http.Do(r))(d.w)
	defer res.Body.Close()
	data := must(io.ReadAll(res.Body))(d.w)
	d.doc.Answer(d.w, method, r.URL, res.StatusCode, res.Header, data)
	if res.StatusCode != want {
		d.w.Errorf("%s %s: %d %s, want %d", method, path, res.StatusCode, data, want)
	}
	return data
}

// input is the content as files.
func (d *desk) input() operator.Input {
	d.w.Helper()
	dir := d.w.TempDir()
	must2(sp.Export(dir, d.w.registry()))(d.w)
	return operator.Input{Files: os.DirFS(dir)}
}

// Operators change the registry while devices wait, and what they did is on the record under their names.
func TestOperators(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := w.startOperators()
		ctx := w.context()
		me := fmt.Sprintf("(uid %d, pid %d)", os.Getuid(), os.Getpid())
		p := must(d.client.Plan(ctx, d.input()))(t)
		if p.From != 0 || p.Applied != 0 || len(p.Affected) != 3 || !strings.Contains(p.Text, "hospital-a") {
			t.Errorf("plan: %+v", p)
		}
		if p = must(d.client.Apply(ctx, d.input(), &p.From, operator.By{Who: "somebody else", Why: "the beginning"}))(t); p.Applied != 1 {
			t.Errorf("apply: %+v", p)
		}
		a, b := w.devices[devA], w.devices[devB]
		_, tagB := d.policy(b, "")
		svc, r := d.enrol(b, "group-a")
		if svc == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if r := d.do(&b.tls, http.MethodPost, "/v1/report", http.Header{"Content-Type": {"application/json"}},
			[]byte(`{"version":"1","policy_serial":7,"not_after":"2026-04-02T00:00:00Z","connections":[{"name":"a-b","up":true}],"errors":[{"at":"2026-04-01T00:00:00Z","code":"x","text":"y"}]}`)); r.status != http.StatusNoContent {
			t.Fatalf("%d %s", r.status, r.body)
		}
		d.settled()

		// Whoever was overtaken is told so, and nothing changes.
		k := slices.IndexFunc(w.content.Contracts, func(c registry.Contract) bool { return c.Name == "a-b" })
		w.content.Contracts[k].Title = "renamed"
		in := d.input()
		p = must(d.client.Plan(ctx, in))(t)
		must(d.client.PutFile(ctx, "members/clinic-d.toml", ptr("title = \"Clinic D\"\n"), "", operator.By{Why: "joined"}))(t)
		if _, err := d.client.Apply(ctx, in, &p.From, operator.By{}); !errors.Is(err, operator.ErrConflict) || !strings.Contains(err.Error(), "make the plan again") {
			t.Errorf("overtaken: %v", err)
		}

		// One file changes, and the device that waits has its policy.
		waiting := make(chan *reply, 1)
		go func() { waiting <- d.poll(&b.tls, tagB, "50") }()
		f := must(d.client.File(ctx, "contracts/a-b.toml"))(t)
		text := strings.Replace(f.Text, "11112", "11113", 2)
		must(d.client.PutFile(ctx, f.Path, &text, f.ETag, operator.By{Why: "another port"}))(t)
		if r := <-waiting; r.status != http.StatusOK {
			t.Errorf("the device that waited: %d %s", r.status, r.body)
		}
		if _, err := d.client.PutFile(ctx, f.Path, &text, f.ETag, operator.By{}); !errors.Is(err, operator.ErrConflict) {
			t.Errorf("an old ETag: %v", err)
		}

		shown := must(d.client.Device(ctx, devB))(t)
		if shown.Policy == nil || len(shown.Certificates) != 1 || shown.Report == nil || shown.Report.PolicySerial != 7 || len(shown.Report.Errors) != 1 || len(shown.Contracts) != 1 || len(shown.Memberships) != 1 {
			t.Errorf("device: %+v", shown)
		}
		for _, path := range []string{
			"/v1/health", "/v1/registry", "/v1/registry/history", "/v1/registry/files", "/v1/registry/files?revision=1", "/v1/members", "/v1/members/hospital-a",
			"/v1/devices", "/v1/devices/" + devB, "/v1/services", "/v1/services/group-a", "/v1/services/group-a/ca", "/v1/contracts", "/v1/contracts/a-b", "/v1/record?limit=1000", "/v1/record/verify", "/v1/crls",
		} {
			d.get(path)
		}

		// Revoked, the device is out, and the list names its certificate.
		_, tagA := d.policy(a, "")
		var done operator.Revocation
		if body := d.send(http.StatusOK, http.MethodPost, "/v1/devices/"+devB+"/revoke", http.Header{"Content-Type": {"application/json"}}, []byte(`{"reason":"stolen","why":"van broken into"}`)); json.Unmarshal(body, &done) != nil || done.Certificates != 1 || !slices.Equal(done.Peers, []string{devA}) {
			t.Errorf("revoke: %s", body)
		}
		if doc, _ := d.policy(a, tagA); connections(doc) != "a-c" {
			t.Errorf("a's connections %q", connections(doc))
		}
		if r := d.poll(&b.tls, "", "0"); r.status != http.StatusForbidden || r.problem(t) != "device-revoked" {
			t.Errorf("b: %d %s", r.status, r.body)
		}
		lists := must(d.client.CRLs(ctx))(t)
		if !slices.ContainsFunc(lists.Items, func(l operator.CRL) bool {
			return l.Service == "group-a" && l.Entries == 1 && len(must(certs.ParseCRLs([]byte(l.PEM)))(t)) == 1
		}) {
			t.Errorf("lists: %+v", lists)
		}

		var made operator.Made
		if body := d.send(http.StatusOK, http.MethodPost, "/v1/services/group-a/ca", http.Header{"Content-Type": {"application/json"}}, []byte(`{}`)); json.Unmarshal(body, &made) != nil || !strings.Contains(made.Made, "group-a") {
			t.Errorf("ca: %s", body)
		}

		if cas := must(d.client.ServiceCAs(ctx, "group-a"))(t); len(cas.Items) != 2 || cas.Items[0].Number != 2 || cas.Items[1].State != "issues" {
			t.Errorf("CAs: %+v", cas)
		}

		// All of it was me: who asks is known from the connection, whatever the request says.
		rec := must(d.client.Record(ctx, 0, 1000))(t)
		for event, n := range map[string]int{"registry-applied": 4, "service-key-made": 1} {
			for i := range rec.Items {
				if e := &rec.Items[i]; e.Event == event {
					n--
					if !strings.HasSuffix(e.Who, me) {
						t.Errorf("%s by %q, want %q", event, e.Who, me)
					}
				}
			}
			if n != 0 {
				t.Errorf("%s: %d missing on the record", event, n)
			}
		}
		mark := must(d.client.VerifyRecord(ctx, operator.Mark{}))(t)
		must(d.client.VerifyRecord(ctx, mark))(t)
		if _, err := d.client.VerifyRecord(ctx, operator.Mark{Seq: 1, Hash: mark.Hash}); !errors.Is(err, operator.ErrDamaged) {
			t.Errorf("another mark: %v", err)
		}
	})
}

func ptr[T any](v T) *T { return &v }

// No name leads out of the folder that services' keys are made in, nor out of the registry.
func TestPathTraversalInNamesOfTheOperatorsAPI(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := w.startOperators()
		must(d.client.Apply(w.context(), d.input(), nil, operator.By{}))(t)
		d.settled()
		tree := func() (out []string) {
			root := filepath.Dir(filepath.Dir(w.configFile))
			if err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
				if !strings.Contains(filepath.Base(path), ".db") { // the database makes files beside itself
					out = append(out, path)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return out
		}
		before := tree()
		rev := must(d.client.Registry(w.context()))(t).Revision
		for _, name := range []string{"..", "../../x", "..%2f..%2fx", "%2e%2e", "group-a/../../x", "group-a%2f..%2f..%2fx", "%00", "group-a%00", ".", "..%5cx"} {
			json := http.Header{"Content-Type": {"application/json"}, "If-Match": {"*"}}
			for _, to := range []string{"/v1/services/" + name + "/ca", "/v1/devices/" + name + "/revoke", "/v1/registry/files/services/" + name, "/v1/registry/files/" + name, "/v1/services/" + name} {
				for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
					r := must(http.NewRequestWithContext(w.context(), method, "http://operator"+to, strings.NewReader(`{"reason":"stolen"}`)))(t)
					r.Header = json
					res := must(d.http.Do(r))(t)
					res.Body.Close()
					if res.StatusCode < 400 || res.StatusCode >= 500 {
						t.Errorf("%s %s: %d", method, to, res.StatusCode)
					}
				}
			}
		}
		if after := tree(); !slices.Equal(after, before) {
			t.Errorf("files were %q, are %q", before, after)
		}
		if now := must(d.client.Registry(w.context()))(t).Revision; now != rev {
			t.Errorf("the registry went from revision %d to %d", rev, now)
		}
	})
}

// Over TLS the operators' own anchors judge, and nobody else's.
func TestOperatorsTLS(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		ca := must(labca.New(labca.Options{Kind: labca.Device, Name: "operators", Domain: "operators.example", At: w.now.Add(-2 * time.Hour)}))(t)
		dir := t.TempDir()
		file := func(name string, data []byte) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		lists := func() []byte {
			var b bytes.Buffer
			for _, l := range must(ca.CRLs(w.Now(), 24*time.Hour))(t) {
				b.Write(l.Raw)
				break
			}
			return b.Bytes()
		}
		w.cfg.Operators.Listen = "127.0.0.1:0"
		w.cfg.Operators.Anchors = []string{file("anchors.pem", certs.EncodePEM(ca.Anchor()))}
		w.cfg.Operators.CRLs = []string{file("list.crl", lists())}
		d := w.startOperators()
		person := func(name string) *device {
			p := newDevice(t, ca, name)
			p.tls.Certificate = append(p.tls.Certificate, labca.DER(ca.Intermediates())...)
			return p
		}
		connect := func(c *tls.Certificate, change func(*tls.Config)) (*operator.Client, *tls.Config) {
			cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now}
			if c != nil {
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
			}
			if change != nil {
				change(cfg)
			}
			return must(operator.NewClient(d.tls, cfg))(t), cfg
		}
		alice, bob := person("alice.operators.example"), person("bob.operators.example")
		client, cfg := connect(&alice.tls, nil)
		must(client.Apply(w.context(), d.input(), nil, operator.By{Why: "over TLS"}))(t)
		h := must(d.client.History(w.context(), 0, 1))(t)
		if who := h.Items[0].Who; !strings.Contains(who, "alice.operators.example") || !strings.Contains(who, "certificate ") || !strings.Contains(who, "127.0.0.1") {
			t.Errorf("applied by %q", who)
		}

		a := w.devices[devA]
		for name, c := range map[string]struct {
			cert   *tls.Certificate
			change func(*tls.Config)
		}{
			"nobody":                  {nil, nil},
			"a device":                {&a.tls, nil},
			"TLS 1.2":                 {&alice.tls, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }},
			"one of another CA":       {&newDevice(t, registrytest.DeviceCA(t), "alice.devices.example").tls, nil},
			"without what is between": {&newDevice(t, ca, "carol.operators.example").tls, nil},
		} {
			client, _ := connect(c.cert, c.change)
			if _, err := client.Health(w.context()); !errors.Is(err, operator.ErrUnreachable) {
				t.Errorf("%s: %v", name, err)
			}
		}

		// A connection that is open ends with the right to have it.
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		open := &http.Client{Transport: tr, Timeout: patience}
		ask := func() int {
			r := must(http.NewRequestWithContext(w.context(), http.MethodGet, d.tls+"/v1/health", nil))(t)
			res := must(open.Do(r))(t)
			defer res.Body.Close()
			d.doc.Answer(t, http.MethodGet, r.URL, res.StatusCode, res.Header, must(io.ReadAll(res.Body))(t))
			return res.StatusCode
		}
		if got := ask(); got != http.StatusOK {
			t.Errorf("before it is revoked: %d", got)
		}
		if err := ca.Revoke(alice.cert.SerialNumber, w.Now(), int(store.AffiliationChanged)); err != nil {
			t.Fatal(err)
		}
		file("list.crl", lists())
		if got := ask(); got != http.StatusForbidden {
			t.Errorf("on the open connection: %d", got)
		}
		d.recorded("operator-refused", "denied")
		if _, err := client.Health(w.context()); !errors.Is(err, operator.ErrUnreachable) {
			t.Errorf("on a new connection: %v", err)
		}
		client, _ = connect(&bob.tls, nil)
		must(client.Health(w.context()))(t)

		// Without anchors that can be read nobody is an operator.
		file("anchors.pem", []byte("nothing"))
		if _, err := client.Health(w.context()); !errors.Is(err, operator.ErrUnreachable) {
			t.Errorf("without anchors: %v", err)
		}
	})
}

func TestOperatorsConfig(t *testing.T) {
	t.Parallel()
	const good = "issuer = \"sp.example\"\n[database]\nurl = \"sqlite:x.db\"\n[server]\ncertificate = \"c\"\nkey = \"k\"\n[devices]\nanchors = [\"a\"]\n[services]\ndir = \"s\"\n[policy]\nkey = \"k\"\ncertificate = \"/c\"\n[operators]\n"
	c := must(sp.ParseConfig("/etc/x/y.toml", []byte(good+"socket = \"o.sock\"\ngroup = \"staff\"\nlisten = \":8444\"\nanchors = [\"o.pem\"]\ncrls = [\"/o.crl\"]\n")))(t)
	if o := &c.Operators; o.Socket != "/etc/x/o.sock" || o.Anchors[0] != "/etc/x/o.pem" || o.CRLs[0] != "/o.crl" {
		t.Errorf("%+v", o)
	}
	for text, want := range map[string]string{
		"listen = \":8444\"":    "operators.anchors: expected PEM files",
		"anchors = [\"a\"]":     "operators.listen: expected an address",
		"crls = [\"a\"]":        "operators.listen: expected an address",
		"group = \"staff\"":     "operators.socket: expected a path",
		"colour = \"green\"":    `"operators.colour"`,
		"socket = [\"a.sock\"]": "y.toml:15",
	} {
		if _, err := sp.ParseConfig("y.toml", []byte(good+text+"\n")); !errors.Is(err, sp.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// What cannot be served is said before anything is.
func TestOperatorsCannotBeServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
	defer c.Close()
	for name, o := range map[string]sp.Operators{
		"operators.socket": {Socket: w.configFile},
		"operators.group":  {Socket: filepath.Join(t.TempDir(), "o"), Group: "no such group"},
		"operators.listen": {Listen: "256.0.0.1:0", Anchors: []string{w.configFile}},
	} {
		w.cfg.Operators = o
		if _, err := c.Listen(w.context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.cfg.Operators = sp.Operators{Listen: "127.0.0.1:0", Anchors: []string{w.configFile}}
	l := must(c.Listen(w.context()))(t)
	if err := c.Serve(w.context(), l); err == nil || !strings.Contains(err.Error(), "operators") {
		t.Errorf("anchors that are none: %v", err)
	}
}

// A pre-shared key is made once: another one would cut off who has the first.
func TestOperatorsMakeAKeyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	s := w.content.Services[0]
	s.Name, s.Auth, s.Domain = "by-key", policy.AuthPSK, ""
	w.content.Services = append(w.content.Services, s)
	d := w.startOperators()
	must(d.client.Apply(w.context(), d.input(), nil, operator.By{}))(t)
	must(d.client.MakeServiceKey(w.context(), "by-key", operator.By{}))(t)
	if cas := must(d.client.ServiceCAs(w.context(), "by-key"))(t); len(cas.Items) != 0 {
		t.Errorf("CAs of a service with a key: %+v", cas)
	}
	if _, err := d.client.MakeServiceKey(w.context(), "by-key", operator.By{}); !errors.Is(err, operator.ErrInTheWay) {
		t.Errorf("%v", err)
	}
}
