package ike_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRFCDoc: every test that docs/rfc.md names exists, in the package that it names.
func TestRFCDoc(t *testing.T) {
	t.Parallel()
	namesOf(t, "rfc.md", 100)
	namesOf(t, "rfc-7296.md", 100)
	namesOf(t, "rfc-9329.md", 5)
	namesOf(t, "interop-strongswan.md", 30)
	namesOf(t, "interop.md", 4)
}

// TestDefencesDoc: the same for docs/defences.md, where each class has at least one test.
func TestDefencesDoc(t *testing.T) {
	t.Parallel()
	doc := namesOf(t, "defences.md", 60)
	rows := 0
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| class ") {
			continue
		}
		rows++
		cells := strings.Split(line, "|")
		if shown := cells[len(cells)-2]; !strings.Contains(shown, "Test") {
			t.Errorf("no test shows %s", cells[1])
		}
	}
	if rows < 30 {
		t.Errorf("%d classes", rows)
	}
}

// rooms are the short names of packages in the documents.
var rooms = map[string]string{
	"suite": "ike/suite", "message": "ike/message", "certs": "internal/certs", "interop": "internal/interop",
}

// namesOf looks for every test that a document names: in the package in front of the name, where there is
// one, else in ike, else anywhere when a package stands further in front. It returns the document.
func namesOf(t *testing.T, name string, least int) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	code := map[string]string{} // by folder
	var all strings.Builder
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
			code[dir] += string(b)
			all.Write(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?:([a-z/]+) )?\b((?:Test|Fuzz)[A-Z]\w+)`).FindAllStringSubmatch(string(doc), -1)
	if len(found) < least {
		t.Errorf("docs/%s names %d tests", name, len(found))
	}
	for _, f := range found {
		dir, is := f[1], "func "+f[2]+"("
		if short, ok := rooms[dir]; ok {
			dir = short
		}
		switch in, known := code[dir]; {
		case known && !strings.Contains(in, is):
			t.Errorf("docs/%s names %s of %s, which does not exist there", name, f[2], dir)
		case !known && !strings.Contains(all.String(), is):
			t.Errorf("docs/%s names %s, which does not exist", name, f[2])
		}
	}
	return string(doc)
}
