package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// needFile fails in CI, and skips elsewhere, where a file of a Debian package is not installed.
func needFile(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Stat(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: run .ci/install", err)
		}
		t.Skipf("%v: run .ci/install", err)
	}
}

func TestParseDICOMAgreesWithPydicom(t *testing.T) {
	t.Parallel()
	needFile(t, baseImage)
	text, err := os.ReadFile(baseImage)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ParseDICOM(text)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(img.PixelData)
	out, err := exec.Command("/usr/bin/python3", "-c", `
import hashlib, pydicom, sys
d = pydicom.dcmread(sys.argv[1])
print(d.SOPInstanceUID, hashlib.sha256(d.PixelData).hexdigest())`, baseImage).CombinedOutput()
	if err != nil {
		t.Fatalf("pydicom: %v\n%s", err, out)
	}
	if got, want := img.SOPInstanceUID+" "+hex.EncodeToString(sum[:]), strings.TrimSpace(string(out)); got != want {
		t.Errorf("parsed %s, pydicom says %s", got, want)
	}
	for n := range text[:4096] { // truncated files are refused, not read past their end
		if _, err := ParseDICOM(text[:n]); err == nil {
			t.Fatalf("the first %d bytes were taken for a whole file", n)
		}
	}
}

func TestCTSeriesAndComparison(t *testing.T) {
	t.Parallel()
	needFile(t, baseImage)
	needFile(t, "/usr/bin/dcmodify")
	sent, received := t.TempDir(), t.TempDir()
	if err := CTSeries(t.Context(), sent, 5); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(sent)
	if err != nil || len(files) != 5 {
		t.Fatalf("%d files, %v; want 5", len(files), err)
	}
	pixels := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(sent, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		img, err := ParseDICOM(text)
		if err != nil {
			t.Fatal(err)
		}
		pixels[string(img.PixelData)] = true
		if err := os.WriteFile(filepath.Join(received, f.Name()), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(pixels) != 5 {
		t.Errorf("%d different slices, want 5", len(pixels))
	}
	c, err := CompareStudies(sent, received)
	if err != nil || c.Images != 5 || c.Bytes != 5*128*128*2 {
		t.Errorf("CompareStudies: %+v, %v", c, err)
	}
	last := filepath.Join(received, files[4].Name())
	text, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-200] ^= 1 // inside the pixel data
	if err := os.WriteFile(last, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CompareStudies(sent, received); err == nil {
		t.Error("a changed pixel was not noticed")
	}
	if err := os.Remove(last); err != nil {
		t.Fatal(err)
	}
	if _, err := CompareStudies(sent, received); err == nil {
		t.Error("a missing image was not noticed")
	}
}
