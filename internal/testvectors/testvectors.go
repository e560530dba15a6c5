// Package testvectors finds the test data that other people made.
//
// The sets that may be copied travel in testdata/vectors; the others are read from the folder
// ../shared/vectors beside the checkout. A set that is found in neither place skips the test on
// a developer's machine and fails it where CI=true, so that a green CI run means that every
// vector was seen.
package testvectors

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Root returns the folder of the checkout: the one that holds go.mod.
func Root() string {
	_, file, _, ok := runtime.Caller(0)
	if ok {
		if root := filepath.Join(filepath.Dir(file), "..", ".."); exists(filepath.Join(root, "go.mod")) {
			return root
		}
	}
	// Built with -trimpath: go test runs in the package's folder, so walk up from there.
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for {
		if exists(filepath.Join(dir, "go.mod")) {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "."
		}
		dir = parent
	}
}

// Path returns where the vector file or folder name (slash-separated, such as
// "rfc/rfc7748_x25519_x448.json") lies. Where it lies nowhere, the test is skipped, or failed
// when the environment says CI=true.
func Path(tb testing.TB, name string) string {
	tb.Helper()
	root := Root()
	for _, base := range []string{
		filepath.Join(root, "testdata", "vectors"),
		filepath.Join(root, "..", "shared", "vectors"),
	} {
		if p := filepath.Join(base, filepath.FromSlash(name)); exists(p) {
			return p
		}
	}
	const msg = "test vectors %q found neither in testdata/vectors nor in ../shared/vectors"
	if os.Getenv("CI") == "true" {
		tb.Fatalf(msg, name)
	}
	tb.Skipf(msg, name)
	return ""
}

// Read returns the content of the vector file name; a name that ends in .gz is unpacked.
func Read(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(Path(tb, name))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		zr, err := gzip.NewReader(f)
		if err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
		r = zr
	}
	b, err := io.ReadAll(r)
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return b
}

// JSON decodes the vector file name (also .json.gz) into v.
func JSON(tb testing.TB, name string, v any) {
	tb.Helper()
	if err := json.Unmarshal(Read(tb, name), v); err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}
