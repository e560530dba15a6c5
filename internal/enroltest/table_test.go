package enroltest

import (
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
	"wardgate/policy"
	"wardgate/router/centre"
	"wardgate/sp/est"
)

// tests lists the names of the tests in a folder.
func tests(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	files := must(fs.Glob(os.DirFS(dir), "*_test.go"))(t)
	for _, name := range files {
		f := must(parser.ParseFile(gotoken.NewFileSet(), filepath.Join(dir, name), nil, parser.SkipObjectResolution))(t)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[fn.Name.Name] = true
			}
		}
	}
	return out
}

// docs/refusals.md names tests that there are, and codes that there are; and no test of a refusal is missing
// from it.
func TestTableOfRefusals(t *testing.T) {
	t.Parallel()
	root := testvectors.Root()
	text := string(must(os.ReadFile(filepath.Join(root, "docs", "refusals.md")))(t))
	codes := map[string]bool{ // of the API for devices: docs/sp.md
		"no-certificate": true, "not-registered": true, "device-revoked": true, "malformed": true, "too-large": true, "cert-unknown-ca": true, "cert-revoked": true,
		string(centre.PolicyBad): true, string(centre.UntrustedCA): true, string(centre.BadCert): true,
	}
	for c := est.Class(0); !strings.HasPrefix(c.String(), "class-"); c++ {
		codes[c.Code()] = true
	}
	for _, err := range []error{
		policy.ErrOtherDevice, policy.ErrSerialOlder, policy.ErrSerialReused, policy.ErrSigner, policy.ErrSignerEKU, policy.ErrSignerRevoked, policy.ErrSignerValidity, policy.ErrSignature,
	} {
		codes[policy.Code(fmt.Errorf("x: %w", err))] = true
	}
	own := tests(t, filepath.Join(root, "internal", "enroltest"))
	all := map[string]bool{}
	for _, dir := range []string{"sp", "sp/est", "router/centre", "internal/enroltest"} {
		for name := range tests(t, filepath.Join(root, filepath.FromSlash(dir))) {
			all[name] = true
		}
	}
	code := regexp.MustCompile("`([^`]+)`")
	rows, named := 0, map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		cells := strings.Split(line, "|")
		for _, m := range code.FindAllStringSubmatch(line, -1) {
			if strings.HasPrefix(m[1], "Test") {
				named[m[1]] = true
				if !all[m[1]] {
					t.Errorf("there is no test %s", m[1])
				}
			}
		}
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "what" {
			continue
		}
		rows++
		m := code.FindStringSubmatch(cells[2])
		if m == nil || !own[m[1]] {
			t.Errorf("no test of this package: %s", line)
		}
		for _, c := range code.FindAllStringSubmatch(cells[3], -1) {
			if !codes[c[1]] {
				t.Errorf("there is no code %s", c[1])
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows", rows)
	}
	for name := range own {
		if strings.HasPrefix(name, "TestRefused") && !named[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
}
