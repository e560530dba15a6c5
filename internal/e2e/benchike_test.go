package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"wardgate/internal/benchjson"
)

// The load generator and its responder get along, with keys in software and on a token, and with tickets; what they
// measure is no matter here.
func TestBenchIKERuns(t *testing.T) {
	needRoot(t)
	out := filepath.Join(t.TempDir(), "ike.jsonl")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "wardgate-lab"), "bench-ike", "--bin", bin, "--out", out,
		"--rounds", "1", "--count", "20", "--subjects", "wardgate", "--tests", "double,hybrid,psk,double-token,resume,resume-psk")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	results, err := benchjson.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, r := range results {
		if r.Unit == "ms-CPU/set-up" && r.Value > 0 {
			got[r.Test] = true
		}
	}
	for _, name := range []string{"double", "hybrid", "psk", "double-token", "resume", "resume-psk"} {
		if !got[name] {
			t.Errorf("nothing was measured for %s", name)
		}
	}
}
