package suite

import (
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestImports: the core does no I/O, and its transforms know no messages.
func TestImports(t *testing.T) {
	banned := map[string]string{
		"net":                    "the core does no I/O",
		"os":                     "the core does no I/O",
		"syscall":                "the core does no I/O",
		"log":                    "errors are returned, the caller logs",
		"log/slog":               "errors are returned, the caller logs",
		"time":                   "time is an input",
		"math/rand":              "keys need a cryptographic source",
		"math/rand/v2":           "keys need a cryptographic source",
		"crypto/rand":            "randomness is an input",
		"crypto/sha1":            "SHA-1 is reachable by tests alone",
		"crypto/md5":             "never",
		"crypto/mlkem/mlkemtest": "for tests",
		"wardgate/ike/message":   "suite knows no messages",
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if why, ok := banned[path]; ok {
				t.Errorf("%s imports %s: %s", e.Name(), path, why)
			}
			if strings.HasPrefix(path, "wardgate/") {
				t.Errorf("%s imports %s: this package is a leaf", e.Name(), path)
			}
		}
	}
}
