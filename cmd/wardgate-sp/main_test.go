package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
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
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

// bench is a folder to work in.
type bench struct {
	*testing.T
	dir, config string
	api         []string // flags that lead to a running centre; nil: the commands work on the database
}

// run runs one command line and wants its exit code.
func (b *bench) run(want int, args ...string) string {
	b.Helper()
	var out, complaints bytes.Buffer
	where := []string{"--config", b.config}
	if b.api != nil {
		where = append([]string{"--config", b.path("nothing.toml")}, b.api...)
	}
	if got := run(context.Background(), append(where, args...), &out, &complaints); got != want {
		b.Fatalf("%q: exit %d, want %d\n%s%s", args, got, want, out.String(), complaints.String())
	}
	if (want == exitOK) != (complaints.Len() == 0) {
		b.Errorf("%q: exit %d, complaints %q", args, want, complaints.String())
	}
	return out.String() + complaints.String()
}

func (b *bench) json(v any, args ...string) {
	b.Helper()
	text := b.run(exitOK, append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		b.Fatalf("%q: %v\n%s", args, err, text)
	}
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{T: t, dir: dir, config: filepath.Join(dir, "centre", "wardgate-sp.toml")}
	ca := registrytest.DeviceCA(t)
	b.write("anchors.pem", certs.EncodePEM(ca.Anchor()))
	b.write("cas.pem", certs.EncodePEM(ca.Intermediates()...))
	r, err := registry.New(registrytest.Hospital())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := sp.Export(b.path("registry"), r); err != nil {
		t.Fatal(err)
	}
	b.run(exitOK, "init", b.path("centre"), "--host", "localhost", "--device-anchors", b.path("anchors.pem"), "--device-cas", b.path("cas.pem"), "--service", "group-a=group-a.example")
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) write(name string, data []byte) {
	b.Helper()
	if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
		b.Fatal(err)
	}
}

