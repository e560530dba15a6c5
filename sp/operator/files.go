package operator

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"wardgate/internal/certs"
	"wardgate/sp/registry"
)

// folders are those that a registry's files lie in.
var folders = []string{"members", "devices", "services", "contracts"}

// maxPath bounds a file's path, in octets.
const maxPath = 128

// checkPath refuses what is no path of a registry's file. It is the one gate for names that come from
// outside: in a URL, as a key, in an archive. What passes has two parts, the first a folder of the
// registry, the second a name without any way out. Whether it names an object is the registry's to say.
func checkPath(p string) *Problem {
	bad := func(why string) *Problem {
		return problem(http.StatusBadRequest, CodeBadName, "FOLDER/NAME.toml or devices/NAME.pem in members, devices, services or contracts", certs.Quote(p)+": "+why, "send the registry's files and nothing else")
	}
	dir, name, two := strings.Cut(p, "/")
	switch {
	case len(p) > maxPath:
		p = p[:maxPath]
		return bad(fmt.Sprintf("more than %d octets", maxPath))
	case !two || !slices.Contains(folders, dir):
		return bad("another folder")
	case strings.ContainsAny(name, `/\`):
		return bad("a way into another folder")
	case name == "" || strings.HasPrefix(name, ".") || strings.Contains(name, ".."):
		return bad("a hidden name, or a way into another folder")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return bad("a name with other octets than printable ASCII")
		}
	}
	return nil
}

// fileETag is the validator of one file.
func fileETag(text string) string {
	h := sha256.Sum256([]byte(text))
	return `"` + hex.EncodeToString(h[:16]) + `"`
}

// registryETag is the validator of the whole registry.
func registryETag(revision uint64) string { return fmt.Sprintf(`"r%d"`, revision) }

// filesOf writes a registry as files.
func filesOf(r *registry.Registry) map[string]string {
	out := make(map[string]string, len(r.Members())+2*len(r.Devices())+len(r.Services())+len(r.Contracts()))
	for name, data := range r.Export() {
		out[name] = string(data)
	}
	return out
}

// patched returns files with some of them replaced. Without its device, a certificate goes too.
func patched(files map[string]string, patch map[string]*string) map[string]string {
	files = maps.Clone(files)
	for p, text := range patch {
		if text != nil {
			files[p] = *text
			continue
		}
		delete(files, p)
		if name, ok := strings.CutSuffix(p, ".toml"); ok && strings.HasPrefix(p, "devices/") && patch[name+".pem"] == nil {
			delete(files, name+".pem")
		}
	}
	return files
}

// ReadFiles reads a folder's registry files, to send them: hidden files and those that end in .md stay
// behind, as registry.Load leaves them alone.
func ReadFiles(dir fs.FS) (map[string]string, error) {
	out := map[string]string{}
	for _, folder := range folders {
		list, err := fs.ReadDir(dir, folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			name := folder + "/" + e.Name()
			if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), ".md") {
				continue
			}
			if !e.Type().IsRegular() {
				return nil, fmt.Errorf("%w: %s: expected a file, came a %s", registry.ErrRefused, name, e.Type())
			}
			data, err := fs.ReadFile(dir, name)
			if err != nil {
				return nil, err
			}
			out[name] = string(data)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: expected a folder with members, devices, services and contracts, came none of them", registry.ErrRefused)
	}
	return out, nil
}

// decodeFiles reads {"files": {PATH: TEXT}}. In a patch (RFC 7396) TEXT may be null. A key that comes
// twice would be read differently by different programs: it is refused.
func decodeFiles(data []byte, patch bool) (map[string]*string, *Problem) {
	d := json.NewDecoder(bytes.NewReader(data))
	out := map[string]*string{}
	fail := func(expected, came string) *Problem {
		return problem(http.StatusBadRequest, CodeMalformed, expected, came, "see openapi.json")
	}
	next := func() (json.Token, *Problem) {
		t, err := d.Token()
		if err != nil {
			return nil, fail(`JSON of the form {"files": {PATH: TEXT}}`, certs.Quote(err.Error()))
		}
		return t, nil
	}
	want := func(w json.Token, expected string) *Problem {
		t, p := next()
		if p == nil && t != w {
			p = fail(expected, certs.Quote(fmt.Sprint(t)))
		}
		return p
	}
	for _, w := range []struct {
		token    json.Token
		expected string
	}{{json.Delim('{'), "an object"}, {"files", `the key "files" and no other`}, {json.Delim('{'), "an object of texts by path"}} {
		if p := want(w.token, w.expected); p != nil {
			return nil, p
		}
	}
	for d.More() {
		key, p := next()
		if p != nil {
			return nil, p
		}
		name := key.(string) // the decoder sees to it
		if p := checkPath(name); p != nil {
			return nil, p
		}
		if _, twice := out[name]; twice {
			return nil, fail("each path once", name+" twice")
		}
		value, p := next()
		if p != nil {
			return nil, p
		}
		switch v := value.(type) {
		case string:
			if len(v) > registry.MaxFileSize {
				return nil, fail(fmt.Sprintf("%s with at most %d octets", name, registry.MaxFileSize), fmt.Sprint(len(v)))
			}
			out[name] = &v
		case nil:
			if !patch {
				return nil, fail("a text for "+name, "null, which has a meaning in application/merge-patch+json alone")
			}
			out[name] = nil
		default:
			return nil, fail("a text for "+name, certs.Quote(fmt.Sprint(v)))
		}
	}
	for range 2 {
		if p := want(json.Delim('}'), "the end of the object: there is no key but \"files\""); p != nil {
			return nil, p
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fail("one JSON object", "more behind it")
	}
	return out, nil
}

// readTar reads an archive of registry files. Folders in it are passed over; links, devices and names that
// lead anywhere else are refused. most bounds all texts together, also those that the archive holds as
// holes.
func readTar(r io.Reader, most int64) (map[string]*string, *Problem) {
	fail := func(expected, came string) *Problem {
		return problem(http.StatusBadRequest, CodeMalformed, expected, came, "make it with: tar c members devices services contracts")
	}
	out := map[string]*string{}
	t := tar.NewReader(r)
	var total int64
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fail("a tar archive", certs.Quote(err.Error()))
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeDir {
			if d := strings.TrimSuffix(name, "/"); d != "" && d != "." && !slices.Contains(folders, d) {
				return nil, fail("no folders but members, devices, services and contracts", clip(name))
			}
			continue
		}
		if p := checkPath(name); p != nil {
			return nil, p
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fail("plain files", fmt.Sprintf("%s of type %q", name, h.Typeflag))
		}
		if _, twice := out[name]; twice {
			return nil, fail("each path once", name+" twice")
		}
		data, err := io.ReadAll(io.LimitReader(t, registry.MaxFileSize+1))
		if err != nil {
			return nil, fail("a tar archive", certs.Quote(err.Error()))
		}
		if total += int64(len(data)); len(data) > registry.MaxFileSize || total > most {
			return nil, problem(http.StatusRequestEntityTooLarge, CodeTooLarge, fmt.Sprintf("files of at most %d octets, %d together", registry.MaxFileSize, most), "more with "+name, "")
		}
		if !utf8.Valid(data) {
			return nil, fail("text in UTF-8", name+" with something else")
		}
		text := string(data)
		out[name] = &text
	}
}

// writeTar writes files as an archive: equal files give equal octets.
func writeTar(files map[string]string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Format: tar.FormatPAX}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// memory is a folder of files in memory, of two levels.
type memory map[string]string

var (
	_ fs.ReadDirFS = memory(nil)
	_ fs.StatFS    = memory(nil)
)

type memoryFile struct {
	name string
	size int64
	dir  bool
	*strings.Reader
}

// Name implements fs.FileInfo.
func (f *memoryFile) Name() string { return f.name }

// Size implements fs.FileInfo: octets.
func (f *memoryFile) Size() int64 { return f.size }

// Mode implements fs.FileInfo.
func (f *memoryFile) Mode() fs.FileMode {
	if f.dir {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

// ModTime implements fs.FileInfo: files in memory have none.
func (f *memoryFile) ModTime() time.Time { return time.Time{} }

// IsDir implements fs.FileInfo.
func (f *memoryFile) IsDir() bool { return f.dir }

// Sys implements fs.FileInfo.
func (f *memoryFile) Sys() any { return nil }

// Stat implements fs.File.
func (f *memoryFile) Stat() (fs.FileInfo, error) { return f, nil }

// Close implements fs.File.
func (f *memoryFile) Close() error { return nil }

func (m memory) find(op, name string) (*memoryFile, error) {
	if text, ok := m[name]; ok {
		return &memoryFile{name: path.Base(name), size: int64(len(text)), Reader: strings.NewReader(text)}, nil
	}
	if name == "." || slices.Contains(folders, name) {
		return &memoryFile{name: path.Base(name), dir: true, Reader: strings.NewReader("")}, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// Open implements fs.FS.
func (m memory) Open(name string) (fs.File, error) {
	f, err := m.find("open", name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Stat implements fs.StatFS.
func (m memory) Stat(name string) (fs.FileInfo, error) {
	f, err := m.find("stat", name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ReadDir implements fs.ReadDirFS.
func (m memory) ReadDir(dir string) ([]fs.DirEntry, error) {
	var out []fs.DirEntry
	if dir == "." {
		for _, f := range folders {
			out = append(out, fs.FileInfoToDirEntry(&memoryFile{name: f, dir: true}))
		}
		return out, nil
	}
	if !slices.Contains(folders, dir) {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: fs.ErrNotExist}
	}
	for name, text := range m {
		if d, base := path.Split(name); d == dir+"/" {
			out = append(out, fs.FileInfoToDirEntry(&memoryFile{name: base, size: int64(len(text))}))
		}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}
