package operator

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzFiles reads anything as the files of a registry: what is taken has plain names and bounded texts,
// survives being written as an archive, and a patch of nothing changes nothing.
func FuzzFiles(f *testing.F) {
	files := map[string]string{"members/x.toml": "title = \"x\"\n", "devices/x.example.pem": "x"}
	archive, err := writeTar(files)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(0), []byte(`{"files": {"members/x.toml": "x", "devices/../x": "x"}}`))
	f.Add(byte(1), []byte(`{"files": {"members/x.toml": null}}`))
	f.Add(byte(2), archive)
	const most = 1 << 20
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		var list map[string]*string
		var p *Problem
		if kind%3 == 2 {
			list, p = readTar(bytes.NewReader(data), most)
		} else {
			list, p = decodeFiles(data, kind%3 == 1)
		}
		if p != nil {
			if p.Status < 400 || p.Status >= 500 || p.Code == "" || p.Expected == "" || p.Came == "" {
				t.Errorf("%+v", p)
			}
			return
		}
		whole := memory{}
		total := 0
		for name, text := range list {
			if !fs.ValidPath(name) || !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.Count(name, "/") != 1 || !slices.Contains(folders, filepath.Dir(name)) {
				t.Errorf("taken: %q", name)
			}
			if text == nil {
				if kind%3 != 1 {
					t.Errorf("%q without a text", name)
				}
				continue
			}
			if total += len(*text); kind%3 == 2 && !utf8.ValidString(*text) {
				t.Errorf("%q is no text", name)
			}
			whole[name] = *text
		}
		if kind%3 == 2 && total > most {
			t.Errorf("%d octets", total)
		}
		again, err := writeTar(whole)
		if err != nil {
			t.Fatal(err)
		}
		back, p := readTar(bytes.NewReader(again), int64(total))
		if p != nil || len(back) != len(whole) {
			t.Fatalf("%d files of %d came back: %v", len(back), len(whole), p)
		}
		for name, text := range back {
			if *text != whole[name] {
				t.Errorf("%q differs", name)
			}
		}
		if err := readable(whole); err != nil {
			t.Error(err)
		}
	})
}

// readable reads all files by their folders, as registry.Load does.
func readable(m memory) error {
	n := 0
	for _, dir := range folders {
		list, err := fs.ReadDir(m, dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			data, err := fs.ReadFile(m, dir+"/"+e.Name())
			if err != nil || string(data) != m[dir+"/"+e.Name()] || !e.Type().IsRegular() {
				return &fs.PathError{Op: "read", Path: e.Name(), Err: err}
			}
			n++
		}
	}
	if n != len(m) {
		return fs.ErrNotExist
	}
	return nil
}