// Every command does the same on the database and over the API of a running centre.
func TestLifeOfARegistry(t *testing.T) {
	t.Parallel()
	t.Run("database", func(t *testing.T) {
		t.Parallel()
		lifeOfARegistry(t, newBench(t))
	})
	t.Run("socket", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.api = []string{"--api", b.serve("socket = \"operators.sock\"\n")}
		lifeOfARegistry(t, b)
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		now := time.Now()
		ca, err := labca.New(labca.Options{Kind: labca.Device, Name: "operators", Domain: "operators.example", At: now.Add(-2 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		me, err := ca.Issue(labca.Request{Public: key.Public(), DNSNames: []string{"me.operators.example"}, At: now.Add(-time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		b.write("operators.pem", certs.EncodePEM(ca.Anchor()))
		b.write("me.pem", certs.EncodePEM(append([]*x509.Certificate{me}, ca.Intermediates()...)...))
		b.write("me.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		at := b.serve(fmt.Sprintf("listen = \"127.0.0.1:0\"\nanchors = [%q]\n", b.path("operators.pem")))
		to := func(anchors string) []string {
			return []string{"--api", at, "--api-cert", b.path("me.pem"), "--api-key", b.path("me.key"), "--api-anchors", b.path(anchors)}
		}
		b.api = to("centre/web-root.pem")
		lifeOfARegistry(t, b)
		b.api = to("operators.pem")
		if text := b.run(exitFailure, "health"); !strings.Contains(text, "unknown authority") {
			t.Errorf("a centre that these anchors do not vouch for: %s", text)
		}
		b.api = to("me.key")
		if text := b.run(exitFailure, "health"); !strings.Contains(text, "expected certificates in PEM") {
			t.Errorf("anchors that are none: %s", text)
		}
	})
}

// serve lets a centre run with a section [operators], and returns where its API is.
func (b *bench) serve(operators string) string {
	b.Helper()
	text, err := os.ReadFile(b.config)
	if err != nil {
		b.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("\":8443\""), []byte("\"127.0.0.1:0\""))
	if err := os.WriteFile(b.config, append(text, "\n[operators]\n"+operators...), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--config", b.config, "serve"}, io.Discard, w)
		w.Close()
	}()
	var at string // where operators connect; read after ready
	ready := make(chan struct{})
	log := make(chan struct{})
	go func() {
		defer close(log)
		open := sync.OnceFunc(func() { close(ready) })
		for s := bufio.NewScanner(r); s.Scan(); {
			var line struct{ Msg, At string }
			if err := json.Unmarshal(s.Bytes(), &line); err != nil {
				b.Errorf("log: %q: %v", s.Text(), err)
			}
			switch line.Msg {
			case "operators":
				at = line.At
			case "ready":
				open()
			}
		}
	}()
	b.Cleanup(func() {
		cancel()
		if got := <-code; got != exitOK {
			b.Errorf("serve: exit %d", got)
		}
		<-log
	})
	select {
	case <-ready:
	case <-log:
		b.Fatal("the centre ended before it was ready")
	}
	return strings.Replace(at, "127.0.0.1", "localhost", 1)
}

func lifeOfARegistry(t *testing.T, b *bench) {
	if text := b.run(exitOK, "plan", b.path("registry")); !strings.Contains(text, "hospital-a") || !strings.Contains(text, "3 devices may get a new policy") {
		t.Errorf("plan: %s", text)
	}
	var p operator.Plan
	b.json(&p, "apply", b.path("registry"), "--why", "the beginning")
	if p.Applied != 1 || len(p.Affected) != 3 || len(p.Changes) == 0 {
		t.Errorf("apply: %+v", p)
	}
	if text := b.run(exitOK, "plan", b.path("registry")); !strings.Contains(text, "nothing changes") {
		t.Errorf("plan again: %s", text)
	}

	// What is exported is what was applied, and what is no object any more goes away.
	if err := os.MkdirAll(b.path("out/members"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.write("out/members/gone.toml", []byte("title = \"Gone\"\n"))
	b.write("out/members/README.md", []byte("stays"))
	b.run(exitOK, "export", b.path("out"))
	in, out := tree(t, b.path("registry")), tree(t, b.path("out"))
	if out["members/README.md"] != "stays" {
		t.Error("a file that is not the registry's was touched")
	}
	delete(out, "members/README.md")
	if len(in) != len(out) {
		t.Errorf("%d files in, %d out", len(in), len(out))
	}
	for name, text := range in {
		if out[name] != text {
			t.Errorf("%s differs", name)
		}
	}
	if text := b.run(exitOK, "export", b.path("out")); !strings.Contains(text, "0 files written, 0 removed") {
		t.Errorf("export again: %s", text)
	}

	for _, c := range []struct{ kind, name, field string }{
		{"member", "hospital-a", "devices"},
		{"device", "a.devices.example", "certificates"},
		{"service", "group-a", "memberships"},
		{"contract", "a-b", "now"},
	} {
		var list []map[string]any
		b.json(&list, c.kind, "list")
		if len(list) < 2 {
			t.Errorf("%s list: %d", c.kind, len(list))
		}
		if text := b.run(exitOK, c.kind, "list"); !strings.Contains(text, c.name) || !strings.Contains(text, "NAME") {
			t.Errorf("%s list: %s", c.kind, text)
		}
		var one map[string]any
		b.json(&one, c.kind, "show", c.name)
		if one["name"] != c.name || one[c.field] == nil {
			t.Errorf("%s show: %v", c.kind, one)
		}
		b.run(exitRefused, c.kind, "show", "nothing")
	}

	if text := b.run(exitOK, "service", "ca", "group-b"); !strings.Contains(text, "services/group-b/1") {
		t.Errorf("service ca: %s", text)
	}
	if text := b.run(exitOK, "service", "ca", "group-b"); !strings.Contains(text, "services/group-b/2") {
		t.Errorf("service ca again: %s", text)
	}

	var done operator.Revocation
	b.json(&done, "device", "revoke", "b.devices.example", "--reason", "stolen", "--why", "van broken into")
	if done.Revision != 2 || len(done.Peers) != 1 {
		t.Errorf("revoke: %+v", done)
	}
	if text := b.run(exitOK, "device", "list"); !strings.Contains(text, "revoked") {
		t.Errorf("device list: %s", text)
	}

	// The files that were applied first are a plan again, and one that was made before is refused.
	b.run(exitRefused, "apply", b.path("registry"), "--revision", "1")
	if text := b.run(exitOK, "plan", b.path("registry")); !strings.Contains(text, "revoked → active") {
		t.Errorf("plan after the revocation: %s", text)
	}
	b.run(exitOK, "export", b.path("first"), "--revision", "1")
	if first := tree(t, b.path("first")); len(first) != len(in) || first["devices/b.devices.example.toml"] != in["devices/b.devices.example.toml"] {
		t.Error("the first revision is not what was applied first")
	}
	var history []operator.Revision
	b.json(&history, "history")
	if len(history) != 2 || history[0].Revision != 2 || history[0].Why != "van broken into" || history[1].Why != "the beginning" || history[0].Who == "" {
		t.Errorf("history: %+v", history)
	}
	if text := b.run(exitOK, "history", "--limit", "1"); !strings.Contains(text, "van broken into") || strings.Contains(text, "the beginning") {
		t.Errorf("history of one: %s", text)
	}
	var rec operator.Record
	b.json(&rec, "record", "list", "--limit", "1000")
	made := slices.IndexFunc(rec.Items, func(e operator.Entry) bool { return e.Event == "service-key-made" && e.What == "group-b" })
	if made < 0 || !strings.Contains(b.run(exitOK, "record", "list"), "registry-applied") {
		t.Errorf("record: %+v", rec)
	}
	var mark operator.Mark
	b.json(&mark, "record", "verify")
	if mark.Seq < rec.Next {
		t.Errorf("mark %+v, the record goes to %d", mark, rec.Next)
	}
	if text := b.run(exitOK, "record", "verify", "--seq", fmt.Sprint(mark.Seq), "--hash", mark.Hash); !strings.Contains(text, "whole") {
		t.Errorf("verify: %s", text)
	}
	b.run(exitFailure, "record", "verify", "--seq", "1", "--hash", mark.Hash)
	var crls []operator.CRL
	b.json(&crls, "crls")
	if len(crls) == 0 || !strings.Contains(b.run(exitOK, "crls"), "group-a") {
		t.Errorf("crls: %+v", crls)
	}
	var health operator.Health
	b.json(&health, "health")
	if health.Revision != 2 || health.Database != "sqlite" || !strings.Contains(b.run(exitOK, "health"), "revision 2") {
		t.Errorf("health: %+v", health)
	}
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, err2 := filepath.Rel(dir, path)
		if err2 != nil {
			return err2
		}
		out[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestComplaints(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		exit int
		want string
		args []string
	}{
		{exitUsage, "unknown command", []string{"nothing"}},
		{exitUsage, "unknown flag", []string{"plan", "--nothing"}},
		{exitUsage, "accepts 1 arg", []string{"plan"}},
		{exitUsage, "expected one of list, policy, revoke, show", []string{"device", "nothing"}},
		{exitUsage, "--reason: expected", []string{"device", "revoke", "a.devices.example", "--reason", "bored"}},
		{exitUsage, "expected a folder", []string{"plan", b.path("anchors.pem")}},
		{exitFailure, "no such file", []string{"plan", b.path("nothing")}},
		{exitRefused, "expected a device that there is", []string{"device", "revoke", "a.devices.example"}},
		{exitRefused, "expected a service that there is", []string{"service", "ca", "../x"}},
		{exitUsage, "--seq and --hash", []string{"record", "verify", "--seq", "1"}},
		{exitUsage, "expected --api", []string{"health", "--api-cert", "x"}},
		{exitUsage, "--api-anchors", []string{"health", "--api", "https://localhost:1"}},
		{exitUsage, "expected --api https", []string{"health", "--api", "/x", "--api-key", "x"}},
		{exitFailure, "there is no socket", []string{"health", "--api", b.path("no.sock")}},
		{exitFailure, "exists already", []string{"init", b.path("centre"), "--device-anchors", b.path("anchors.pem")}},
		{exitUsage, "--device-anchors", []string{"init", b.path("other")}},
		{exitUsage, "NAME=DOMAIN", []string{"init", b.path("other"), "--device-anchors", b.path("anchors.pem"), "--service", "x"}},
		{exitFailure, "trust in device certificates", []string{"init", b.path("other"), "--device-anchors", b.config}},
	} {
		if text := b.run(c.exit, c.args...); !strings.Contains(text, c.want) {
			t.Errorf("%q: %s, want %q", c.args, text, c.want)
		}
	}
	b.write("registry/members/Wrong Name.toml", []byte("title = 1\n"))
	if text := b.run(exitRefused, "apply", b.path("registry")); !strings.Contains(text, "members/Wrong Name.toml") {
		t.Errorf("a wrong file: %s", text)
	}
	if err := os.WriteFile(b.config, []byte("colour = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := b.run(exitUsage, "plan", b.path("registry")); !strings.Contains(text, "wardgate-sp.toml:1:1") {
		t.Errorf("a wrong configuration: %s", text)
	}
	if _, err := os.Stat(b.path("other")); err == nil {
		t.Error("init left a folder behind")
	}
}

// serve serves until it is told to end, and ends well.
func TestServe(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	text, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.config, bytes.ReplaceAll(text, []byte(":8443"), []byte("127.0.0.1:0")), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run(exitOK, "apply", b.path("registry"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--config", b.config, "serve"}, io.Discard, w)
		w.Close()
	}()
	log := bufio.NewScanner(r)
	ready, made := false, false
	for log.Scan() {
		var line struct {
			Level, Msg string
			Made       int
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil {
			t.Errorf("log: %q: %v", log.Text(), err)
		}
		switch line.Msg {
		case "ready":
			ready = true
		case "policies": // b alone: the other service has no CA yet
			if line.Made > 0 {
				made = true
				cancel()
			}
		}
	}
	if got := <-code; got != exitOK || !ready || !made {
		t.Fatalf("exit %d, ready %t, policies made %t", got, ready, made)
	}
	devicePolicy(b)
}

// devicePolicy: the file that a device would be sent is given out, for carrying by hand.
func devicePolicy(b *bench) {
	b.Helper()
	var answer struct {
		Device string
		Serial uint64
	}
	b.json(&answer, "device", "policy", "B.devices.example", "--out", b.path("b.jws"))
	text, err := os.ReadFile(b.path("b.jws"))
	if err != nil {
		b.Fatal(err)
	}
	doc, _, err := policy.Inspect(text)
	if err != nil || doc.Device.ID != "b.devices.example" || doc.Serial != answer.Serial || answer.Device != doc.Device.ID {
		b.Errorf("%+v, %v, want what %+v says", doc, err, answer)
	}
	for want, args := range map[string][]string{
		"exists":  {"b.devices.example", "--out", b.path("b.jws")},
		"no such": {"nobody.devices.example", "--out", b.path("x.jws")},
	} {
		b.run(exitFailure, append([]string{"device", "policy"}, args...)...)
		if _, err := os.Stat(b.path("x.jws")); err == nil {
			b.Errorf("%s: a file was left", want)
		}
	}
	b.run(exitUsage, "device", "policy", "b.devices.example")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if code := run(context.Background(), []string{"version"}, &out, &out); code != exitOK || !strings.HasPrefix(out.String(), "wardgate-sp ") {
		t.Errorf("%d %q", code, out.String())
	}
}
