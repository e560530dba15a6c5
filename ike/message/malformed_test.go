package message_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"wardgate/ike/message"
	"wardgate/internal/testvectors"
)

type malformedMessage struct {
	Source  string   `json:"source"`
	File    string   `json:"file"`
	Frame   int      `json:"frame"`
	Ports   []string `json:"ports"`
	Version string   `json:"version"`
	Payload hexBytes `json:"udp_payload"`
}

func readMalformed(tb testing.TB) []malformedMessage {
	tb.Helper()
	var f struct {
		Messages []malformedMessage `json:"messages"`
	}
	testvectors.JSON(tb, "malformed/ike_messages.json", &f)
	if len(f.Messages) < 300 {
		tb.Fatalf("%d malformed messages, want 303", len(f.Messages))
	}
	return f.Messages
}

func readSeeds(tb testing.TB) map[string]hexBytes {
	tb.Helper()
	var f struct {
		Seeds map[string]hexBytes `json:"seeds"`
	}
	testvectors.JSON(tb, "malformed/openiked_seeds.json", &f)
	return f.Seeds
}

// binarySeeds returns the files of the malformed set that hold one message each.
func binarySeeds(tb testing.TB) [][]byte {
	tb.Helper()
	var out [][]byte
	for _, pattern := range []string{"ike-scan/*.dat", "rusticata/*.bin"} {
		files, err := filepath.Glob(filepath.Join(testvectors.Path(tb, "malformed"), filepath.FromSlash(pattern)))
		if err != nil || len(files) == 0 {
			tb.Fatalf("%s: no files (%v)", pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				tb.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return out
}

// allocated returns how many octets f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// memoryBound is what parsing n octets may allocate: the smallest substructures, such as a
// Notify of 8 octets or a transform of 8, become values of up to 12 times their size, twice
// that where a slice grows, and an error or a header costs a little more.
func memoryBound(n int) uint64 { return uint64(24*n + 8192) }

// exercise runs everything that reads an attacker's octets over b.
func exercise(b []byte) {
	if m, err := message.Parse(b); err == nil {
		_ = m.Summary(nil)
		_ = m.CheckOuter()
		exercisePayloads(m.Payloads)
		if m.Encrypted != nil {
			_, _ = m.Open(plainProtector{})
			_, _ = m.OpenFragment(plainProtector{})
			var r message.Reassembler
			_ = r.Wants(m)
		}
	} else {
		_ = err.Error()
		_ = message.NotifyFor(err)
	}
}

func exercisePayloads(ps message.Payloads) {
	for f := message.Form(0); f < 24; f++ {
		if err := f.Check(ps); err != nil {
			_ = err.Error()
		}
	}
	_ = message.ClassifyCreateChild(ps)
	_ = ps.PeerError()
	_ = ps.X509Chain()
	for _, p := range ps {
		switch p := p.(type) {
		case *message.SA:
			for _, prop := range p.Proposals {
				_ = prop.String()
			}
		case *message.ID:
			_ = p.String()
			_ = p.Body()
		case *message.TS:
			for _, s := range p.Selectors {
				_ = s.String()
			}
		case *message.Notify:
			_, _ = p.SPI32()
			_, _ = p.KEMethod()
			_, _ = p.HashAlgorithms()
		case *message.Auth:
			_, _, _ = p.Signature()
		case *message.CertReq:
			_ = p.Authorities()
		}
	}
}

// 303 hostile or odd datagrams of other projects' tests: no panic, bounded memory, IKEv1 is
// named as such.
func TestMalformed(t *testing.T) {
	parsed := 0
	for _, c := range readMalformed(t) {
		b := []byte(c.Payload)
		if c.Ports[0] == "4500" || c.Ports[1] == "4500" {
			if len(b) >= 4 && binary.BigEndian.Uint32(b) == 0 {
				b = b[4:]
			}
		}
		m, err := message.Parse(b)
		if err == nil {
			parsed++
			out, err := m.Append(nil)
			if err != nil {
				t.Errorf("%s %s frame %d: parsed, but does not encode: %v", c.Source, c.File, c.Frame, err)
			} else if _, err := message.Parse(out); err != nil {
				t.Errorf("%s %s frame %d: encodes to what does not parse: %v", c.Source, c.File, c.Frame, err)
			}
		}
		var version *message.VersionError
		if len(b) >= message.HeaderLen && b[17]>>4 == 1 && !errors.As(err, &version) {
			t.Errorf("%s %s frame %d: IKEv1 gives %v, want *VersionError", c.Source, c.File, c.Frame, err)
		}
		for n := 0; n <= len(b); n += 1 + n/64 {
			exercise(b[:n])
		}
		if got := allocated(func() { _, _ = message.Parse(b) }); got > memoryBound(len(b)) {
			t.Errorf("%s %s frame %d: %d octets allocate %d", c.Source, c.File, c.Frame, len(b), got)
		}
	}
	t.Logf("%d messages are well-formed IKEv2", parsed)
	for _, b := range binarySeeds(t) {
		exercise(b)
	}
}

// OpenIKED's fuzz seeds: its valid packet parses, the payloads do in any type's place what
// they like, except panicking.
func TestSeeds(t *testing.T) {
	for name, b := range readSeeds(t) {
		exercise(b)
		for typ := range 256 {
			if ps, err := message.ParsePayloads(message.PayloadType(typ), b); err == nil {
				exercisePayloads(ps)
			}
			if p, err := message.ParseBody(message.PayloadType(typ), false, b); err == nil {
				exercisePayloads(message.Payloads{p})
			}
		}
		if strings.Contains(name, "valid") {
			if _, err := message.Parse(b); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// An identity of any content has a printable name.
func TestIdentitySeeds(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testvectors.Path(t, "malformed"), "strongswan-ids", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no identity seeds", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for typ := range 256 {
			s := message.NewIDi(message.IDType(typ), b).String()
			if strings.ContainsAny(s, "\n\r\x1b\x00") {
				t.Errorf("%s as type %d: %q is not printable", f, typ, s)
			}
		}
	}
}

// The densest messages that fit into a datagram, and counts that promise more than comes.
func TestBoundedMemory(t *testing.T) {
	fill := func(first message.PayloadType, unit []byte, head ...byte) []byte {
		b := head
		for len(b)+len(unit) <= 65500 {
			b = append(b, unit...)
		}
		return b
	}
	withHeader := func(first message.PayloadType, body []byte) []byte {
		b, err := message.Encode(message.Header{Exchange: 34}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, body...)
		b[16] = byte(first)
		binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
		return b
	}
	payload := func(body []byte) []byte {
		b := append([]byte{0, 0, 0, 0}, body...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return b
	}
	cases := map[string][]byte{
		"notifies":       withHeader(message.PayloadNotify, fill(41, []byte{41, 0, 0, 8, 0, 0, 64, 0})),
		"empty unknown":  withHeader(99, fill(99, []byte{99, 0, 0, 4})),
		"proposals":      withHeader(message.PayloadSA, payload(fill(33, []byte{2, 0, 0, 8, 1, 1, 0, 0})[:65000])),
		"transforms":     withHeader(message.PayloadSA, payload(append([]byte{0, 0, 0xfd, 0xe8, 1, 1, 0, 255}, fill(33, []byte{3, 0, 0, 8, 1, 0, 0, 12})[:64992]...))),
		"attributes":     withHeader(message.PayloadSA, payload(append([]byte{0, 0, 0xfd, 0xe8, 1, 1, 0, 1, 0, 0, 0xfd, 0xe0, 1, 0, 0, 12}, fill(33, []byte{0, 14, 0, 0})[:64984]...))),
		"cfg attributes": withHeader(message.PayloadCP, payload(append([]byte{1, 0, 0, 0}, fill(47, []byte{0, 1, 0, 0})[:65000]...))),
		"SPIs":           withHeader(message.PayloadDelete, payload(append([]byte{3, 4, 0x3f, 0x00}, make([]byte, 4*0x3f00)...))),
		"selectors":      withHeader(message.PayloadTSi, payload(append([]byte{255, 0, 0, 0}, fill(44, []byte{99, 0, 0, 4})[:65000]...))),
		"SPI promise":    withHeader(message.PayloadDelete, payload([]byte{3, 4, 0xff, 0xff})),
		"TS promise":     withHeader(message.PayloadTSi, payload([]byte{255, 0, 0, 0})),
		"transforms promise": withHeader(message.PayloadSA, payload([]byte{
			0, 0, 0, 16, 1, 1, 0, 128, 3, 0, 0, 8, 1, 0, 0, 12,
		})),
		"SKF promise": withHeader(message.PayloadSKF, payload([]byte{0, 1, 0xff, 0xff})),
	}
	for name, b := range cases {
		var err error
		got := allocated(func() { _, err = message.Parse(b) })
		if err == nil {
			t.Errorf("%s: parsed", name)
		}
		if !errors.Is(err, message.ErrSyntax) {
			t.Errorf("%s: %v, want a syntax or limit error", name, err)
		}
		// Limits stop the dense ones early.
		if got > 64<<10 {
			t.Errorf("%s: %d octets allocate %d (%v)", name, len(b), got, err)
		}
	}
}
