package benchjson

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const output = `goos: linux
goarch: amd64
pkg: wardgate/esp
cpu: some
BenchmarkSeal/aes128gcm/1420-2   	 2000000	       600.5 ns/op	2364.0 MB/s	       0 B/op	       0 allocs/op
BenchmarkRaw/aes128gcm/1420-2    	 2000000	       500.0 ns/op	2840 MB/s
--- BENCH: BenchmarkSeal
BenchmarkSeal/aes128gcm/1420-2   	 2000000	       610 ns/op	2300 MB/s	       0 B/op	       0 allocs/op
PASS
ok  	wardgate/esp	3.1s
`

func TestParse(t *testing.T) {
	t.Parallel()
	var other []string
	got, err := Parse(strings.NewReader(output), func(l string) { other = append(other, l) })
	if err != nil {
		t.Fatal(err)
	}
	const seal, raw = "Seal/aes128gcm/1420", "Raw/aes128gcm/1420"
	want := []Result{
		{"esp", seal, 600.5, "ns/op", 1, ""},
		{"esp", seal, 2364, "MB/s", 1, ""},
		{"esp", seal, 0, "B/op", 1, ""},
		{"esp", seal, 0, "allocs/op", 1, ""},
		{"esp", raw, 500, "ns/op", 1, ""},
		{"esp", raw, 2840, "MB/s", 1, ""},
		{"esp", seal, 610, "ns/op", 2, ""},
		{"esp", seal, 2300, "MB/s", 2, ""},
		{"esp", seal, 0, "B/op", 2, ""},
		{"esp", seal, 0, "allocs/op", 2, ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(other) != 6 {
		t.Errorf("other lines: %q", other)
	}
	ratios := Ratios(got, map[string]string{"Seal": "Raw"}, "MB/s")
	if d := cmp.Diff([]Result{{"esp", seal, 83.2, "%-of-Raw", 1, ""}}, ratios); d != "" {
		t.Error(d)
	}
	var b strings.Builder
	if err := Write(&b, ratios); err != nil {
		t.Fatal(err)
	}
	if want := `{"subject":"esp","test":"Seal/aes128gcm/1420","value":83.2,"unit":"%-of-Raw","round":1}` + "\n"; b.String() != want {
		t.Errorf("wrote %s, want %s", b.String(), want)
	}
	b.Reset()
	if err := Table(&b, got); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "605 [600-610]") || !strings.Contains(b.String(), "-") {
		t.Errorf("table:\n%s", b.String())
	}
}

func TestParseRefusesNonsense(t *testing.T) {
	t.Parallel()
	if _, err := Parse(strings.NewReader("BenchmarkX-2 10 abc ns/op\n"), func(string) {}); err == nil {
		t.Error("a value that is no number was taken")
	}
}
