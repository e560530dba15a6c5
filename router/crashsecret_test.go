package router

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestCrashSecret(t *testing.T) {
	dir := t.TempDir()
	first, err := crashSecret(dir)
	if err != nil || len(first) != crashSecretSize {
		t.Fatal(len(first), err)
	}
	again, err := crashSecret(dir)
	if err != nil || !bytes.Equal(first, again) {
		t.Fatal("another secret after a restart", err)
	}
	st, err := os.Stat(filepath.Join(dir, crashSecretFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, crashSecretFile), first[:7], 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := crashSecret(dir); err != nil || len(b) != crashSecretSize || bytes.Equal(b, first) {
		t.Errorf("after damage: %d octets, %v", len(b), err)
	}
	if _, err := crashSecret(filepath.Join(dir, "none")); err == nil {
		t.Error("no error where nothing can be written")
	}
}
