package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/internal/testvectors"
)

// keylogBuild is the wardgated that writes down keys for Wireshark and rekeys as often as a test
// asks for; made when the first test needs it.
var keylogBuild = sync.OnceValues(func() (string, error) {
	name := filepath.Join(bin, "keylog", "wardgated")
	cmd := exec.Command("go", "build", "-tags", "wardgate_keylog", "-o", name, "./cmd/wardgated")
	cmd.Dir = testvectors.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return name, nil
})

// withKeylog has both sides of a line run that build, and returns the files with the keys; each
// side's holds those of both directions. With rekeyEvery either side rekeys a CHILD SA of that age.
func withKeylog(t *testing.T, n *lab.Line, rekeyEvery time.Duration) (keys [2]string) {
	t.Helper()
	binary, err := keylogBuild()
	must(t, err)
	for i, f := range n.Sides {
		keys[i] = n.Path("esp_sa-" + f.Name)
		f.Binary = binary
		f.Environ = []string{"WARDGATE_KEYLOG=" + keys[i]}
		if rekeyEvery > 0 {
			f.Environ = append(f.Environ, "WARDGATE_REKEY_EVERY="+rekeyEvery.String())
		}
	}
	return keys
}

// rekeyed tells from the key logs how many CHILD SAs each side has rekeyed.
func rekeyed(t *testing.T, keys [2]string) (by [2]int) {
	t.Helper()
	for i, name := range keys {
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no SA yet
			t.Fatal(err)
		}
		by[i] = strings.Count(string(text), "# rekeyed by us\n")
	}
	return by
}

// The build with the key log says what it is; the one that ships writes nothing.
func TestKeylogBuildSaysSo(t *testing.T) {
	needRoot(t)
	name, err := keylogBuild()
	must(t, err)
	for binary, want := range map[string]bool{name: true, filepath.Join(bin, "wardgated"): false} {
		out, err := exec.Command(binary, "-version").CombinedOutput()
		must(t, err)
		if strings.Contains(string(out), "keylog") != want {
			t.Errorf("%s -version says %q; want the word keylog: %v", binary, out, want)
		}
		code, err := os.ReadFile(binary)
		must(t, err)
		if strings.Contains(string(code), "WARDGATE_KEYLOG") != want {
			t.Errorf("%s holds the code that writes keys down: want %v", binary, want)
		}
	}
}
