package archtest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

// keylogTag makes the build that writes its keys into a file, for tests that read captures.
const keylogTag = "wardgate_keylog"

// TestKeylogIsOutOfReach holds the build that writes keys down apart from what ships: its code is
// in no default build, and nothing but the end-to-end tests asks for it.
func TestKeylogIsOutOfReach(t *testing.T) {
	t.Parallel()
	root := testvectors.Root()
	run := func(name string, args ...string) []string {
		cmd := exec.Command(name, args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v", name, args, err)
		}
		return strings.Fields(string(out))
	}
	const without, with = "keylog_none.go", "keylog.go"
	files := run("go", "list", "-f", `{{join .GoFiles "\n"}}`, "./router")
	if slices.Contains(files, with) || !slices.Contains(files, without) {
		t.Errorf("the default build of package router is %v: want %s, and not %s", files, without, with)
	}
	files = run("go", "list", "-tags", keylogTag, "-f", `{{join .GoFiles "\n"}}`, "./router")
	if !slices.Contains(files, with) || slices.Contains(files, without) {
		t.Errorf("with the tag %s package router is %v: want %s, and not %s", keylogTag, files, with, without)
	}
	allowed := []string{"router/keylog.go", "router/keylog_none.go", "internal/archtest/keylog_test.go", "internal/e2e/keylog_test.go", "docs/testing.md"}
	for _, f := range run("git", "grep", "-l", keylogTag) {
		if !slices.Contains(allowed, f) {
			t.Errorf("%s names the build tag %s: want only %v to", f, keylogTag, allowed)
		}
	}
	// What it says to the outside must not be found under another tag, or none.
	for _, f := range run("git", "grep", "-l", "WARDGATE_"+"KEYLOG") {
		if f != "router/keylog.go" && f != "docs/testing.md" && !strings.HasPrefix(f, "internal/e2e/") {
			t.Errorf("%s names the environment variable of the build that writes keys down: want only router/keylog.go, docs/testing.md and tests to", f)
		}
	}
}
