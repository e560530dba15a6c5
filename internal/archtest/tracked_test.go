package archtest

import (
	"bytes"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

// registryHosts are hosts that packages are fetched from. Which of them a machine uses is that
// machine's setting; a file of this repository that names one would override it, or leak it.
// They are written in halves so that this file does not name them.
func registryHosts() []string {
	var hosts []string
	for _, h := range [][2]string{
		{"proxy.", "golang.org"},
		{"sum.", "golang.org"},
		{"deb.", "debian.org"},
		{"security.", "debian.org"},
		{"ftp.", "debian.org"},
		{"registry.", "npmjs.org"},
		{"files.", "pythonhosted.org"},
		{"goproxy.", "io"},
		{"goproxy.", "cn"},
		{"gh", "cr.io"},
		{"registry-1.", "docker.io"},
	} {
		hosts = append(hosts, h[0]+h[1])
	}
	// And those that this machine uses.
	add := func(text string) {
		for _, field := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", |\n", r) }) {
			if u, err := url.Parse(field); err == nil && u.Host != "" {
				hosts = append(hosts, u.Host)
			}
		}
	}
	if out, err := exec.Command("go", "env", "GOPROXY").Output(); err == nil {
		add(string(out))
	}
	if out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI)").Output(); err == nil {
		add(string(out))
	}
	return hosts
}

// TestTrackedFilesNameNoMachine fails when a tracked file names a package registry's host or
// the folder in which this checkout happens to lie.
func TestTrackedFilesNameNoMachine(t *testing.T) {
	t.Parallel()
	root := testvectors.Root()
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("git ls-files: %v", err)
		}
		t.Skip("not a git checkout: nothing is tracked")
	}
	words := registryHosts()
	if abs, err := filepath.Abs(root); err == nil && strings.Count(abs, "/") > 1 {
		words = append(words, abs+"/", filepath.Dir(abs)+"/shared")
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if name == "go.sum" || name == "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || bytes.IndexByte(text, 0) >= 0 {
			continue // removed in the work tree, or not text
		}
		for _, w := range words {
			if i := bytes.Index(text, []byte(w)); i >= 0 {
				t.Errorf("%s:%d names %q: a registry's host or a path of one machine must not be tracked", name, 1+bytes.Count(text[:i], []byte("\n")), w)
			}
		}
	}
}
