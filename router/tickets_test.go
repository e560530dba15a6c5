package router

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"wardgate/internal/labca"
)

func TestTicketSecrets(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	get := func(after time.Duration, want int) [][]byte {
		t.Helper()
		s, err := ticketSecrets(dir, now.Add(after))
		if err != nil || len(s) != want {
			t.Fatalf("%d secrets, want %d: %v", len(s), want, err)
		}
		return s
	}
	first := get(0, 1)[0]
	if again := get(23*time.Hour, 1)[0]; !bytes.Equal(again, first) {
		t.Error("another secret after a restart")
	}
	st, err := os.Stat(filepath.Join(dir, ticketSecretsFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	second := get(24*time.Hour, 2)
	if bytes.Equal(second[0], first) || !bytes.Equal(second[1], first) {
		t.Error("the next secret does not come before the one in use")
	}
	if s := get(48*time.Hour+time.Second, 2); bytes.Equal(s[1], first) || !bytes.Equal(s[1], second[0]) {
		t.Error("the oldest secret stays")
	}
	get(2000*time.Hour, 1)
	get(0, 1) // the clock was ahead
	if err := os.WriteFile(filepath.Join(dir, ticketSecretsFile), []byte(`[{"made":"2026-01-01T00:00:00Z","secret":"AAAA"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := get(0, 1); len(s[0]) != ticketSecretSize || bytes.Equal(s[0], first) {
		t.Error("a damaged secret is used")
	}
	if _, err := ticketSecrets(filepath.Join(dir, "none"), now); err == nil {
		t.Error("no error without a folder")
	}
}

func TestPeerCerts(t *testing.T) {
	ca, err := labca.New(labca.Options{Kind: labca.Device, Name: "device", At: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	s := peerCerts{filepath.Join(t.TempDir(), peerCertsDir), zap.NewNop()}
	chain := append([][]byte{ca.Anchor().Raw}, labca.DER(ca.Intermediates())...)
	leaf := sha256.Sum256(chain[0])
	if s.LoadChain(leaf) != nil {
		t.Error("a chain that was never kept")
	}
	s.SaveChain(leaf, chain)
	got := s.LoadChain(leaf)
	if len(got) != len(chain) || !bytes.Equal(got[0], chain[0]) || !bytes.Equal(got[len(got)-1], chain[len(chain)-1]) {
		t.Errorf("%d certificates, want %d", len(got), len(chain))
	}
	s.prune(time.Now().Add(ticketSecretLife - time.Minute))
	if s.LoadChain(leaf) == nil {
		t.Error("pruned too early")
	}
	if err := os.WriteFile(s.file(leaf), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.LoadChain(leaf) != nil {
		t.Error("nonsense is a chain")
	}
	s.prune(time.Now().Add(ticketSecretLife + time.Minute))
	if _, err := os.Stat(s.file(leaf)); err == nil {
		t.Error("not pruned")
	}
}
