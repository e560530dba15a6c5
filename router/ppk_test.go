package router

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"wardgate/ike"
	"wardgate/policy"
)

// TestPPKStore: a key comes back as it was stored, in a file that nobody else reads; what is damaged, or
// was open to others, is no key.
func TestPPKStore(t *testing.T) {
	t.Parallel()
	s := ppkStore{filepath.Join(t.TempDir(), ppkDir)}
	if ids, err := s.ids(); err != nil || len(ids) > 0 {
		t.Errorf("an empty store: %v, %v", ids, err)
	}
	if _, _, err := s.get("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is not there: %v", err)
	}
	secret := []byte("0123456789abcdef0123456789abcdef")
	if err := s.put("a", secret); err != nil {
		t.Fatal(err)
	}
	got, _, err := s.get("a")
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	for path, want := range map[string]fs.FileMode{s.dir: fs.ModeDir | 0o700, s.file("a"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
	if a, b := checkValue(secret), checkValue(append([]byte("1"), secret[1:]...)); a == b || strings.Contains(string(secret), a) {
		t.Errorf("check values %s and %s", a, b)
	}
	if err := os.Chmod(s.file("a"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.get("a"); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others may read: %v", err)
	}
	b64 := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	for name, text := range map[string]string{
		"empty": "", "short": b64(secret[:31]), "long": b64(bytes.Repeat(secret, 33)), "not base64": "!" + b64(secret)[1:],
		"cut": b64(secret)[:40], "zeroes": b64(make([]byte, 32)), "huge": strings.Repeat("A", 4*maxPPKSize),
	} {
		if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := s.get(name); err == nil {
			t.Errorf("%s: taken for a key of %d octets", name, len(got))
		} else if len(text) > 8 && strings.Contains(err.Error(), text[:8]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

// TestPPKFailsClosed: without a key that is required there is no connection; without an optional one
// there is, and what IKE is told follows.
func TestPPKFailsClosed(t *testing.T) {
	t.Parallel()
	r := &Router{log: zap.NewNop(), ppks: ppkStore{t.TempDir()}}
	secret := []byte("0123456789abcdef0123456789abcdef")
	if err := errors.Join(r.ppks.put("here", secret), os.WriteFile(r.ppks.file("damaged"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ppk, id  string
		keys     int
		required bool
		err      string
	}{
		{policy.PPKOff, "", 0, false, ""},
		{policy.PPKRequired, "here", 1, true, ""},
		{policy.PPKOptional, "here", 1, false, ""},
		{policy.PPKOptional, "missing", 0, false, ""},
		{policy.PPKOptional, "damaged", 0, false, ""},
		{policy.PPKRequired, "missing", 0, false, "wardgate ppk add missing"},
		{policy.PPKRequired, "damaged", 0, false, "cannot be used"},
	} {
		p := &ike.PeerConfig{RemoteAuth: make([]ike.RemoteAuth, 2)}
		err := r.usePPK(p, &policy.ConnectionInfo{Name: "x", PPK: c.ppk, PPKID: c.id})
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s %q: error %v; want %q", c.ppk, c.id, err, c.err)
		}
		a := p.RemoteAuth[0]
		if len(a.PPKs) != c.keys || a.RequirePPK != c.required || len(p.RemoteAuth[1].PPKs) > 0 || c.keys > 0 && !bytes.Equal(a.PPKs[0].Secret, secret) {
			t.Errorf("%s %q: IKE is told %+v", c.ppk, c.id, a)
		}
	}
}
