package operator_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"wardgate/sp/operator"
	"wardgate/sp/registry/registrytest"
)

const (
	asJSON  = "application/json"
	asPatch = "application/merge-patch+json"
	asTar   = "application/x-tar"
	asTOML  = "application/toml"
	asPEM   = "application/pem-certificate-chain"
)

// Every operation, in the life of a registry. Each answer is held against the document.
func TestEveryOperation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.want(200, "", "GET", "/v1/openapi.json", "")
	w.want(200, "", "GET", "/v1/health", "")
	w.want(200, "", "GET", "/v1/crls", "")

	sum := w.want(200, "", "GET", "/v1/registry", "")
	if s := into[operator.Summary](w, sum); s.Revision != 1 || s.Devices != 3 || s.Applied == nil || s.Applied.Why != "the beginning" {
		t.Errorf("registry: %s", sum.body)
	}
	w.want(304, "", "GET", "/v1/registry", "", "If-None-Match", sum.header.Get("ETag"))
	all := into[operator.Files](w, w.want(200, "", "GET", "/v1/registry/files", ""))
	if len(all.Files) != 3+2*3+2+2 {
		t.Errorf("%d files", len(all.Files))
	}
	if f := into[operator.Files](w, w.want(200, "", "GET", "/v1/registry/files?revision=0", "")); len(f.Files) != 0 || f.Revision != 0 {
		t.Errorf("before the beginning: %+v", f)
	}

	// The archive holds the same.
	archive := w.want(200, "", "GET", "/v1/registry/files", "", "Accept", asTar)
	inside := map[string]string{}
	for r := tar.NewReader(strings.NewReader(archive.body)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		inside[h.Name] = string(b)
	}
	if !maps.Equal(inside, all.Files) {
		t.Error("the archive and the files differ")
	}
	if w.want(304, "", "GET", "/v1/registry/files", "", "Accept", asTar, "If-None-Match", archive.header.Get("ETag")); archive.header.Get("ETag") == sum.header.Get("ETag") {
		t.Error("archive and JSON have one validator")
	}
	if p := into[operator.Plan](w, w.want(200, "", "POST", "/v1/registry/plan", archive.body, "Content-Type", asTar)); p.Text != "" || p.From != 1 {
		t.Errorf("what is there changes something: %+v", p)
	}

	// All files, planned and applied; the plan is for one revision.
	files := map[string]*string{}
	for name, text := range all.Files {
		files[name] = &text
	}
	files["members/clinic-b.toml"] = ptr("title = \"Clinic B, renamed\"\n")
	body := filesBody(t, files)
	if err := w.doc.Valid(t, "FilesInput", []byte(body)); err != nil {
		t.Error(err)
	}
	plan := w.want(200, "", "POST", "/v1/registry/plan", body, "Content-Type", asJSON)
	p := into[operator.Plan](w, plan)
	if p.Applied != 0 || len(p.Changes) != 1 || p.Changes[0].Member != "clinic-b" || !strings.Contains(p.Text, "Clinic B, renamed") {
		t.Errorf("plan: %+v", p)
	}
	w.want(428, "precondition-required", "POST", "/v1/registry/apply", body, "Content-Type", asJSON)
	tag := plan.header.Get("ETag")
	done := w.want(200, "", "POST", "/v1/registry/apply?why=a+new+name", body, "Content-Type", asJSON, "If-Match", tag)
	if p := into[operator.Plan](w, done); p.Applied != 2 || done.header.Get("ETag") != `"r2"` {
		t.Errorf("apply: %+v, %v", p, done.header)
	}
	w.want(412, "conflict", "POST", "/v1/registry/apply", body, "Content-Type", asJSON, "If-Match", tag)
	w.want(200, "", "POST", "/v1/registry/apply", archive.body, "Content-Type", asTar, "If-Match", "*")

	h := into[operator.History](w, w.want(200, "", "GET", "/v1/registry/history?limit=2", ""))
	if len(h.Items) != 2 || h.Items[0].Revision != 3 || h.Items[1].Why != "a new name" || h.Next != 2 {
		t.Errorf("history: %+v", h)
	}
	if !strings.Contains(h.Items[1].Who, "(uid ") || !strings.Contains(h.Items[1].Who, "pid ") {
		t.Errorf("who did it: %q", h.Items[1].Who)
	}
	if h = into[operator.History](w, w.want(200, "", "GET", "/v1/registry/history?before=2", "")); len(h.Items) != 1 || h.Next != 0 {
		t.Errorf("the rest of the history: %+v", h)
	}

	for kind, name := range map[string]string{"members": "hospital-a", "devices": "a.devices.example", "services": "group-a", "contracts": "a-b"} {
		var one struct{ Name string }
		if r := w.want(200, "", "GET", "/v1/"+kind+"/"+name, ""); json.Unmarshal([]byte(r.body), &one) != nil || one.Name != name {
			t.Errorf("%s: %s", kind, r.body)
		}
		w.want(404, "not-found", "GET", "/v1/"+kind+"/nothing", "")
		seen := 0
		for after := ""; ; {
			l := into[operator.List[struct{ Name string }]](w, w.want(200, "", "GET", "/v1/"+kind+"?limit=1&after="+after, ""))
			if seen += len(l.Items); len(l.Items) != 1 || l.Items[0].Name <= after {
				t.Fatalf("%s after %q: %+v", kind, after, l)
			}
			if after = l.Next; after == "" {
				break
			}
		}
		whole := into[operator.List[struct{ Name string }]](w, w.want(200, "", "GET", "/v1/"+kind, ""))
		if whole.Next != "" || len(whole.Items) != seen {
			t.Errorf("%s: %d by pages, %d together", kind, seen, len(whole.Items))
		}
	}
	w.want(200, "", "GET", "/v1/devices/b.devices.example", "")
	w.want(200, "", "GET", "/v1/devices/A.Devices.Example", "")

	r := w.want(200, "", "POST", "/v1/devices/b.devices.example/revoke", `{"reason":"stolen","why":"van broken into"}`, "Content-Type", asJSON)
	if v := into[operator.Revocation](w, r); v.Device != "b.devices.example" || len(v.Peers) != 1 {
		t.Errorf("revoke: %s", r.body)
	}
	w.want(200, "", "GET", "/v1/services/group-a/ca", "")
	w.want(404, "not-found", "GET", "/v1/services/nothing/ca", "")
	w.want(200, "", "POST", "/v1/services/group-a/ca", `{}`, "Content-Type", asJSON)
	if want := []string{"revoke b.devices.example stolen van broken into", "key group-a"}; !slices.Equal(w.fake.asked, want) {
		t.Errorf("asked %q, want %q", w.fake.asked, want)
	}

	rec := into[operator.Record](w, w.want(200, "", "GET", "/v1/record?limit=1", ""))
	if len(rec.Items) != 1 || rec.Next != 1 {
		t.Errorf("record: %+v", rec)
	}
	rec = into[operator.Record](w, w.want(200, "", "GET", "/v1/record?after=1", ""))
	if len(rec.Items) != 4 || !strings.Contains(rec.Items[3].Who, "uid ") {
		t.Errorf("record: %+v", rec)
	}
	mark := into[operator.Mark](w, w.want(200, "", "GET", "/v1/record/verify", ""))
	w.want(200, "", "GET", "/v1/record/verify?seq=5&hash="+mark.Hash, "")
	w.want(409, "record-damaged", "GET", "/v1/record/verify?seq=1&hash="+mark.Hash, "")

	w.oneFile()
	for _, op := range w.doc.Unseen() {
		t.Errorf("%s was not answered with success", op)
	}
}

