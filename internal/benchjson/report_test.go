package benchjson

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const lines = `{"subject":"aead","test":"go-seal-128","value":20000,"unit":"Mbit/s","round":1}
{"subject":"wardgate-128","test":"tcp1","value":4000,"unit":"Mbit/s","round":1}
{"subject":"wardgate-128","test":"tcp1","value":3,"unit":"retransmits","round":1}
{"subject":"wireguard-go","test":"tcp1","value":2000,"unit":"Mbit/s","round":1}
{"subject":"wireguard-go","test":"udp200","value":20.5,"unit":"kpps","round":1}

{"subject":"openvpn","test":"not available","value":0,"unit":"","round":1,"note":"openvpn: not found"}
{"subject":"aead","test":"go-seal-128","value":30000,"unit":"Mbit/s","round":2}
{"subject":"wardgate-128","test":"tcp1","value":5000,"unit":"Mbit/s","round":2}
{"subject":"wireguard-go","test":"tcp1","value":1250,"unit":"Mbit/s","round":2}
{"subject":"wardgate-128","test":"tcp1","value":3000,"unit":"Mbit/s","round":3}
`

func TestReport(t *testing.T) {
	t.Parallel()
	results, err := Read(strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	// Ratios are taken round by round (2.00 and 4.00), not between medians (4000 and 1625).
	const want = `Throughput, Mbit/s received: median [lowest–highest]

| subject | tcp1 |
|---|---:|
| wardgate-128 | 4000 [3000–5000] |
| wireguard-go | 1625 [1250–2000] |

wardgate-128 ÷ …, Mbit/s

| ÷ | tcp1 |
|---|---:|
| wireguard-go | 3.00 |
| one core's AES-128-GCM (Go) | 0.18 |

Packets received, thousands a second: median [lowest–highest]

| subject | udp200 |
|---|---:|
| wireguard-go | 20.5 |

retransmits: median [lowest–highest]

| subject | tcp1 |
|---|---:|
| wardgate-128 | 3 |

Limit: one core, no network, Mbit/s: median [lowest–highest]

| subject | go-seal-128 |
|---|---:|
| aead | 25000 [20000–30000] |

openvpn: not available: openvpn: not found

`
	var b strings.Builder
	if err := Report(&b, results, Markdown); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
	b.Reset()
	if err := Report(&b, results, Text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"  wardgate-128  4000 [3000–5000]\n", "not available: openvpn: not found"} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
	b.Reset()
	if err := Report(&b, nil, Text); err != nil || b.Len() != 0 {
		t.Errorf("nothing measured: %q, %v", b.String(), err)
	}
}

// What Write writes, Read reads.
func TestReadWrite(t *testing.T) {
	t.Parallel()
	want, err := Read(strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	if len(want) != 10 || want[5].Note == "" {
		t.Fatalf("read %+v", want)
	}
	var b strings.Builder
	if err := Write(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"{", "{}\nhello\n", `{"value":"x"}`} {
		if _, err := Read(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "line") {
			t.Errorf("%q: %v, want an error with its line", bad, err)
		}
	}
}
