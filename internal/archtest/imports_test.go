package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

// listed is what the test needs of `go list -json`.
type listed struct {
	ImportPath string
	Dir        string
	Standard   bool
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	DepsErrors []struct{ Err string }
	Error      *struct{ Err string }
}

// goList runs `go list` at the root of the checkout.
func goList(t *testing.T, env []string, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Standard,GoFiles,CgoFiles,Imports,DepsErrors,Error"}, args...)...)
	cmd.Dir = testvectors.Root()
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// matches reports whether an import path is named by a pattern: itself, or a folder "x/...".
func matches(pattern, imp string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return imp == dir || strings.HasPrefix(imp, dir+"/")
	}
	return imp == pattern
}

// own returns the path below the module, and whether the import belongs to the module.
func own(imp string) (string, bool) {
	return strings.CutPrefix(imp, module+"/")
}

// laboratory reports whether a package only ever runs in tests, in the laboratory, or as a
// generator of tables.
func laboratory(pkg string) bool {
	return strings.HasSuffix(pkg, "/internal/gen") || matches("internal/e2e/...", pkg) || matches("internal/interop/...", pkg) || strings.HasSuffix(path.Base(pkg), "test")
}

func TestArrows(t *testing.T) {
	t.Parallel()
	rules := map[string]arrow{}
	for _, a := range arrows {
		rules[a.pkg] = a
	}
	for _, p := range goList(t, nil, "./...") {
		pkg, ok := own(p.ImportPath)
		if !ok || laboratory(pkg) {
			continue
		}
		rule, listed := rules[pkg]
		for _, imp := range p.Imports {
			to, ok := own(imp)
			if !ok {
				continue
			}
			if !listed {
				t.Errorf("%s imports %s, but internal/archtest/rules.go has no arrows for it: add a line with the reason", pkg, to)
				continue
			}
			if !slices.ContainsFunc(rule.to, func(pattern string) bool { return matches(pattern, to) }) {
				t.Errorf("%s must not import %s: %s", pkg, to, rule.why)
			}
		}
	}
}

// inCore reports whether the bans for the core hold for a package.
func inCore(pkg string) bool {
	return !laboratory(pkg) && slices.ContainsFunc(core, func(c string) bool { return matches(c+"/...", pkg) })
}

func TestCoreDoesNoIO(t *testing.T) {
	t.Parallel()
	n := 0
	for _, p := range goList(t, nil, "./...") {
		pkg, ok := own(p.ImportPath)
		if !ok || !inCore(pkg) {
			continue
		}
		n++
		for _, imp := range p.Imports {
			for _, ban := range coreImports {
				if matches(ban.path, imp) {
					t.Errorf("%s must not import %s: %s", pkg, imp, ban.why)
				}
			}
		}
		for _, file := range p.GoFiles {
			name := filepath.Join(p.Dir, file)
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range bannedCalls(t, name, src) {
				t.Error(f)
			}
		}
	}
	if n == 0 {
		t.Fatal("no core package was looked at: has the module been renamed?")
	}
}

// bannedCalls lists where a file refers to something in coreCalls, whatever name it gave the
// package it imported.
func bannedCalls(t *testing.T, name string, src []byte) []string {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{} // local name -> import path
	var found []string
	for _, imp := range file.Imports {
		p, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		local := path.Base(p)
		if p == "math/rand/v2" {
			local = "rand"
		}
		if imp.Name != nil {
			local = imp.Name.Name
		}
		for _, ban := range coreCalls {
			if ban.path == p && local == "." {
				found = append(found, fset.Position(imp.Pos()).String()+": dot import of "+p+" hides bans")
				break
			}
		}
		names[local] = p
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		for _, ban := range coreCalls {
			if names[x.Name] == ban.path && (ban.name == "*" || ban.name == sel.Sel.Name) {
				found = append(found, fset.Position(sel.Pos()).String()+": "+ban.path+"."+sel.Sel.Name+" must not be used in the core: "+ban.why)
			}
		}
		return true
	})
	return found
}

// The ban finder must find what it bans: a test that cannot fail holds nothing.
func TestBannedCallsAreFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		src  string
		want int
	}{
		{`package p; import "time"; var _ = time.Now()`, 1},
		{`package p; import clock "time"; var _ = clock.Now; var _ = clock.Second`, 1},
		{`package p; import . "time"; var _ = Now()`, 1},
		{`package p; import "math/rand/v2"; var _ = rand.IntN(3)`, 1},
		{`package p; import "crypto/rand"; var _ = rand.Reader`, 1},
		{`package p; import "time"; var _ = time.Second; func f(time struct{ Now int }) {}`, 0},
	} {
		if got := bannedCalls(t, "x.go", []byte(c.src)); len(got) != c.want {
			t.Errorf("%s: %d findings %q, want %d", c.src, len(got), got, c.want)
		}
	}
	for _, c := range []struct {
		pattern, imp string
		want         bool
	}{
		{"os/...", "os", true},
		{"os/...", "os/exec", true},
		{"os", "os/exec", false},
		{"net", "net/netip", false},
		{"os/...", "oslo", false},
	} {
		if got := matches(c.pattern, c.imp); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.pattern, c.imp, got, c.want)
		}
	}
}

func TestCgoStaysInTheChipProcess(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, []string{"CGO_ENABLED=1"}, "./...") {
		pkg, ok := own(p.ImportPath)
		if !ok || slices.Contains(cgoAllowed, pkg) {
			continue
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo (%v): foreign code is linked into the chip process alone", pkg, p.CgoFiles)
		}
		if slices.Contains(p.Imports, "github.com/miekg/pkcs11") {
			t.Errorf("%s imports the PKCS#11 binding: only %v may", pkg, cgoAllowed)
		}
	}
}

func TestShippedBinaries(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"amd64", "arm64"} {
		for _, s := range shipped {
			env := []string{"GOOS=linux", "GOARCH=" + arch, "CGO_ENABLED=0"}
			if s.cgo {
				env[2] = "CGO_ENABLED=1"
			}
			bans := slices.Clone(notShipped)
			switch s.pkg {
			case "cmd/wardgated":
				bans = append(bans, notDaemon...)
			case "cmd/wardgate":
				bans = append(bans, notDaemon[0])
			case "cmd/wardgate-chip":
				bans = append(bans, notChip...)
			}
			for _, p := range goList(t, env, "-deps", "./"+s.pkg) {
				if p.Error != nil {
					t.Errorf("%s for %s does not build with %s: %s: %s", s.pkg, arch, env[2], p.ImportPath, p.Error.Err)
				}
				if !s.cgo && len(p.CgoFiles) > 0 {
					t.Errorf("%s for %s links %s, which needs cgo", s.pkg, arch, p.ImportPath)
				}
				for _, ban := range bans {
					if matches(ban.path, p.ImportPath) {
						t.Errorf("%s links %s: %s", s.pkg, p.ImportPath, ban.why)
					}
				}
			}
		}
	}
}