// oneFile is the life of single files, each with the validator of what it was.
func (w *world) oneFile() {
	w.Helper()
	const at = "/v1/registry/files/members/clinic-d.toml"
	text := "title = \"Clinic D\"\n"
	w.want(404, "not-found", "GET", at, "")
	w.want(428, "precondition-required", "PUT", at, text, "Content-Type", asTOML)
	w.want(412, "conflict", "PUT", at, text, "Content-Type", asTOML, "If-Match", `"0"`)
	w.want(201, "", "PUT", at+"?why=joined", text, "Content-Type", asTOML, "If-None-Match", "*")
	w.want(412, "conflict", "PUT", at, text, "Content-Type", asTOML, "If-None-Match", "*")
	one := w.want(200, "", "GET", at, "")
	if one.body != text || one.header.Get("Content-Type") != asTOML+"; charset=utf-8" {
		w.Errorf("%v %s", one.header, one.body)
	}
	tag := one.header.Get("ETag")
	w.want(304, "", "GET", at, "", "If-None-Match", `"x", W/`+tag)
	w.want(200, "", "PUT", at, "title = \"Clinic D, renamed\"\n", "Content-Type", asTOML, "If-Match", tag)
	w.want(412, "conflict", "PUT", at, text, "Content-Type", asTOML, "If-Match", tag)
	w.want(412, "conflict", "DELETE", at, "", "If-Match", tag)
	w.want(428, "precondition-required", "DELETE", at, "")
	w.want(200, "", "DELETE", at, "", "If-Match", w.do("GET", at, "").header.Get("ETag"))
	w.want(404, "not-found", "DELETE", at, "", "If-Match", "*")

	// Others change other things meanwhile: the edit is made again on what they left.
	w.fake.mu.Lock()
	w.fake.between = func() { w.fake.put(w.fake.states[1], operator.By{Who: "another"}) }
	w.fake.mu.Unlock()
	w.want(201, "", "PUT", at, text, "Content-Type", asTOML, "If-None-Match", "*")

	// A device and its certificate are two files: together, and they go together.
	const dev = "devices/d.devices.example"
	device := "member = \"clinic-d\"\nstate = \"active\"\n\n[[zone]]\nname = \"sz\"\nlevel = \"SZ\"\nprefixes = [\"10.4.1.0/24\"]\ninterfaces = [\"lan-sz\"]\n"
	r := w.want(422, "registry-refused", "PUT", "/v1/registry/files/"+dev+".toml", device, "Content-Type", asTOML, "If-None-Match", "*")
	if p := into[operator.Problem](w, r); len(p.Faults) != 1 || p.Faults[0].File != dev+".pem" || p.Faults[0].Rule == "" {
		w.Errorf("a device without a certificate: %s", r.body)
	}
	body := filesBody(w, map[string]*string{dev + ".toml": &device, dev + ".pem": ptr(registrytest.Certificate("d.devices.example"))})
	if err := w.doc.Valid(w, "FilesPatch", []byte(body)); err != nil {
		w.Error(err)
	}
	plan := w.want(200, "", "POST", "/v1/registry/plan", body, "Content-Type", asPatch)
	w.want(412, "conflict", "POST", "/v1/registry/apply", body, "Content-Type", asPatch, "If-Match", `"r1"`)
	w.want(200, "", "POST", "/v1/registry/apply", body, "Content-Type", asPatch, "If-Match", plan.header.Get("ETag"))
	w.want(200, "", "GET", "/v1/registry/files/"+dev+".pem", "")
	w.want(200, "", "DELETE", "/v1/registry/files/"+dev+".toml", "", "If-Match", "*")
	w.want(404, "not-found", "GET", "/v1/registry/files/"+dev+".pem", "")
	body = filesBody(w, map[string]*string{"members/clinic-d.toml": nil})
	w.want(200, "", "POST", "/v1/registry/apply", body, "Content-Type", asPatch, "If-Match", "*")
	w.want(404, "not-found", "GET", at, "")
}

