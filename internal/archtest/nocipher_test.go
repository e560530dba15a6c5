package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

// noCipherTag makes the build that the benchmark takes for the limit. Nobody may come by it by
// accident: it encrypts nothing.
const noCipherTag = "wardgate_nocipher"

// TestNoCipherIsOutOfReach holds the build without a cipher apart from what ships: its code is in
// no default build, one file asks for it, and only the benchmark's target builds it, in a folder
// of its own.
func TestNoCipherIsOutOfReach(t *testing.T) {
	t.Parallel()
	root := testvectors.Root()
	list := func(args ...string) []string {
		cmd := exec.Command("go", append([]string{"list", "-f", `{{join .GoFiles "\n"}}`}, args...)...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))
	}
	const without, with = "cipher_none.go", "cipher.go"
	if files := list("./esp"); slices.Contains(files, without) || !slices.Contains(files, with) {
		t.Errorf("the default build of package esp is %v: want %s, and not %s", files, with, without)
	}
	if files := list("-tags", noCipherTag, "./esp"); !slices.Contains(files, without) || slices.Contains(files, with) {
		t.Errorf("with the tag %s package esp is %v: want %s, and not %s", noCipherTag, files, without, with)
	}

	cmd := exec.Command("git", "grep", "-l", noCipherTag)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"Makefile", "esp/cipher.go", "esp/cipher_none.go", "internal/archtest/nocipher_test.go", "internal/lab/subject.go", "docs/performance.md", "docs/testing.md"}
	for _, f := range strings.Fields(string(out)) {
		if !slices.Contains(allowed, f) {
			t.Errorf("%s names the build tag %s: want only %v to", f, noCipherTag, allowed)
		}
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range regexp.MustCompile(`(?m)^.*`+noCipherTag+`.*$`).FindAllString(string(makefile), -1) {
		if !strings.Contains(line, "-o $(BENCH)/bin/") {
			t.Errorf("Makefile builds without a cipher somewhere else than in $(BENCH)/bin: %s", strings.TrimSpace(line))
		}
	}
}