// What the registry's rules refuse names file, line and rule.
func TestFaultsNameFileLineAndRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	text := "title = \"Clinic D\"\ncolour = \"green\"\n"
	r := w.want(422, "registry-refused", "PUT", "/v1/registry/files/members/clinic-d.toml", text, "Content-Type", asTOML, "If-None-Match", "*")
	p := into[operator.Problem](w, r)
	if len(p.Faults) != 1 || p.Faults[0].File != "members/clinic-d.toml" || p.Faults[0].Line != 2 || p.Faults[0].Rule != "file" || p.Expected == "" || p.Came != "1 fault" || p.Do == "" {
		t.Errorf("%s", r.body)
	}
	// The client has the same error as registry.Load gives.
	_, err := w.client.PutFile(t.Context(), "members/clinic-d.toml", &text, "", operator.By{})
	if err == nil || !strings.Contains(err.Error(), "members/clinic-d.toml:2: [file] expected a key that exists") {
		t.Errorf("%v", err)
	}
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	if len(w.fake.states) != 2 {
		t.Error("the registry was changed")
	}
}

// The client does what Local does.
func TestClientAndLocal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, api := range map[string]operator.API{"client": w.client, "local": &operator.Local{Backend: w.fake, Now: func() time.Time { return registrytest.At }}} {
		ctx := t.Context()
		f, err := api.Files(ctx, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		dir := fstest.MapFS{"members/README.md": {Data: []byte("x")}, "members/.hidden": {Data: []byte("x")}, "other/x": {Data: []byte("x")}}
		for path, text := range f.Files {
			dir[path] = &fstest.MapFile{Data: []byte(text)}
		}
		p, err := api.Plan(ctx, operator.Input{Files: dir})
		if err != nil || p.Text != "" {
			t.Errorf("%s: %+v %v", name, p, err)
		}
		dir["members/wrong.txt"] = &fstest.MapFile{Data: []byte("x")}
		if _, err := api.Plan(ctx, operator.Input{Files: dir}); err == nil || !strings.Contains(err.Error(), "members/wrong.txt") {
			t.Errorf("%s: %v", name, err)
		}
		text := "title = \"Clinic D\"\n"
		if p, err = api.PutFile(ctx, "members/clinic-d.toml", &text, "", operator.By{Who: "me", Why: "why"}); err != nil || p.Applied == 0 {
			t.Fatalf("%s: %+v %v", name, p, err)
		}
		file, err := api.File(ctx, "members/clinic-d.toml")
		if err != nil || file.Text != text {
			t.Fatalf("%s: %+v %v", name, file, err)
		}
		if p, err = api.PutFile(ctx, "members/clinic-d.toml", nil, file.ETag, operator.By{Who: "me"}); err != nil || p.Applied == 0 {
			t.Errorf("%s: %+v %v", name, p, err)
		}
		if _, err := api.Apply(ctx, operator.Input{Patch: map[string]*string{}}, ptr[uint64](1), operator.By{Who: "me"}); err == nil || !strings.Contains(err.Error(), "make the plan again") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := api.Apply(ctx, operator.Input{Patch: map[string]*string{"../x": &text}}, nil, operator.By{Who: "me"}); err == nil {
			t.Errorf("%s: a way out was taken", name)
		}
	}
}

func TestSocketIsForOneCentre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := operator.ListenUnix(w.socket, ""); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a socket that is in use: %v", err)
	}
	if st, err := os.Stat(w.socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := operator.ListenUnix(file, ""); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if _, err := operator.ListenUnix(file+"2", "no such group"); err == nil {
		t.Error("a group that there is not")
	}
}

func sendTar(t testing.TB, entries ...*tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
